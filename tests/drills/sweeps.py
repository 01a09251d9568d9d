"""A sweep as its user runs it, command by command, and what must be true of it afterwards."""

import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from pipeline.storage import Storage, read_marker
from pipeline.tables import read_table, same_tables
from pipeline.tracking import is_charted
from tests.drills.daemons import ROOT, Daemon, wait_for

DRILL = ROOT / "tests" / "drills" / "drill.toml"
PATIENCE_S = 300.0


class Sweep:
    """One sweep on one storage; every `start` is the same command in a fresh process.

    Args:
        where: a folder, or `s3://bucket/prefix` (its endpoint in the environment of this process too).
        logs: a folder for what the commands print.
        environment: variables of the command.
        options: of the command line.
        sweep: a shipped sweep's name, or a TOML file.
    """

    def __init__(
        self,
        where: str | Path,
        logs: Path,
        environment: Mapping[str, str] | None = None,
        options: tuple[str, ...] = (),
        sweep: str | Path = DRILL,
    ) -> None:
        self.where = str(where)
        self.logs = logs
        self.environment = dict(environment or {})
        self.options = options
        self.sweep = str(sweep)
        self.folder = f"{Path(self.sweep).stem}-two_room-quick"
        self.storage = Storage(self.where)
        self.tables = self.storage.at(f"sweeps/{self.folder}")
        self._count = 0

    def start(self, *more: str) -> Daemon:
        """Starts the driver."""
        self._count += 1
        self.logs.mkdir(parents=True, exist_ok=True)
        command = [*("-m", "pipeline.sweep", self.sweep), "--storage", self.where]
        log = self.logs / f"driver{self._count}.log"
        return Daemon([sys.executable, *command, *self.options, *more], log, self.environment)

    def run(self, *more: str, expected: int = 0, timeout_s: float = PATIENCE_S) -> str:
        """Runs the command to its end; returns what it printed.

        Raises:
            AssertionError: another exit code than expected; shows what was printed.
        """
        return self.finish(self.start(*more), expected, timeout_s)

    def finish(self, driver: Daemon, expected: int = 0, timeout_s: float = PATIENCE_S) -> str:
        """Waits for a driver's end; returns what it printed."""
        try:
            code = driver.wait(timeout_s)
        finally:
            driver.kill()
        printed = driver.log.read_text()
        assert code == expected, f"exit code {code}, expected {expected}: {printed[-3000:]}"
        return printed

    def kill_when(self, happened: Callable[[], object], what: str) -> None:
        """Starts the driver and SIGKILLs it, and it alone, once something holds."""
        driver = self.start()
        try:
            self.wait(driver, happened, what)
        finally:
            driver.kill_alone()

    def wait(self, driver: Daemon, happened: Callable[[], object], what: str) -> float:
        """Waits for a moment of a running driver; returns the seconds it took."""

        def ended_or_happened() -> bool:
            came = bool(happened())
            if not came and driver.exit_code is not None:
                raise AssertionError(f"over before {what}: {driver.log.read_text()[-3000:]}")
            return came

        return wait_for(ended_or_happened, what, PATIENCE_S)

    def trials(self) -> list[str]:
        """Trials that have begun."""
        return self.storage.list("trials")

    def step(self, trial_id: str) -> int:
        """The step of a trial's newest checkpoint on storage."""
        return int(
            (self.storage.read_json(f"trials/{trial_id}/progress.json") or {}).get("step", 0)
        )

    def ended(self) -> list[str]:
        """Trials with a done-marker."""
        return [t for t in self.trials() if read_marker(self.storage, t) is not None]

    def training(self, step: int = 20) -> list[str]:
        """Trials that are under way, from some step on."""
        ended = self.ended()
        return [t for t in self.trials() if t not in ended and self.step(t) >= step]

    def cells(self) -> list[str]:
        """Keys of the markers of all evaluated cells of trials."""
        return [
            f"{trial_id}/{name}"
            for trial_id in self.trials()
            for name in self.storage.list(f"trials/{trial_id}/cells")
            if name.endswith(".json")
        ]

    def attempts(self, trial_id: str) -> list[dict[str, object]]:
        """The processes that worked on a trial."""
        found = self.storage.read_json(f"trials/{trial_id}/attempts.json") or {"rows": []}
        rows: list[dict[str, object]] = found["rows"]
        return rows


def differences(unbroken: Sweep, sweep: Sweep) -> list[str]:
    """What two sweeps' tables differ in, volatile columns aside."""
    return same_tables(unbroken.tables, sweep.tables)


def check_mlflow(uri: str, sweep: Sweep, *, one_clock: bool = True) -> None:
    """One closed run per trial under one closed parent; no charted step of a curve twice, missing or astray.

    Args:
        one_clock: all machines' clocks agree, so that a curve's times must rise with its steps.

    Raises:
        AssertionError: says what is wrong.
    """
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("lewm")
    assert experiment is not None, f"no experiment at {uri}"
    query = f"tags.`lewm.sweep` = '{sweep.folder}'"
    runs = client.search_runs([experiment.experiment_id], query)
    parents = [run for run in runs if run.data.tags["lewm.kind"] == "sweep"]
    children = {run.data.tags["lewm.trial_id"]: run for run in runs if run not in parents}
    trials = read_table(sweep.tables, "trials")
    assert len(parents) == 1, f"{len(parents)} parent runs"
    assert len(runs) == 1 + trials.height, f"{len(runs) - 1} runs for {trials.height} trials"
    assert set(children) == set(trials["trial_id"])
    assert {run.info.status for run in runs} == {"FINISHED"}
    curves = read_table(sweep.tables, "curves").sort("step")
    for trial_id, run in children.items():
        assert run.data.tags["mlflow.parentRunId"] == parents[0].info.run_id
        own = curves.filter(curves["trial_id"] == trial_id)
        assert own["step"].n_unique() == own.height
        points = client.get_metric_history(run.info.run_id, "train/pred_loss")
        logged = [(point.step, point.value) for point in sorted(points, key=_by_step)]
        kept = [
            (step, value)
            for step, value in zip(own["step"], own["pred_loss"], strict=True)
            if value is not None and (is_charted(step) or step >= own["step"][-1] - 1)
        ]
        assert logged == kept, f"{trial_id}: {len(logged)} points logged, {len(kept)} kept"
        times = [point.timestamp for point in sorted(points, key=_by_step)]
        assert not one_clock or times == sorted(times), f"{trial_id}: delivered out of order"


def _by_step(point: object) -> int:
    return int(point.step)  # type: ignore[attr-defined]
