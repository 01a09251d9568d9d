"""The report page in a real browser: opened from disk, no network, no console error, every figure drawn."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1]))

from synthetic_sweep import META, make_tables

from pipeline.stages import stability
from reports.page import render

pytestmark = pytest.mark.ci
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND",
    "--enable-logging=stderr",
    "--virtual-time-budget=10000",
    "--dump-dom",
]


def test_every_figure_is_drawn_offline_without_a_console_error(tmp_path):
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    assert browser, "this test needs a browser: apt-get install chromium"
    tables = make_tables()
    page = tmp_path / "index.html"
    html = render(tables | stability.run(tables), META)
    page.write_text(html)
    shown = subprocess.run(
        [browser, *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", page.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
    )
    num_figures = html.count('<div class="chart"')
    drawn = len(re.findall(r"<canvas|<svg[^>]*marks", shown.stdout))
    assert num_figures > 0 and drawn == num_figures
    assert "CONSOLE" not in shown.stderr, shown.stderr
