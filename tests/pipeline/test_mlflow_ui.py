"""A real sweep told to a real MLflow server, looked at in a real browser, as its user would."""

import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import quote

import pytest

sys.path.append(str(Path(__file__).parents[1]))

from browser import open_browser

from pipeline.tracking import Tracker, trial_runs

pytestmark = pytest.mark.ci
ROOT = Path(__file__).parents[2]
TABLE = "[...document.querySelectorAll('.ag-root')].map(e => e.innerText).join('\\n')"
TEXT = "document.body.innerText"
AXES = "[...document.querySelectorAll('.parcoords .axis-title')].map(e => e.textContent)"
LABELS = "[...document.querySelectorAll('.parcoords .axis > .label')].map(e => e.textContent)"


def wait_until(ready, timeout_s=60):
    end = time.monotonic() + timeout_s
    while not ready():
        assert time.monotonic() < end, f"not within {timeout_s} s"
        time.sleep(0.2)


def answers(address):
    try:
        with urllib.request.urlopen(f"{address}/health", timeout=5) as answer:
            return answer.status == 200
    except (urllib.error.URLError, OSError):
        return False


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The address of `mlflow server` on an SQLite file, artifacts through the server."""
    root = tmp_path_factory.mktemp("server")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = Path(sys.executable).with_name("mlflow")
    command = [program, "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{root / 'mlflow.db'}"]
    command += ["--artifacts-destination", str(root / "artifacts")]
    quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    with (
        (root / "log").open("w") as log,
        subprocess.Popen(command, env=os.environ | quiet, stdout=log, stderr=log) as process,
    ):
        address = f"http://127.0.0.1:{port}"
        try:
            wait_until(lambda: process.poll() is not None or answers(address))
            assert process.poll() is None, (root / "log").read_text()
            yield address
        finally:
            process.terminate()
            process.wait(timeout=30)


@pytest.fixture(scope="module")
def swept(server, tmp_path_factory):
    """Where MLflow has the smoke sweep of one seed, with fewer stages and steps."""
    storage = tmp_path_factory.mktemp("storage")
    smoke = (ROOT / "sweeps/smoke.toml").read_text()
    smoke = re.sub(r"stages = .*", 'stages = ["latents", "planning"]', smoke)
    (storage / "smoke.toml").write_text(smoke)
    command = [sys.executable, "-m", "pipeline.sweep", str(storage / "smoke.toml")]
    command += ["--set", "optim.num_steps=10", "--seeds", "0", "--storage", str(storage)]
    env = os.environ | {"MLFLOW_TRACKING_URI": server}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    found = re.search(rf"mlflow +{server}/(#/experiments/(\d+)/runs/(\w+)\S*)", done.stdout)
    assert found, done.stdout
    page, experiment, parent = found.groups()
    folder = next((storage / "sweeps").iterdir()).name
    return page, Tracker(server, experiment, parent, folder)


@pytest.fixture(scope="module")
def browser():
    with open_browser(1600, 1400) as page:
        yield page


def links(browser):
    """The addresses in the parent run's description, by their text."""
    found = browser.evaluate("[...document.querySelectorAll('a')].map(e => [e.innerText, e.href])")
    return dict(found)


def test_the_parent_shows_verdict_numbers_and_links(server, swept, browser):
    page, tracker = swept
    browser.open(f"{server}/{page}")
    browser.wait_for(f"{TEXT}.includes('sweep/best_success') && {TEXT}.includes('Description')")
    text = browser.evaluate(TEXT)
    note = tracker.client.get_run(tracker.parent_id).data.tags["mlflow.note.content"]
    verdict = re.search(r"\*\*(.+?)\*\*", note).group(1)
    assert verdict in text and "random actions" in verdict
    assert {"Report", "Trials", "Points", "Charts"} <= links(browser).keys()


def test_the_report_opens_and_draws(server, swept, browser):
    page, _ = swept
    browser.open(f"{server}/{page}")
    browser.wait_for(f"{TEXT}.includes('Report · Trials')")
    browser.open(links(browser)["Report"])
    frame = browser.frame()
    frame.wait_for("document.readyState == 'complete'")
    assert "every station" in frame.evaluate("document.querySelector('h1').innerText")
    frame.wait_for("document.querySelectorAll('svg, canvas').length > 0")
    assert frame.errors() == []


def test_runs_are_grouped_under_the_sweep(server, swept, browser):
    _, tracker = swept
    browser.open(f"{server}/{tracker.page('runs')}")
    browser.wait_for(f"{TABLE}.includes('{tracker.sweep}')")
    assert "seed=" not in browser.evaluate(TABLE)
    browser.evaluate("document.querySelector('.ag-row [col-id*=\"Run Name\"] button').click()")
    browser.wait_for(f"{TABLE}.includes('lam=0.1 seed=0')")


def test_the_saved_view_has_the_columns_and_sorts_by_lambda(server, swept, browser):
    page, _ = swept
    browser.open(f"{server}/{page}")
    browser.wait_for(f"{TEXT}.includes('Report · Trials')")
    found = links(browser)
    browser.open(found["Trials"])
    browser.wait_for(f"{TABLE}.includes('lam=0.1 seed=0')")
    names = re.findall(r"lam=\S+ seed=\d", browser.evaluate(TABLE))
    assert names == ["lam=0.0 seed=0", "lam=0.1 seed=0"]
    columns = browser.evaluate(
        "[...document.querySelectorAll('.ag-header-cell')].map(e => e.getAttribute('col-id'))"
    )
    wanted = [
        "tags.`lewm.status`",
        "params.`lam`",
        "params.`seed`",
        "metrics.`final/success_strict`",
    ]
    places = [columns.index(name) for name in wanted]
    assert places == sorted(places)
    browser.open(found["Points"])
    browser.wait_for(f"{TABLE}.includes('Group: 0.1')")


def test_the_chart_view_draws_what_was_saved(server, swept, browser):
    page, _ = swept
    browser.open(f"{server}/{page}")
    browser.wait_for(f"{TEXT}.includes('Report · Trials')")
    browser.open(links(browser)["Charts"])
    browser.wait_for(f"{TEXT}.includes('This sweep') && {LABELS}.length == 3")
    assert browser.evaluate(LABELS)[0] == "lam"
    browser.wait_for("document.querySelectorAll('.scatterlayer .point').length > 0")


def test_the_comparison_page_draws_lambda(server, swept, browser):
    _, tracker = swept
    runs = [run.info.run_id for run in trial_runs(tracker).values()]
    own = json.dumps([tracker.experiment_id])
    query = f"runs={quote(json.dumps(runs))}&experiments={quote(own)}"
    browser.open(f"{server}/#/compare-runs?{query}")
    browser.wait_for(f"{AXES}.length == 2")
    assert browser.evaluate(AXES) == ["lam", "train/val_pred_loss"]
    text = browser.evaluate(TEXT)
    assert "Comparing 2 Runs" in text and "final/success_strict" in text
