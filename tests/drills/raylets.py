"""A Ray cluster of several nodes on this machine: real daemons, all on loopback, with token auth.

Every node runs in a PID namespace of its own where the kernel lets us (root): its processes then look
to the others like those of another machine, and killing the node takes all of them at once.
"""

import functools
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import psutil

from tests.drills.daemons import Daemon, free_port, listens

RAY = [
    sys.executable,
    "-c",
    # `ray start` replaces 127.0.0.1 by the address of the network card: everybody could reach it
    "from ray._private import services\n"
    "services.get_node_ip_address = lambda address=None: '127.0.0.1'\n"
    "from ray.scripts.scripts import main\n"
    "main()",
]
LOOPBACK = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""At 0, `ray.init` takes 127.0.0.1 at its word, and `ray start` refuses."""
START = {LOOPBACK: "1"}
OBJECT_STORE_BYTES = 80_000_000


@functools.cache
def can_isolate() -> bool:
    """Whether this machine lets us make PID namespaces."""
    if shutil.which("unshare") is None:
        return False
    probe = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", "true"]
    return subprocess.run(probe, capture_output=True).returncode == 0


class Node:
    """One raylet with its workers."""

    def __init__(
        self, cluster: "Raylets", name: str, num_cpus: int, extra: Mapping[str, str]
    ) -> None:
        self.name = name
        self.node_id = secrets.token_hex(28)
        self._cluster = cluster
        command = [
            *(
                ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
                if can_isolate()
                else []
            ),
            *RAY,
            *("start", "--block", f"--address={cluster.address}", f"--num-cpus={num_cpus}"),
            *cluster.options(name),
        ]
        environment = {
            **cluster.environment,
            **extra,
            **START,
            "RAY_OVERRIDE_NODE_ID_FOR_TESTING": self.node_id,
        }
        self._daemon = Daemon(command, cluster.folder / f"{name}.log", environment)

    def ready(self) -> None:
        """Waits until the head knows the node."""
        self._daemon.ready(lambda: "Ray runtime started" in self._daemon.log.read_text())

    def workers(self) -> list[int]:
        """Process numbers of its busy workers (trials and tasks), as this machine counts them."""
        found = []
        for process in self.processes():
            try:
                title = " ".join(process.cmdline())
            except psutil.Error:
                continue
            if title.startswith("ray::") and not title.startswith(
                ("ray::IDLE", "ray::Dash", "ray::Run")
            ):
                found.append(process.pid)
        return found

    def processes(self) -> list[psutil.Process]:
        """Everything that runs on it."""
        return self._daemon.descendants()

    def kill(self) -> None:
        """The machine loses its power."""
        self._daemon.kill()
        self._cluster.nodes.remove(self)

    def drain(self, deadline_s: int) -> None:
        """The cloud's preemption notice, as an autoscaler would pass it on."""
        reason = ["--reason=DRAIN_NODE_REASON_PREEMPTION", "--reason-message=spot"]
        subprocess.run(
            [
                *RAY,
                *("drain-node", f"--address={self._cluster.address}", f"--node-id={self.node_id}"),
                *(*reason, f"--deadline-remaining-seconds={deadline_s}"),
            ],
            env={**os.environ, **self._cluster.environment, **START},
            check=True,
            capture_output=True,
        )


class Raylets:
    """A head without CPUs and nodes that come and go.

    `address` is what `--address` takes; `environment` what a driver needs beside it.
    """

    def __init__(self) -> None:
        self.folder = Path(
            tempfile.mkdtemp(prefix="lrd-", dir="/tmp")
        )  # socket paths must be short
        self.environment = {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            LOOPBACK: "0",
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
        }
        self.nodes: list[Node] = []
        self._count = 0
        port = free_port()
        self.address = f"127.0.0.1:{port}"
        self._head = Daemon(
            [
                *RAY,
                *("start", "--head", "--block", f"--port={port}", "--num-cpus=0"),
                *("--include-dashboard=false", f"--ray-client-server-port={free_port()}"),
                *self.options("head"),
            ],
            self.folder / "head.log",
            self.environment | START,
        )
        self._head.ready(lambda: listens(port))

    def options(self, name: str) -> list[str]:
        """Options of every node."""
        return [
            f"--temp-dir={self.folder / name}",
            "--node-ip-address=127.0.0.1",
            f"--object-store-memory={OBJECT_STORE_BYTES}",
            f"--dashboard-agent-listen-port={free_port()}",
            *("--min-worker-port=0", "--max-worker-port=0"),
        ]

    def add_nodes(
        self, count: int = 1, num_cpus: int = 1, environment: Mapping[str, str] | None = None
    ) -> list[Node]:
        """Starts nodes side by side and waits until they have joined."""
        fresh = []
        for _ in range(count):
            self._count += 1
            fresh.append(Node(self, f"node{self._count}", num_cpus, environment or {}))
        self.nodes += fresh
        for node in fresh:
            node.ready()
        return fresh

    def busy_nodes(self) -> list[Node]:
        """Nodes on which something runs."""
        return [node for node in self.nodes if node.workers()]

    def kill(self) -> None:
        """All machines of the cluster are gone at once, the head first."""
        if self._head.exit_code is None:
            self._head.kill()
        for node in list(self.nodes):
            node.kill()

    def stop(self) -> None:
        """Ends every process of the cluster and forgets its session files."""
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)


@contextmanager
def raylets(count: int, num_cpus: int = 1) -> Iterator[Raylets]:
    """A cluster of a head and `count` nodes, for the length of a block."""
    cluster = Raylets()
    try:
        cluster.add_nodes(count, num_cpus)
        yield cluster
    finally:
        cluster.stop()
