import math
from pathlib import Path

import polars as pl
import pytest

from pipeline import tables
from pipeline.storage import Storage

KEYS = {
    "trial_id": "a1",
    "method": "lewm",
    "env": "two_room",
    "profile": "quick",
    "point": "loss.lam=0.1",
    "lam": 0.1,
    "seed": 0,
}


def latents(std: float = 0.9) -> pl.DataFrame:
    rows = [
        {"layer": "projected", "mean_std": std, "collapsed": False},
        {"layer": "encoder", "mean_std": math.nan, "collapsed": None},
    ]
    return tables.make_frame(rows, tables.STAGE_SCHEMAS["latents"])


def test_stage_schemas_are_the_tables_without_keys() -> None:
    for stage, schema in tables.STAGE_SCHEMAS.items():
        full = list(tables.SCHEMAS[stage])
        assert full[:7] == list(tables.PER_TRIAL_KEYS)
        assert [name for name in full[7:] if name != "eval_point"] == list(schema)


def test_per_sweep_tables_begin_with_their_keys() -> None:
    for name in ("stability", "comparison", "profiles", "timing", "search", "claims", "summary"):
        assert list(tables.SCHEMAS[name])[:13] == list(tables.PER_SWEEP_KEYS)


def test_volatile_columns_are_those_of_the_design() -> None:
    assert {"wall_s", "plan_s", "frames_per_s", "host", "git_commit"} <= tables.VOLATILE
    assert not {"success", "steps_to_success", "num_steps", "versions", "status"} & tables.VOLATILE


def test_part_roundtrip_has_equal_bytes_and_no_leftovers(tmp_path: Path) -> None:
    schema = tables.STAGE_SCHEMAS["latents"]
    storage, in_pieces = Storage(tmp_path), pl.concat([latents()[:1], latents()[1:]], rechunk=False)
    tables.write_part(storage, "a.parquet", latents(), schema)
    tables.write_part(storage, "b.parquet", in_pieces, schema)
    assert storage.read_bytes("a.parquet") == storage.read_bytes("b.parquet")
    assert tables.read_part(storage, "a.parquet").equals(latents())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.parquet", "b.parquet"]


@pytest.mark.parametrize("harm", ["empty", "torn", "flipped", "text"])
def test_broken_part_is_told(tmp_path: Path, harm: str) -> None:
    path = tmp_path / "part.parquet"
    tables.write_part(Storage(tmp_path), path.name, latents(), tables.STAGE_SCHEMAS["latents"])
    data = bytearray(path.read_bytes())
    if harm == "flipped":
        data[30] ^= 0xFF
    kept = {"empty": b"", "torn": data[: len(data) // 2], "flipped": data, "text": b"no table"}
    path.write_bytes(bytes(kept[harm]))
    with pytest.raises(tables.BrokenTable, match=r"part\.parquet"):
        tables.read_part(Storage(tmp_path), path.name)


def test_another_schema_version_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "part.parquet"
    monkeypatch.setattr(tables, "SCHEMA_VERSION", 0)
    tables.write_part(Storage(tmp_path), path.name, latents(), tables.STAGE_SCHEMAS["latents"])
    monkeypatch.undo()
    with pytest.raises(tables.BrokenTable, match="schema version 0"):
        tables.read_part(Storage(tmp_path), path.name)


def test_wrong_columns_are_refused(tmp_path: Path) -> None:
    frame = latents().rename({"isotropy": "anisotropy"})
    with pytest.raises(ValueError, match=r"missing \['isotropy'\], unknown \['anisotropy'\]"):
        tables.write_part(Storage(tmp_path), "part", frame, tables.STAGE_SCHEMAS["latents"])
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="not in the schema: colour"):
        tables.make_frame([{"colour": 1}], tables.STAGE_SCHEMAS["latents"])


def test_consolidate_joins_keys_whatever_the_order() -> None:
    parts = []
    for seed, lam in [(1, 1.0), (0, 0.1), (1, 0.1)]:
        keys = {**KEYS, "trial_id": f"{seed}{lam}", "lam": lam, "point": f"loss.lam={lam:g}"}
        parts.append(({**keys, "seed": seed}, latents(lam)))
    frame = tables.consolidate(parts, "latents")
    assert frame.schema == tables.SCHEMAS["latents"]
    assert frame.equals(tables.consolidate(parts[::-1], "latents"))
    assert frame["lam"].to_list() == [0.1] * 4 + [1.0] * 2
    assert frame["seed"].to_list() == [0, 0, 1, 1, 1, 1]


def test_floors_have_null_keys_and_sort_last() -> None:
    row = {"planner": "random", "protocol": "strict", "success": True, "pair_id": 0}
    floor = tables.make_frame([row], tables.STAGE_SCHEMAS["planning"])
    cem = floor.with_columns(planner=pl.lit("cem"))
    place = {"env": "two_room", "profile": "quick"}
    frame = tables.consolidate([(place, floor), (KEYS, cem)], "planning")
    assert frame["planner"].to_list() == ["cem", "random"]
    assert frame["lam"].to_list() == [0.1, None]
    assert frame["eval_point"].to_list() == ["", ""]
    swept = tables.consolidate([({**KEYS, "eval_point": "planning.horizon=3"}, cem)], "planning")
    assert swept["eval_point"].to_list() == ["planning.horizon=3"]


def test_consolidate_of_nothing_is_an_empty_table() -> None:
    assert tables.consolidate([], "planning").schema == tables.SCHEMAS["planning"]
    with pytest.raises(ValueError, match="unknown table 'plannings'"):
        tables.consolidate([], "plannings")


def test_equal_table_is_not_rewritten(tmp_path: Path) -> None:
    frame = tables.consolidate([(KEYS, latents())], "latents")
    tables.write_table(tmp_path, "latents", frame)
    path = tmp_path / tables.table_key("latents")
    before = path.stat()
    tables.write_table(tmp_path, "latents", frame[::-1])
    assert (path.stat().st_mtime_ns, path.stat().st_ino) == (before.st_mtime_ns, before.st_ino)
    assert tables.read_table(tmp_path, "latents").equals(frame)
    assert tables.read_table(tmp_path, "planning").is_empty()


def test_same_tables_sees_values_and_forgives_volatile_columns(tmp_path: Path) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    row = {**KEYS, "status": "done", "wall_s": 1.0, "host": "x", "num_steps": 10}
    schema = tables.SCHEMAS["trials"]
    tables.write_table(a, "trials", tables.make_frame([row], schema))
    tables.write_table(
        b, "trials", tables.make_frame([{**row, "wall_s": 2.0, "host": "y"}], schema)
    )
    tables.write_table(
        a, "attempts", tables.make_frame([{**KEYS, "attempt": 1}], tables.SCHEMAS["attempts"])
    )
    assert tables.same_tables(a, b) == []
    tables.write_table(b, "trials", tables.make_frame([{**row, "num_steps": 11}], schema))
    assert tables.same_tables(a, b) == [
        "trials: column num_steps differs in 1 rows, first in row 0: 10 against 11"
    ]
    tables.write_table(b, "trials", tables.make_frame([row, {**row, "seed": 1}], schema))
    tables.write_table(b, "latents", tables.consolidate([(KEYS, latents())], "latents"))
    assert tables.same_tables(a, b) == [f"latents: only in {b}", "trials: 1 rows against 2"]
