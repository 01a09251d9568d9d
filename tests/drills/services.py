"""Real services on loopback for drills: PostgreSQL, an MLflow server, an S3 endpoint, a Ray cluster.

    python -m tests.drills.services up               starts all, prints what to export, stays until Ctrl-C
    python -m tests.drills.services up --raylets 3

Needs Debian's `postgresql` and `pip install 'moto[server]' psycopg2-binary s3fs boto3`. As root,
PostgreSQL runs as the user `postgres`.
"""

import argparse
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.drills.daemons import Daemon, free_port, listens
from tests.drills.proxy import Proxy
from tests.drills.raylets import raylets

BUCKET = "lewm"


def postgres_binaries() -> Path | None:
    """The folder of the newest installed PostgreSQL, or None."""
    found = sorted(
        Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name)
    )
    return found[-1] if found else None


@contextmanager
def postgres() -> Iterator[str]:
    """A fresh PostgreSQL with a password and a database; gives its URI."""
    binaries = postgres_binaries()
    if binaries is None:
        raise RuntimeError("no PostgreSQL here: apt-get install postgresql")
    root = os.geteuid() == 0
    to_user = ["--reuid=postgres", "--regid=postgres", "--init-groups"]
    become = ["setpriv", *to_user] if root else []
    folder = Path(tempfile.mkdtemp(prefix="lewm-pg-"))
    try:
        password, port = secrets.token_hex(16), free_port()
        (folder / "password").write_text(password)
        if root:
            for path in (folder, folder / "password"):
                shutil.chown(path, "postgres", "postgres")
        options = ["--username=lewm", f"--pwfile={folder / 'password'}", "--auth=scram-sha-256"]
        _quietly([*become, str(binaries / "initdb"), f"--pgdata={folder / 'data'}", *options])
        settings = [
            f"-cport={port}",
            "-clisten_addresses=127.0.0.1",
            f"-cunix_socket_directories={folder}",
        ]
        server = Daemon(
            [*become, str(binaries / "postgres"), "-D", str(folder / "data"), *settings],
            folder.with_suffix(".log"),
        )
        try:
            server.ready(lambda: listens(port))
            uri = f"postgresql+psycopg2://lewm:{password}@127.0.0.1:{port}/postgres"
            yield uri
        finally:
            server.send(signal.SIGINT)  # its fast shutdown
            server.stop()
            folder.with_suffix(".log").unlink()
    finally:
        shutil.rmtree(folder)


def _quietly(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, cwd="/")
    if done.returncode:
        raise RuntimeError(f"{command[-1]}: {done.stderr}")


class MlflowServer:
    """`mlflow server`, which can go away and come back on the same port."""

    def __init__(self, backend_uri: str, folder: Path) -> None:
        self._port = free_port()
        self._folder = folder
        self.uri = f"http://127.0.0.1:{self._port}"
        self._environment = {
            "MLFLOW_BACKEND_STORE_URI": backend_uri,  # its password is nobody's business in `ps`
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "MLFLOW_DISABLE_TELEMETRY": "true",
        }
        self.start()

    def start(self) -> None:
        """Starts it and waits until it answers."""
        command = [sys.executable, "-m", "mlflow", "server", "--host=127.0.0.1"]
        options = [f"--port={self._port}", "--workers=2"]
        artifacts = f"--artifacts-destination={self._folder / 'artifacts'}"
        log = self._folder / "mlflow-server.log"
        self._server = Daemon([*command, *options, artifacts], log, self._environment)
        self._server.ready(self._healthy, 120)

    def _healthy(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=2) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def kill(self) -> None:
        """It is gone, its connections with it."""
        self._server.kill()

    def stop(self) -> None:
        """Ends it politely."""
        self._server.stop()


@contextmanager
def mlflow_server(backend_uri: str, folder: Path) -> Iterator[MlflowServer]:
    """A tracking server over a database; artifacts and its log go to a folder."""
    server = MlflowServer(backend_uri, folder)
    try:
        yield server
    finally:
        server.stop()


class S3Server:
    """A bucket behind a proxy that can refuse: `environment` leads s3fs, boto3 and pyarrow to it."""

    def __init__(self, folder: Path) -> None:
        port = free_port()
        self._server = Daemon(
            [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
            folder / "s3.log",
        )
        self._server.ready(lambda: listens(port))
        self.proxy = Proxy(port)
        self.uri = f"s3://{BUCKET}/runs"
        self.environment = {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.proxy.port}",
            "AWS_ACCESS_KEY_ID": "drill",
            "AWS_SECRET_ACCESS_KEY": secrets.token_hex(16),
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        import boto3  # type: ignore[import-untyped]
        from s3fs import S3FileSystem

        S3FileSystem.clear_instance_cache()  # it would lead this process to an earlier server
        boto3.client(
            "s3",
            endpoint_url=self.environment["AWS_ENDPOINT_URL"],
            aws_access_key_id="drill",
            aws_secret_access_key=self.environment["AWS_SECRET_ACCESS_KEY"],
            region_name="us-east-1",
        ).create_bucket(Bucket=BUCKET)

    def stop(self) -> None:
        """Ends it; moto keeps its objects in memory, so they are gone."""
        self.proxy.close()
        self._server.stop()


@contextmanager
def s3_server(folder: Path) -> Iterator[S3Server]:
    """An S3 endpoint (moto's server, a process of its own) with an empty bucket."""
    server = S3Server(folder)
    try:
        yield server
    finally:
        server.stop()


def up(num_raylets: int) -> None:
    """Starts everything and says how a sweep uses it; ends it all at Ctrl-C or SIGTERM."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with ExitStack() as stack:
        try:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="lewm-services-")))
            mlflow = stack.enter_context(mlflow_server(stack.enter_context(postgres()), folder))
            s3 = stack.enter_context(s3_server(folder))
            cluster = stack.enter_context(raylets(num_raylets))
            environment = {
                **s3.environment,
                "MLFLOW_TRACKING_URI": mlflow.uri,
                **{k: v for k, v in cluster.environment.items() if k.startswith("RAY_")},
            }
            for name, value in environment.items():
                print(f"export {name}={value}")
            command = "python -m pipeline.sweep smoke"
            print(f"\n{command} --address {cluster.address} --storage {s3.uri}\n", flush=True)
            while True:
                time.sleep(3600)
        except KeyboardInterrupt:
            print("ending everything that was started", file=sys.stderr)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.drills.services",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=__doc__,
    )
    parser.add_argument("action", choices=["up"], help="start everything, end it at Ctrl-C")
    parser.add_argument("--raylets", type=int, default=3, metavar="N", help="nodes of the cluster")
    args = parser.parse_args(argv)
    up(args.raylets)
    return 0


if __name__ == "__main__":
    sys.exit(main())
