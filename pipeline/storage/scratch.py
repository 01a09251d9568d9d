"""Temporary folders that do not outlive a killed process for long."""

import fcntl
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ALIVE = ".alive"
"""Locked by its process; the lock goes with it, however it ends, and means the same in every container."""


@contextmanager
def scratch(prefix: str) -> Iterator[Path]:
    """A temporary folder of this process; those that killed processes left under the prefix are removed."""
    for left in Path(tempfile.gettempdir()).glob(f"{prefix}*"):
        if _is_dead(left):
            shutil.rmtree(left, ignore_errors=True)
    with (
        tempfile.TemporaryDirectory(prefix=prefix) as folder,
        (Path(folder) / ALIVE).open("w") as lock,
    ):
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield Path(folder)


def _is_dead(folder: Path) -> bool:
    """Whether nobody holds its lock; one that has no lock yet is just being made."""
    try:
        with (folder / ALIVE).open() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
    except OSError:
        return False
