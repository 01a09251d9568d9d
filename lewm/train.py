"""One training without Ray: `python -m lewm.train`."""

import argparse
import json
import math
import sys
import threading
import time
from pathlib import Path
from typing import Any

HELP = """Train one world model, without Ray.

Started again with the same arguments it goes on from the newest checkpoint in the run directory, to
the same bits as if it had never stopped. The run directory then holds checkpoint.pt, curve.jsonl
(one row per step), progress.json, train.log and config.json.

examples:
  python -m lewm.train --dataset tworoom.h5 --run-dir runs/one
  python -m lewm.train --dataset small.h5 --run-dir runs/two --set loss.lam=0.1 \\
      --set model.image_size=64 --set model.patch_size=8 --set optim.num_epochs=none \\
      --set optim.num_steps=400 --set optim.precision=fp32
"""


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit code (0 done or diverged, 2 bad input, 130 interrupted)."""
    parser = argparse.ArgumentParser(
        prog="python -m lewm.train",
        description=HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--dataset", type=Path, required=True, help="episode file (HDF5)")
    parser.add_argument("--run-dir", type=Path, required=True, help="where the run lives")
    parser.add_argument(
        "--set",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="override a config field, e.g. optim.lr=1e-3; defaults are the published values",
    )
    given = parser.parse_args(arguments)
    from lewm.overrides import make_config
    from lewm.training import train

    stop = threading.Event()
    follower = threading.Thread(target=_follow, args=(given.run_dir, stop), daemon=True)
    try:
        config = make_config(dict(_parse_override(text) for text in given.set))
        follower.start()
        result = train(config, given.run_dir, given.dataset)
    except (ValueError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("\nstopped; the same command goes on from the last checkpoint\n")
        return 130
    finally:
        stop.set()
        if follower.is_alive():
            follower.join()
    sys.stdout.write(f"{result.status} at step {result.step}: {given.run_dir}\n")
    return 0


def _parse_override(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"--set takes KEY=VALUE, got {text!r}")
    try:
        return key, json.loads(value)
    except json.JSONDecodeError:
        return key, value


def _follow(run_dir: Path, stop: threading.Event) -> None:
    """Shows progress.json as a line on the terminal, with the time to go."""
    began, newline = time.time(), "\r" if sys.stderr.isatty() else "\n"
    first, shown = None, -1
    while not stop.wait(1.0):
        try:
            progress = json.loads((run_dir / "progress.json").read_text())
        except (OSError, json.JSONDecodeError):
            continue
        step, num_steps = progress["step"], progress["num_steps"]
        if progress["updated_at"] < began or step == shown:
            continue
        if first is None:
            first, since = step, time.monotonic()
        shown = step
        pace = (time.monotonic() - since) / (step - first) if step > first else math.nan
        left = "" if math.isnan(pace) else f", {pace * (num_steps - step):.0f} s to go"
        loss = f", loss {progress['loss']:.4f}" if "loss" in progress else ""
        sys.stderr.write(f"step {step}/{num_steps}{loss}{left}    {newline}")
        sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
