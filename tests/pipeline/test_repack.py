"""`--repack`: a file for fast reading with its datasheet, survives kills, never overwrites anything."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import h5py
import pytest

from lewm.data import frames
from lewm.data import repack as repack_module
from lewm.data.digest import content_hash, fingerprint
from lewm.data.episodes import EpisodeFile
from lewm.data.write import write_episodes
from pipeline.collect import LAYOUTS, main
from tests.lewm.test_episodes import PUBLISHED, make_episode

ROOT = Path(__file__).parents[2]
SOURCE = PUBLISHED / "published_pusht.h5"


def file_hash(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def refused(capsys):
    error = capsys.readouterr().err
    assert error.splitlines()[-1].startswith("error: "), error
    assert error.count("error: ") == 1
    return error


def test_file_datasheet_and_last_lines(tmp_path, capsys):
    before = SOURCE.stat().st_mtime_ns, file_hash(SOURCE)
    assert main(["--repack", str(SOURCE), "--storage", str(tmp_path)]) == 0
    target = tmp_path / "datasets" / "published_pusht-repacked.h5"
    sheet = json.loads(target.with_suffix(".json").read_text())
    assert sheet["content_hash"] == content_hash(SOURCE) == content_hash(target)
    assert sheet["source_fingerprint"] == fingerprint(SOURCE)
    assert sheet["fingerprint"] == fingerprint(target)
    assert sheet["source"] == str(SOURCE) and "bit for bit" in sheet["frames"]
    assert (sheet["num_rows"], sheet["num_episodes"], sheet["image_size"]) == (105, 2, 224)
    said = capsys.readouterr().out
    assert str(target) in said and f"--dataset {target}" in said.splitlines()[-1]
    assert {p.name for p in target.parent.iterdir()} == {target.name, f"{target.stem}.json"}
    assert before == (SOURCE.stat().st_mtime_ns, file_hash(SOURCE))
    made = target.stat().st_mtime_ns
    assert main(["--repack", str(SOURCE), "--storage", str(tmp_path)]) == 0
    assert "there already" in capsys.readouterr().out and target.stat().st_mtime_ns == made


def test_nothing_else_is_overwritten(tmp_path, capsys):
    path = tmp_path / "mine.h5"
    write_episodes(path, [make_episode(9, 1), make_episode(5, 2)])
    command = ["--repack", str(path), "--out"]
    assert main([*command, str(path)]) == 2
    assert "never touched" in refused(capsys)
    thesis = tmp_path / "thesis.h5"
    thesis.write_text("thesis")
    assert main([*command, str(thesis)]) == 2
    assert "holds something else" in refused(capsys) and thesis.read_text() == "thesis"
    out = tmp_path / "new.h5"
    assert main([*command, str(out)]) == 0
    write_episodes(path, [make_episode(9, 1), make_episode(5, 3)])
    assert main([*command, str(out)]) == 2
    assert "holds something else" in refused(capsys)
    assert main(["--repack", str(tmp_path), "--out", str(out)]) == 2
    assert "not a Lance dataset" in refused(capsys)


def test_either_layout(tmp_path, capsys):
    assert LAYOUTS == frames.LAYOUTS
    reacher = PUBLISHED / "published_reacher.h5"
    packed, back = tmp_path / "packed.h5", tmp_path / "back.h5"
    assert main(["--repack", str(reacher), "--out", str(packed)]) == 0
    assert main(["--repack", str(packed), "--out", str(back), "--layout", "published"]) == 0
    assert content_hash(packed) == content_hash(back) == content_hash(reacher)
    with h5py.File(packed) as small, h5py.File(back) as plain:
        assert "pixels_xor" in small and "pixels" in plain
    assert main(["--repack", str(packed), "--out", str(back)]) == 2
    assert "another layout than packed" in refused(capsys)
    assert main(["--repack", str(reacher), "--layout", "zip"]) == 2
    assert "packed" in refused(capsys)


def test_an_interruption_keeps_what_is_done(tmp_path, monkeypatch):
    from io import StringIO

    from rich.console import Console

    from pipeline.datasets.repack import repack_file

    monkeypatch.setattr(repack_module, "PART_ROWS", 20)
    target, console = tmp_path / "new.h5", Console(file=StringIO())
    stops = iter([False, True])
    with pytest.raises(KeyboardInterrupt):
        repack_file(SOURCE, target, console, lambda: next(stops))
    (parts,) = tmp_path.glob("new.h5.*.parts")
    assert len(list(parts.iterdir())) == 2 and not target.exists()
    assert not list(tmp_path.glob("*.owner.json"))
    assert repack_file(SOURCE, target, console, lambda: False)[1]
    assert not parts.exists()


DYING = """
import os, signal, sys
from pathlib import Path
import lewm.data.repack as module
from pipeline.collect import main

source, out, moment, at = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
module.PART_ROWS = 10
seen = 0

def dying(call):
    def made(*arguments, **options):
        global seen
        seen += 1
        if seen > at:
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*arguments, **options)
    return made

if moment == "compare":
    module._first_wrong = dying(module._first_wrong)
elif moment == "write":
    module.FrameWriter = dying(module.FrameWriter)
elif moment == "move":
    Path.unlink = dying(Path.unlink)
elif moment in ("name", "named"):
    replace = Path.replace
    def dying_replace(self, target):
        if self.name == "whole.h5":
            if moment == "named":
                replace(self, target)
            os.kill(os.getpid(), signal.SIGKILL)
        return replace(self, target)
    Path.replace = dying_replace
sys.exit(main(["--repack", source, "--out", out]))
"""


def run(out, moment="never", at=0):
    command = [sys.executable, "-c", DYING, str(SOURCE), str(out), moment, str(at)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    return done.returncode


@pytest.mark.ci
def test_sigkill_anywhere_then_the_same_bytes(tmp_path):
    """Killed while it writes and compares parts, moves them, and gives names to files."""
    unbroken, broken = tmp_path / "unbroken.h5", tmp_path / "broken.h5"
    assert run(unbroken) == 0
    before = file_hash(SOURCE)
    for moment, at in (("compare", 3), ("write", 2), ("move", 6), ("name", 0), ("named", 0)):
        assert not broken.exists()
        assert run(broken, moment, at) == -9, moment
    assert run(broken) == 0
    assert file_hash(broken) == file_hash(unbroken)
    left = {p.name for p in tmp_path.iterdir()}
    assert left == {"broken.h5", "broken.json", "unbroken.h5", "unbroken.json"}
    assert file_hash(SOURCE) == before
    with EpisodeFile(broken) as file:
        assert file.num_episodes == 2
