"""Processes that a drill starts for itself, and ends: these and no others."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[2]


def free_port() -> int:
    """A port of the loopback interface on which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def listens(port: int) -> bool:
    """Whether something answers on a port of the loopback interface."""
    with socket.socket() as probe:
        probe.settimeout(1.0)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def wait_for(happened: Callable[[], object], what: str, timeout_s: float = 60.0) -> float:
    """Waits until something holds; returns the seconds it took.

    Raises:
        TimeoutError: it did not happen in time.
    """
    began = time.monotonic()
    while not happened():
        if time.monotonic() - began > timeout_s:
            raise TimeoutError(f"{what}: not within {timeout_s:.0f} s")
        time.sleep(0.05)
    return time.monotonic() - began


class Daemon:
    """A process in the background, its output in a file; it ends with us, however we end.

    Args:
        environment: laid over ours, of which nothing that leads to services is passed on.
        log: takes what it prints.
    """

    def __init__(
        self, command: Sequence[str], log: Path, environment: Mapping[str, str] | None = None
    ) -> None:
        self.log = log
        self._name = " ".join(command[:4])
        follow = ["setpriv", "--pdeathsig", "TERM"] if shutil.which("setpriv") else []
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [*follow, *command],
                env=_surroundings() | dict(environment or {}),
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.pid = self._process.pid

    @property
    def exit_code(self) -> int | None:
        """Its exit code; None while it runs."""
        return self._process.poll()

    def wait(self, timeout_s: float) -> int:
        """Waits for its end; returns the exit code (`subprocess.TimeoutExpired` if it goes on)."""
        return self._process.wait(timeout_s)

    def send(self, number: signal.Signals) -> None:
        """Sends a signal to the process alone."""
        self._process.send_signal(number)

    def ready(self, happened: Callable[[], object], timeout_s: float = 60.0) -> None:
        """Waits until it serves; if it ends first, says what it printed last."""

        def ended_or_ready() -> bool:
            if self.exit_code is not None:
                last = self.log.read_text(errors="replace")[-2000:]
                raise RuntimeError(f"{self._name} ended with {self.exit_code}: {last}")
            return bool(happened())

        wait_for(ended_or_ready, f"{self.log.stem} serves", timeout_s)

    def descendants(self) -> list[psutil.Process]:
        """Every process below it."""
        try:
            found: list[psutil.Process] = psutil.Process(self.pid).children(recursive=True)
            return found
        except psutil.NoSuchProcess:
            return []

    def stop(self, grace_s: float = 10.0) -> None:
        """Ends it and its children: politely first."""
        if self.exit_code is None:
            family = self.descendants()
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(grace_s)
            _kill(family)
        self.kill()

    def kill_alone(self) -> None:
        """SIGKILL for the process; its children find out by themselves."""
        self._process.kill()
        self._process.wait(10)

    def kill(self) -> None:
        """SIGKILL for it and all its children at once, as when a machine loses its power."""
        family = self.descendants()
        self._process.kill()
        _kill(family)
        self._process.wait(10)


def _surroundings() -> dict[str, str]:
    """Our environment, but for what leads to services: each process is told of its own."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("AWS_", "MLFLOW_", "RAY_"))}
    return {**kept, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def _kill(family: Sequence[psutil.Process]) -> None:
    for process in family:
        try:
            process.kill()  # psutil refuses a number that was given to another process meanwhile
        except psutil.NoSuchProcess:
            continue
