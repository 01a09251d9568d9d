"""Rounds and rungs: what is trained is a pure function of what trials left, broken off anywhere or not."""

import itertools
import json
import math

import pytest

from pipeline.progress import Progress
from pipeline.resolve import resolve
from pipeline.search import record as search_record
from pipeline.search.rounds import Rounds
from pipeline.spec import Request
from pipeline.storage import Storage, read_marker

HEAD = 'name = "t"\nenv = "two_room"\nstages = ["latents"]\n'
SHORT = '[set]\n"optim.num_steps" = 80\n"optim.eval_every" = 20\n"run.checkpoint_every" = 20\n'
BISECT = """[search]
kind = "bisect"
objective = "val_pred_loss"
budget = 9
low = 0.01
high = 1.0
"""
OPTUNA = """[search]
kind = "optuna"
sampler = "random"
objective = "val_pred_loss"
mode = "min"
budget = 8
batch = 4
[search.space]
"loss.lam" = { low = 0.01, high = 1.0, log = true }
[search.early_stopping]
metric = "val_pred_loss"
rungs = [20, 40]
keep = 0.5
"""


def make_spec(tmp_path, search):
    path = tmp_path / "t.toml"
    path.write_text(HEAD + search + SHORT)
    return resolve(Request(str(path)))


class Lab:
    """Trials that leave on storage what real ones leave; gives out after `patience` of them."""

    def __init__(self, folder, patience=math.inf):
        self.storage, self.left = Storage(folder), patience
        self.log = []

    def loss(self, config, step):
        return 1 + 2 / (step + 1) - config.loss.lam / (1 + config.seed)

    def run(self, trials, until):
        for trial in trials:
            if self.left <= 0:
                return
            self.left -= 1
            self.log.append((trial.trial_id, until))
            key, end = f"trials/{trial.trial_id}", until or trial.config.optim.num_steps
            steps = range(end if until else end + 1)
            rows = [{"step": s, "loss": self.loss(trial.config, s)} for s in steps]
            for row in rows[::20]:
                row["val_pred_loss"] = row["loss"]
            text = "".join(json.dumps(row) + "\n" for row in rows)
            self.storage.write_bytes(f"{key}/curve.jsonl", text.encode())
            if until is None:
                self.storage.write_json(f"{key}/done.json", {"status": "done"})
            else:
                known = self.storage.read_json(f"{key}/rungs.json") or {}
                there = {"val_pred_loss": self.loss(trial.config, until)}
                self.storage.write_json(f"{key}/rungs.json", known | {str(until): there})

    def judge(self, spec, trials):
        return {t.trial_id: self.loss(t.config, t.config.optim.num_steps) for t in trials}

    def train(self, spec):
        rounds = Rounds(
            self.storage,
            Progress({t.trial_id: spec.label(t) for t in spec.trials}, {}, None, 2),
            run=self.run,
            judge=self.judge,
            write=lambda spec: None,
            stop=lambda: self.left <= 0,
        )
        return rounds.train(spec)

    def outcome(self, spec):
        found = search_record.read_suggestions(self.storage, spec.folder)
        stopped = search_record.read_stopped(self.storage, spec.folder)
        done = [s["trial_id"] for s in found if read_marker(self.storage, s["trial_id"])]
        return found, stopped, done


@pytest.mark.parametrize("search", [BISECT, OPTUNA], ids=["bisect", "optuna with rungs"])
def test_broken_off_anywhere_and_gone_on_is_the_same_search(tmp_path, search):
    spec = make_spec(tmp_path, search)
    unbroken = Lab(tmp_path / "unbroken")
    unbroken.train(spec)
    wanted = unbroken.outcome(spec)
    assert len(wanted[0]) == spec.search.budget or wanted[0][-1]["round"] >= 2
    for patience in range(1, 9):
        broken = Lab(tmp_path / f"broken{patience}", patience)
        broken.train(spec)
        broken.left = math.inf
        broken.train(spec)
        assert broken.outcome(spec) == wanted


def test_at_every_rung_the_better_half_goes_on_and_the_stopped_say_why(tmp_path):
    spec = make_spec(tmp_path, OPTUNA)
    lab = Lab(tmp_path / "runs")
    grown = lab.train(spec)
    found, stopped, done = lab.outcome(spec)
    lams = {t.trial_id: t.config.loss.lam for t in grown.trials}
    for _, members in itertools.groupby(found, key=lambda row: row["round"]):
        own = sorted((row["trial_id"] for row in members), key=lambda i: -lams[i])
        assert [i in done for i in own] == [True, False, False, False]
        assert [stopped[i]["step"] for i in own[1:]] == [40, 20, 20]
        assert "rank 2 of 2" in stopped[own[1]]["reason"]
    assert lab.log.count((found[0]["trial_id"], 20)) == 1, "a rung was trained twice"


def test_a_trial_that_another_sweep_had_finished_is_judged_at_the_rung_alike(tmp_path):
    spec = make_spec(tmp_path, OPTUNA)
    fresh, reused = Lab(tmp_path / "fresh"), Lab(tmp_path / "reused")
    wanted = fresh.train(spec)
    reused.run(wanted.trials, None)
    reused.train(spec)
    assert reused.outcome(spec)[:2] == fresh.outcome(spec)[:2]


def test_a_grid_trains_all_its_trials_at_once(tmp_path):
    spec = make_spec(tmp_path, '[grid]\n"loss.lam" = [0.1, 0.2]\n')
    lab = Lab(tmp_path / "runs")
    assert lab.train(spec).trials == spec.trials
    assert lab.log == [(trial.trial_id, None) for trial in spec.trials]
