"""The doctor finds what is wrong with a machine or a node, says how to mend it, and never hangs."""

import os
import subprocess
import sys
import threading
import time
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from pipeline import checks, cluster, doctor
from pipeline.checks import Request, examine, versions
from pipeline.storage import Storage

ROOT = Path(__file__).parents[2]


@pytest.fixture
def request_(tmp_path):
    """What the driver's machine would be asked about a folder."""
    storage = Storage(tmp_path / "runs")
    return Request(storage.uri, ".doctor-1", "two_room", False, None, versions())


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LEWM_CACHE", str(tmp_path / "cache"))


def one(request, check, gpus=None):
    (finding,) = (f for f in examine(request, gpus) if f.check == check)
    return finding


def begin(request, clock_s=0.0):
    """The driver's note, by a driver whose clock is so many seconds ahead of the storage's."""
    note = {"written_at": time.time() + clock_s}
    Storage(request.storage).write_json(f"{request.token}/driver.json", note)


def test_this_machine_alone(tmp_path, cache, capsys, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert doctor.main(["--storage", str(tmp_path / "runs")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line[6:20].strip() for line in lines[:-1]] == [c for c in doctor.ORDER if c != "node"]
    assert lines[-1].endswith("0 FAIL")
    assert list((tmp_path / "runs").iterdir()) == []  # its notes are gone


def test_no_ray_is_started_without_an_address(tmp_path):
    code = (
        "import sys; from pipeline import doctor; doctor.main(['--storage', sys.argv[1]]);"
        "sys.exit('ray' in sys.modules and sys.modules['ray'].is_initialized())"
    )
    subprocess.run([sys.executable, "-c", code, tmp_path], check=True, timeout=120, cwd=ROOT)


def test_a_storage_that_is_not_shared(request_, tmp_path):
    begin(request_)
    node = replace(request_, on_node=True)
    assert one(node, "storage").state == "ok"
    elsewhere = replace(node, storage=str(tmp_path / "elsewhere"))
    found = one(elsewhere, "storage")
    assert found.state == "FAIL" and "mount the same folder" in found.mend
    assert not (tmp_path / "elsewhere").exists()  # an empty folder would look like a storage


def test_a_storage_that_cannot_be_written(request_, tmp_path):
    (tmp_path / "file").write_text("")
    found = one(replace(request_, storage=str(tmp_path / "file")), "storage")
    assert found.state == "FAIL" and "cannot be written" in found.text


def test_a_node_whose_notes_do_not_arrive(request_):
    begin(request_)
    examine(replace(request_, on_node=True))
    assert doctor._notes_read_back(request_, 1).state == "ok"
    found = doctor._notes_read_back(request_, 2)
    assert found.state == "FAIL" and "1 of 2" in found.text


@pytest.mark.parametrize(("ahead_s", "state"), [(0.0, "ok"), (60.0, "warn"), (-7200.0, "FAIL")])
def test_clocks(request_, ahead_s, state):
    begin(request_, ahead_s)
    found = one(replace(request_, on_node=True), "clock")
    assert found.state == state
    if state != "ok":
        assert f"{-ahead_s:+.0f} s" in found.text and "timedatectl" in found.mend


def test_other_versions(request_):
    found = one(replace(request_, versions=request_.versions | {"torch": "1.0"}), "versions")
    assert found.state == "FAIL" and "(driver 1.0)" in found.text and "constraints" in found.mend


def test_mlflow(request_, monkeypatch):
    class Health(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200 if self.path == "/health" else 404)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Health)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    uri = f"http://127.0.0.1:{server.server_port}"
    assert one(replace(request_, mlflow=uri), "mlflow").state == "ok"
    server.shutdown()
    server.server_close()
    found = one(replace(request_, mlflow=uri), "mlflow")
    assert found.state == "FAIL" and "does not answer" in found.text
    found = one(replace(request_, mlflow=uri, on_node=True), "mlflow")
    assert found.state == "warn" and "wait on storage" in found.mend
    assert one(replace(request_, on_node=True), "mlflow").state == "warn"
    pytest.importorskip("s3fs")
    found = checks._mlflow(replace(request_, storage="s3://bucket", mlflow=None))
    assert found.state == "FAIL" and "cannot hold its database" in found.text
    database = one(replace(request_, mlflow="postgresql://me:secret@db/mlflow"), "mlflow")
    assert database.state == "warn" and "secret" not in str(database)


def test_a_gpu_that_torch_does_not_see(request_, monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert one(request_, "gpu", 0.0).state == "ok"
    found = one(request_, "gpu", 2.0)
    assert found.state == "FAIL" and "Ray counts 2" in found.text and "nvidia-smi" in found.mend
    assert one(replace(request_, wants_gpu=True), "gpu").state == "warn"


def test_no_opengl_for_a_world_that_needs_it(request_, monkeypatch):
    pytest.importorskip("mujoco")
    monkeypatch.setenv("MUJOCO_GL", "nonsense")
    found = one(replace(request_, env="reacher"), "drawing")
    assert found.state == "FAIL" and "apt-get install" in found.text


def test_a_cache_that_cannot_be_written(request_, monkeypatch):
    monkeypatch.setenv("LEWM_CACHE", "/proc/nowhere")
    found = one(request_, "cache")
    assert found.state == "FAIL" and "LEWM_CACHE" in found.mend


@pytest.mark.ci
def test_a_check_that_hangs_or_stumbles_is_a_finding(request_, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "hunter22")

    def stumble():
        raise OSError("first line\nhunter22 was refused")

    monkeypatch.setattr(checks, "CHECK_S", 3.0)
    monkeypatch.setattr(checks, "_cache", lambda: time.sleep(60))
    monkeypatch.setattr(checks, "_disk", stumble)
    assert "no answer in 3 s" in one(request_, "cache").text
    assert one(request_, "disk").text == "*** was refused"


def test_a_node_that_hangs_is_a_line(request_, monkeypatch):
    import ray

    nodes = [
        {"Alive": True, "NodeManagerAddress": "10.0.0.1", "NodeManagerPort": 1, "Resources": {}}
    ]
    answers = {"10.0.0.1:1": TimeoutError("no answer in 90 s"), "10.0.0.2:1": examine(request_)}
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    monkeypatch.setattr(cluster, "on_every_node", lambda call, timeout_s: answers)
    found = doctor.examine_nodes(replace(request_, wants_gpu=True))
    lines = doctor.report(found)
    assert any(
        line.startswith("FAIL  node           10.0.0.1:1: no answer in 90 s") for line in lines
    )
    assert any(line.startswith("warn  gpu") and "none of 1 nodes" in line for line in lines)


def test_bad_input(tmp_path, capsys):
    storage = ["--storage", str(tmp_path)]
    assert doctor.main(["--address", "127.0.0.1:1", *storage]) == 2
    assert "no Ray cluster answers" in capsys.readouterr().err
    assert doctor.main(["--env", "recher", *storage]) == 2
    assert "did you mean 'reacher'" in capsys.readouterr().err
    assert doctor.main(["--profile", "papr", *storage]) == 2
    assert doctor.main(["--storage", "ftp://x"]) == 2


@pytest.mark.ci
def test_a_cluster_with_a_node_that_lacks_something(tmp_path):
    """A head, a sound node and one without a cache: every node answers, the last one is named."""
    from tests.drills.raylets import raylets

    with raylets(1) as nodes:
        nodes.add_nodes(1, environment={"LEWM_CACHE": "/proc/nowhere"})
        command = [sys.executable, "-m", "pipeline.doctor", "--address", nodes.address]
        began = time.monotonic()
        found = subprocess.run(
            [*command, "--storage", str(tmp_path)],
            env={**os.environ, **nodes.environment, "LEWM_CACHE": str(tmp_path / "cache")},
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=180,
        )
    assert found.returncode == 1, found.stderr
    failed = [line for line in found.stdout.splitlines() if line.startswith("FAIL")]
    assert len(failed) == 1 and "cache" in failed[0] and "127.0.0.1:" in failed[0]
    assert "notes of 3 nodes read back" in found.stdout
    assert time.monotonic() - began < 60
