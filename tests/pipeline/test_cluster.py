"""Connecting to Ray: loopback only, one-line errors, secrets, shares of a machine."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline import cluster
from pipeline.redact import redact

ROOT = Path(__file__).parents[2]
LISTENERS = """
import json, psutil
from pipeline.cluster import connect, on_every_node, node_versions, differences, resources_per_trial
connect(None, 2)
import ray
ray.get(ray.remote(lambda: 1).remote())
me = psutil.Process()
found = [c.laddr.ip for p in (me, *me.children(recursive=True)) for c in p.net_connections("inet")
         if c.status == "LISTEN"]
nodes = on_every_node(node_versions)
shares = [resources_per_trial(1), resources_per_trial(1, per_node=5)]
print(json.dumps([sorted(set(found)), [differences(node_versions(), n) for n in nodes.values()], shares]))
"""


@pytest.mark.ci
def test_a_ray_of_our_own_listens_on_loopback_only_and_shares_its_cpus():
    done = subprocess.run(
        [sys.executable, "-c", LISTENERS], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    listening, wrong, shares = json.loads(done.stdout.splitlines()[-1])
    assert listening and all(ip.removeprefix("::ffff:").startswith("127.") for ip in listening)
    assert wrong == [""]
    assert shares == [{"CPU": 1.0}, {"CPU": 0.4}]


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("127.0.0.1:1", "no Ray cluster answers at '127.0.0.1:1'"),
        ("somewhere", "auto or host:port"),
        ("ray://127.0.0.1:10001", "Ray Client is not supported"),
        ("no-such-host.invalid:6379", "check the address"),
    ],
)
def test_an_address_without_a_ray_is_one_line_within_seconds(address, message):
    began = time.monotonic()
    with pytest.raises(ValueError, match=message) as error:
        cluster.connect(address)
    assert "\n" not in str(error.value) and time.monotonic() - began < 20


def test_secrets_travel_apart_from_what_ray_logs(monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "do-not-tell")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "public")
    monkeypatch.setenv("LEWM_CACHE", "/only/here")
    found = cluster._worker_environment()
    hook = found.pop("worker_process_setup_hook")
    assert "do-not-tell" not in repr(found)
    assert found["env_vars"]["AWS_ACCESS_KEY_ID"] == "public"
    assert "LEWM_CACHE" not in found["env_vars"]
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    hook()
    assert cluster.os.environ["AWS_SECRET_ACCESS_KEY"] == "do-not-tell"


def test_redaction(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "abcdef123")
    text = "postgresql://lewm:hunter2@db:5432/x refused token abcdef123; see http://host:5000/path"
    shown = redact(text)
    assert "hunter2" not in shown and "abcdef123" not in shown
    assert "postgresql://lewm:***@db" in shown and "http://host:5000/path" in shown


def test_code_of_another_project_version_is_told_apart():
    here = cluster.node_versions()
    assert cluster.differences(here, here) == ""
    other = here | {"lewm-sweep": "0123", "torch": "1.0"}
    said = cluster.differences(here, other)
    assert "torch 1.0 (driver" in said and "lewm-sweep 0123 (driver" in said
