"""Scratch folders: those of the dead go, those of the living stay, whoever asks."""

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from pipeline.storage.scratch import scratch

ROOT = Path(__file__).parents[2]
OTHER = """
import sys, time
from pipeline.storage.scratch import scratch
with scratch(sys.argv[1]) as folder:
    print(folder, flush=True)
    time.sleep(60)
"""


def test_a_killed_process_is_cleaned_up_after_and_a_living_one_is_left_alone():
    with tempfile.TemporaryDirectory() as place:
        prefix = Path(place).name + "-x-"
        with subprocess.Popen(
            [sys.executable, "-c", OTHER, prefix], cwd=ROOT, stdout=subprocess.PIPE, text=True
        ) as other:
            theirs = Path(other.stdout.readline().strip())
            with scratch(prefix) as mine:
                assert theirs.is_dir() and mine.is_dir() and mine != theirs
            assert not mine.exists() and theirs.is_dir()
            os.kill(other.pid, signal.SIGKILL)
        assert theirs.is_dir()
        with scratch(prefix):
            assert not theirs.exists()
