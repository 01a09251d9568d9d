"""`python -m lewm.train` needs torch, numpy, h5py, hdf5plugin and pydantic, and nothing of the pipeline."""

import subprocess
import sys

NOT_NEEDED = (
    "ray",
    "mlflow",
    "polars",
    "pyarrow",
    "pipeline",
    "scipy",
    "rich",
    "psutil",
    "gymnasium",
)


def test_training_imports_nothing_of_the_pipeline():
    code = (
        "import sys\n"
        f"for name in {NOT_NEEDED!r}: sys.modules[name] = None\n"
        "import lewm.train, lewm.training, lewm.checkpoint, lewm.methods.lewm\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)


def test_help_and_bad_input_of_the_command():
    helped = subprocess.run(
        [sys.executable, "-m", "lewm.train", "--help"], capture_output=True, text=True
    )
    assert helped.returncode == 0 and "--dataset" in helped.stdout
    wrong = subprocess.run(
        [sys.executable, "-m", "lewm.train", "--dataset", "none.h5", "--run-dir", "none"],
        capture_output=True,
        text=True,
    )
    assert wrong.returncode == 2 and "none.h5" in wrong.stderr
    assert wrong.stderr.strip().count("\n") == 0
