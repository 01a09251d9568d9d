"""Runs trials as one Ray Tune experiment whose state is thrown away; which ones is decided elsewhere."""

import contextlib
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.execution import class_cache

from pipeline.redact import SECRETS
from pipeline.storage.scratch import scratch
from pipeline.trial import TrialTask, tune_trainable

OnReport = Callable[[str, dict[str, Any]], None]


class _Forgets:
    """Pickles as an empty shell: Tune saves its experiment, and ours is thrown away."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


class _Watch(_Forgets, tune.Callback):  # type: ignore[misc]
    def __init__(self, on_report: OnReport) -> None:
        self._on_report = on_report

    def on_trial_result(
        self, iteration: int, trials: Any, trial: Any, result: dict[str, Any], **_: Any
    ) -> None:
        self._on_report(trial.config["trial_id"], result)


class _StopAll(_Forgets, tune.Stopper):  # type: ignore[misc]
    def __init__(self, stopped: Callable[[], bool]) -> None:
        self._stopped = stopped

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self._stopped()


def run_trials(
    tasks: Sequence[TrialTask],
    share: Mapping[str, float],
    on_report: OnReport,
    stopped: Callable[[], bool],
    retries: int,
) -> dict[str, str]:
    """Runs every task as one trial of a fresh Tune experiment whose state is thrown away.

    Args:
        share: CPU and GPU of one trial.
        on_report: called with the trial id and the metrics of each report.
        stopped: polled; once true, running trials end and none is begun.
        retries: new starts after process death, node loss or an I/O error.

    Returns:
        Per trial its last status (`done`, `paused`, `out of memory` ...), or the error line of one that
        could not be brought to an end.
    """
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"
    class_cache.ENV_VARS_TO_PROPAGATE.difference_update(SECRETS)  # Ray would log them
    by_id = {task.trial_id: task for task in tasks}
    trainable = tune.with_resources(
        tune.with_parameters(tune_trainable, tasks=by_id),
        tune.PlacementGroupFactory([dict(share)]),
    )
    with scratch("lewm-tune-") as folder:
        tuner = tune.Tuner(
            trainable,
            param_space={"trial_id": tune.grid_search(list(by_id))},
            tune_config=tune.TuneConfig(
                # What torch.compile made of one trial would have a say in the next one's kernels.
                reuse_actors=all(task.config.optim.compile == "off" for task in tasks),
                trial_name_creator=_trial_id,
                trial_dirname_creator=_trial_id,
            ),
            run_config=tune.RunConfig(
                name="tune",
                storage_path=str(folder),
                verbose=0,
                stop=_StopAll(stopped),
                callbacks=[_Watch(on_report)],
                failure_config=tune.FailureConfig(max_failures=retries),
            ),
        )
        with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere):
            results = tuner.fit()
    ends = {}
    for result in results:
        trial_id = Path(result.path).name  # its config is lost if its actor could not be made
        if result.error is not None:
            lines = str(result.error).strip().splitlines() or ["unknown"]
            ends[trial_id] = lines[-1]
        else:
            ends[trial_id] = str((result.metrics or {}).get("status", "ended without a word"))
    return ends


def _trial_id(trial: Any) -> str:
    return str(trial.config["trial_id"])
