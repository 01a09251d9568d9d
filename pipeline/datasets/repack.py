"""A dataset rewritten once for fast reading, with its datasheet: `pipeline.collect --repack FILE`."""

import shutil
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from lewm.data.digest import content_hash, fingerprint, fingerprint_of
from lewm.data.episodes import EpisodeFile, Source
from lewm.data.frames import Layout
from lewm.data.repack import repack
from pipeline.datasets.lance_source import LanceSource, is_lance
from pipeline.progress import QUIET_S, duration
from pipeline.storage import Storage
from pipeline.storage.lease import Heartbeat, Lease

LOSSLESS = "bit for bit those of the source"
FROM_JPEG = "decoded from JPEG: near, not equal to, what was rendered"
Stop = Callable[[], bool]
Sheet = dict[str, Any]


def repack_file(
    path: Path, target: Path, console: Console, stop: Stop, layout: Layout = "packed"
) -> tuple[Sheet, bool]:
    """Makes `target` and its datasheet from an episode file, unless they are there.

    Args:
        path: an HDF5 file in any layout we read, or a Lance copy of one (a folder); only read.
        stop: asked now and then; once it says True the work ends, and the next call goes on.
        layout: of `lewm.data.frames`.

    Returns:
        The datasheet, and whether there was work to do.

    Raises:
        ValueError: a broken source, a target that cannot be written or holds something else.
        KeyboardInterrupt: `stop` said so.
    """
    if target.absolute() == path.absolute():
        raise ValueError(f"--out {target} is the file to be repacked, which is never touched")
    with closing(LanceSource(path) if is_lance(path) else EpisodeFile(path)) as source:
        known = fingerprint_of(source, _num_bytes(path))
        folder = Storage(target.parent)
        folder.check_writable()
        lease = Lease(folder, f"{target.name}.owner.json")
        owner = lease.acquire()
        if owner is not None:
            raise ValueError(f"process {owner['pid']} on {owner['host']} is writing {target}")
        with Heartbeat(lease):
            parts = target.with_name(f"{target.name}.{known[:8]}.parts")
            sheet = _there(target, known, layout)
            if sheet is not None:
                shutil.rmtree(parts, ignore_errors=True)
                return sheet, False
            with _Shown(source.num_rows, console, stop) as shown:
                whole, digest = repack(source, parts, shown.advance, layout)
            sheet = {**_datasheet(path, known, source, whole, digest), "layout": layout}
            folder.write_json(target.with_suffix(".json").name, sheet)
            whole.replace(target)
            shutil.rmtree(parts)
            return sheet, True


def _num_bytes(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def _there(target: Path, known: str, layout: Layout) -> Sheet | None:
    """The datasheet of a finished target of this source; None if there is no target yet."""
    if not target.exists():
        return None
    sheet = Storage(target.parent).read_json(target.with_suffix(".json").name) or {}
    if sheet.get("source_fingerprint") != known:
        raise ValueError(
            f"{target} exists and holds something else; remove it or choose another --out"
        )
    if sheet.get("layout", layout) != layout:
        raise ValueError(
            f"{target} exists in another layout than {layout}; remove it or choose another --out"
        )
    if sheet["file"] != file_state(target) and content_hash(target) != sheet["content_hash"]:
        raise ValueError(f"{target} is not what its datasheet says; remove it to make it again")
    return sheet


def file_state(path: Path) -> dict[str, int]:
    """Size and time of a file: while they stay, its content is taken to."""
    state = path.stat()
    return {"size": state.st_size, "mtime_ns": state.st_mtime_ns}


def _datasheet(path: Path, known: str, source: Source, whole: Path, digest: str) -> Sheet:
    return {
        "source": str(path.absolute()),
        "source_fingerprint": known,
        "frames": FROM_JPEG if is_lance(path) else LOSSLESS,
        "num_episodes": int(source.ep_len.size),
        "num_rows": source.num_rows,
        "mean_length": float(source.ep_len.mean()),
        "image_size": source.image_size,
        "columns": list(source.columns),
        "left_out": list(source.left_out),
        "content_hash": digest,
        "fingerprint": fingerprint(whole),
        "file": file_state(whole),
    }


class _Shown:
    """Frames done so far: a bar on a terminal, now and then a line elsewhere."""

    def __init__(self, total: int, console: Console, stop: Stop) -> None:
        self._console, self._stop, self._total = console, stop, total
        self._began = self._told = time.monotonic()
        self._done = 0
        self._bar = Progress(
            TextColumn("repacking"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("frames, left"),
            TimeRemainingColumn(elapsed_when_finished=True),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("", total=total)

    def __enter__(self) -> "_Shown":
        self._bar.start()
        if not self._console.is_terminal:
            self._console.print(f"repacking {self._total:,} frames", highlight=False)
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def advance(self, frames: int) -> None:
        self._done += frames
        self._bar.advance(self._task, frames)
        now = time.monotonic()
        if not self._console.is_terminal and now - self._told > QUIET_S:
            self._told = now
            left = (now - self._began) / self._done * (self._total - self._done)
            text = f"{self._done:,} of {self._total:,} frames, about {duration(left)} to go"
            self._console.print(text, highlight=False)
        if self._stop():
            raise KeyboardInterrupt
