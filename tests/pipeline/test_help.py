"""Help answers at once: no command imports what it does not need to print it."""

import subprocess
import sys

import pytest

COMMANDS = (
    *(f"pipeline.{name}" for name in ("sweep", "status", "report", "evaluate", "collect")),
    *("pipeline.simulate", "pipeline.clean", "pipeline.doctor", "lewm.train"),
    *("lewm.released", "lewm.clear_manifest"),
)
SLOW = ("torch", "ray", "mlflow", "numpy", "scipy", "polars", "pyarrow", "pydantic", "h5py")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_imports_nothing_slow(command: str) -> None:
    code = (
        f"import runpy, sys; sys.argv = [{command!r}, '--help']\n"
        f"try: runpy.run_module({command!r}, run_name='__main__')\n"
        "except SystemExit as end: assert end.code == 0\n"
        f"slow = set({SLOW!r}) & set(sys.modules); assert not slow, slow"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"python -m {command}" in done.stdout
