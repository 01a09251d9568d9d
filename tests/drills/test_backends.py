"""Real backends together: a Ray cluster of three nodes, S3 storage, MLflow on PostgreSQL."""

import pytest

from pipeline.tables import read_table
from tests.drills.sweeps import Sweep, check_mlflow, differences

pytestmark = pytest.mark.timeout(900)


@pytest.mark.ci
def test_the_smoke_sweep_on_all_of_them_is_the_local_one(cluster, s3, mlflow, tmp_path):
    local = Sweep(tmp_path / "local", tmp_path / "local-logs", sweep="smoke")
    local.run()
    environment = {
        **cluster.environment,
        **s3.environment,
        "MLFLOW_TRACKING_URI": mlflow.uri,
    }
    options = ("--address", cluster.address)
    remote = Sweep(s3.uri, tmp_path, environment, options, sweep="smoke")
    printed = remote.run()
    assert s3.uri in printed and mlflow.uri in printed
    assert differences(local, remote) == []
    check_mlflow(mlflow.uri, remote)
    assert remote.tables.exists("report/index.html")
    assert "nothing was missing" in remote.run()
    secret = s3.environment["AWS_SECRET_ACCESS_KEY"].encode()
    kept = [path for path in cluster.folder.rglob("*") if path.is_file() and not path.is_symlink()]
    leaks = [path for path in (*kept, *tmp_path.glob("*.log")) if secret in path.read_bytes()]
    assert not leaks, f"a secret is in {leaks}"


@pytest.mark.drill
def test_a_tracking_server_that_goes_away_costs_nothing(cluster, mlflow, unbroken, tmp_path):
    environment = {**cluster.environment, "MLFLOW_TRACKING_URI": mlflow.uri}
    sweep = Sweep(tmp_path / "runs", tmp_path, environment, ("--address", cluster.address))
    driver = sweep.start()
    sweep.wait(driver, lambda: sweep.training(step=100), "training is under way")
    mlflow.kill()
    try:
        printed = sweep.finish(driver)
    finally:
        mlflow.start()
    assert "MLflow cannot be reached" in printed
    assert differences(unbroken, sweep) == []
    sweep.run()
    assert differences(unbroken, sweep) == []
    check_mlflow(mlflow.uri, sweep)
    assert read_table(sweep.tables, "trials")["mlflow_run_id"].null_count() == 0
