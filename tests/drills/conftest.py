"""What every drill is compared with: the same sweep, unbroken, on this machine and in a folder."""

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.drills.raylets import Raylets, raylets
from tests.drills.services import MlflowServer, S3Server, mlflow_server, postgres, s3_server
from tests.drills.sweeps import Sweep


@pytest.fixture(scope="session")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    folder = tmp_path_factory.mktemp("unbroken")
    sweep = Sweep(folder / "runs", folder)
    sweep.run()
    return sweep


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with s3_server(tmp_path_factory.mktemp("s3")) as server, pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment.items():
            patch.setenv(name, value)
        yield server


@pytest.fixture(scope="module")
def mlflow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    with ExitStack() as stack:
        database = stack.enter_context(postgres())
        yield stack.enter_context(mlflow_server(database, tmp_path_factory.mktemp("mlflow")))


@pytest.fixture
def cluster() -> Iterator[Raylets]:
    with raylets(3) as found:
        yield found
