"""Trains the trials of a sweep in order: the rounds of its search, and in each the rungs of early stopping.

What a search suggested is in `sweeps/<sweep>/search.json`, whom early stopping ended in `stopped.json`;
both are pure functions of what the trials left on storage, so any driver goes on from there.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from pipeline import search
from pipeline.progress import Progress
from pipeline.resolve import extend
from pipeline.search import record as search_record
from pipeline.search.checks import MEASURED_SELDOM
from pipeline.search.record import Row
from pipeline.search.settings import Bisect, EarlyStopping, Optuna, Suggestion
from pipeline.spec import Spec, Trial
from pipeline.storage import Storage, parse_rows, read_marker

Values = dict[str, float | None]


@dataclass(frozen=True)
class Rounds:
    """How a sweep's trials are brought to their ends.

    Args:
        run: trains trials to their end, or to a checkpoint at or after a step.
        judge: the objective of trials that are done, by trial id.
        write: keeps a sweep that has grown.
        stop: polled between the steps.
    """

    storage: Storage
    progress: Progress
    run: Callable[[Sequence[Trial], int | None], None]
    judge: Callable[[Spec, Sequence[Trial]], Values]
    write: Callable[[Spec], None]
    stop: Callable[[], bool]

    def train(self, spec: Spec) -> Spec:
        """All trials of a grid, or round after round of a search; returns the sweep as it has grown."""
        settings = spec.search
        if not isinstance(settings, Bisect | Optuna):
            self._train_together(spec, spec.trials)
            return spec
        known = search_record.read_suggestions(self.storage, spec.folder)
        spec, _ = extend(spec, [Suggestion(s["overrides"], s["seed"], s["reason"]) for s in known])
        self.progress.add({trial.trial_id: spec.label(trial) for trial in spec.trials})
        while not self.stop():
            if known:
                self._train_together(spec, _last_round(spec, known))
            if self.stop():
                break
            outcomes = search_record.outcomes_of(known, self.values(spec, known))
            suggestions = search.next_round(settings, outcomes)
            if not suggestions:
                self.progress.line(f"search: {search.verdict(settings, outcomes)}")
                break
            spec, known = self._grow(spec, known, suggestions)
        return spec

    def _grow(
        self, spec: Spec, known: Sequence[Row], suggestions: Sequence[Suggestion]
    ) -> tuple[Spec, list[Row]]:
        """The sweep with a further round, kept before any of it is trained."""
        spec, trials = extend(spec, suggestions)
        grown = search_record.add_round(known, trials, suggestions)
        search_record.write_suggestions(self.storage, spec.folder, grown)
        self.write(spec)
        self.progress.add({trial.trial_id: spec.label(trial) for trial in trials})
        for trial, suggestion in zip(trials, suggestions, strict=True):
            self.progress.line(f"next: {spec.label(trial)}: {suggestion.reason}")
        return spec, grown

    def values(self, spec: Spec, known: Sequence[Row]) -> Values:
        """The objective of every suggested trial; None for one that failed, diverged or was stopped."""
        wanted = {row["trial_id"] for row in known}
        stopped = search_record.read_stopped(self.storage, spec.folder)
        done = [
            trial
            for trial in spec.trials
            if trial.trial_id in wanted - stopped.keys()
            and (read_marker(self.storage, trial.trial_id) or {}).get("status") == "done"
        ]
        return dict.fromkeys(sorted(wanted)) | self.judge(spec, done)

    def _train_together(self, spec: Spec, trials: Sequence[Trial]) -> None:
        """Trains a round; at each rung those that fall behind the others stop."""
        rule = spec.search.early_stopping
        alive = list(trials)
        for rung in rule.rungs if rule else ():
            assert rule is not None
            self.run([t for t in alive if not _has_reached(self.storage, t, rung)], rung)
            if self.stop():
                return
            values = {t.trial_id: _rung_value(self.storage, rule, t, rung) for t in alive}
            kept, reasons = search.survivors(rule, rung, values)
            search_record.write_stopped(self.storage, spec.folder, rung, reasons, values)
            for trial in alive:
                if trial.trial_id in reasons:
                    self.progress.end(trial.trial_id, "stopped")
                    self.progress.line(f"{spec.label(trial)}: {reasons[trial.trial_id]}")
            alive = [trial for trial in alive if trial.trial_id in kept]
        self.run(alive, None)


def _last_round(spec: Spec, known: Sequence[Row]) -> list[Trial]:
    by_id = {trial.trial_id: trial for trial in spec.trials}
    last = known[-1]["round"]
    return [by_id[row["trial_id"]] for row in known if row["round"] == last]


def _has_reached(storage: Storage, trial: Trial, rung: int) -> bool:
    marker = read_marker(storage, trial.trial_id)
    return marker is not None or str(rung) in _rungs(storage, trial.trial_id)


def _rungs(storage: Storage, trial_id: str) -> Row:
    return storage.read_json(f"trials/{trial_id}/rungs.json") or {}


def _rung_value(storage: Storage, rule: EarlyStopping, trial: Trial, rung: int) -> float | None:
    """The rule's metric after `rung` updates: losses of the update before, the rest as measured there."""
    try:
        rows = parse_rows(storage.read_bytes(f"trials/{trial.trial_id}/curve.jsonl"))
    except FileNotFoundError:
        return None
    if len(rows) < rung:
        return None
    there = rows[rung] if len(rows) > rung else _rungs(storage, trial.trial_id).get(str(rung), {})
    return search.rung_value(rule, {**rows[rung - 1], **_only(there, MEASURED_SELDOM)})


def _only(row: Row, names: Iterable[str]) -> Row:
    return {name: row[name] for name in names if name in row}
