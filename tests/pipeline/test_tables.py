import math
from pathlib import Path

import polars as pl
import pytest

from pipeline import tables
from pipeline.storage import Storage
from pipeline.tables import columns

ROOT = Path(__file__).parents[2]

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


def version_one(sweep: Path) -> Path:
    """The latents of a sweep as version 1 wrote them: without two of today's columns."""
    frame = tables.consolidate([(KEYS, latents())], "latents").drop("pred_error", "copy_error")
    content = tables.encode(frame, dict(frame.schema), version=1)
    Storage(sweep).write_bytes(tables.table_key("latents"), content)
    return sweep / tables.table_key("latents")


def test_an_older_table_is_read_with_nulls_for_what_it_lacks(tmp_path: Path) -> None:
    version_one(tmp_path)
    read, scanned = tables.read_table(tmp_path, "latents"), tables.scan(tmp_path, "latents")
    assert read.schema == scanned.collect_schema() == tables.SCHEMAS["latents"]
    assert read["pred_error"].to_list() == [None, None] and 0.9 in read["mean_std"]
    assert scanned.select("copy_error", "layer").collect().height == 2
    with pytest.raises(tables.BrokenTable, match="schema version 1, not 2"):
        tables.check_table(tmp_path, "latents")
    with pytest.raises(tables.BrokenTable, match="schema version 1, not 2"):
        tables.read_part(Storage(tmp_path), tables.table_key("latents"))


def test_every_added_column_is_one_of_its_table() -> None:
    for version, added in tables.schemas.ADDED.items():
        for table, names in added.items():
            assert 1 < version <= tables.current_version(table)
            assert set(names) <= set(tables.SCHEMAS[table])


def test_a_newer_table_is_refused_in_one_line(tmp_path: Path) -> None:
    frame = tables.consolidate([(KEYS, latents())], "latents")
    content = tables.encode(frame, tables.SCHEMAS["latents"], version=99)
    Storage(tmp_path).write_bytes(tables.table_key("latents"), content)
    for read in (tables.read_table, tables.scan, tables.check_table):
        with pytest.raises(ValueError, match="newer version") as error:
            read(tmp_path, "latents")
        assert "\n" not in str(error.value) and not isinstance(error.value, tables.BrokenTable)
        assert "schema version 99" in str(error.value) and "latents.parquet" in str(error.value)


def test_the_judgement_has_a_version_of_its_own(tmp_path: Path) -> None:
    row = {"quantity": "verdict", "text": "Yes."}
    frame = tables.make_frame([row], tables.SCHEMAS["summary"])
    tables.write_table(tmp_path, "summary", frame)
    tables.check_table(tmp_path, "summary")
    key = tables.table_key("summary")
    Storage(tmp_path).write_bytes(key, tables.encode(frame, tables.SCHEMAS["summary"], version=2))
    assert tables.read_table(tmp_path, "summary")["text"].to_list() == ["Yes."]
    with pytest.raises(tables.BrokenTable, match=f"schema version 2, not {tables.JUDGED_VERSION}"):
        tables.check_table(tmp_path, "summary")


def test_scan_finds_sweeps_by_path_and_by_name(tmp_path: Path) -> None:
    folder = tmp_path / "sweeps" / "lambda-two_room-quick"
    frame = tables.consolidate([(KEYS, latents())], "latents")
    tables.write_table(folder, "latents", frame)
    for given in (folder, str(folder), Storage(folder)):
        assert tables.scan(given, "latents").collect().equals(frame)
    named = tables.scan("lambda", "latents", storage=tmp_path)
    assert isinstance(named, pl.LazyFrame) and named.collect().equals(frame)
    assert tables.scan(folder, "planning").collect_schema() == tables.SCHEMAS["planning"]
    assert tables.scan(folder, "planning").collect().is_empty()


def test_scan_reads_only_the_columns_asked_for(tmp_path: Path) -> None:
    tables.write_table(tmp_path, "latents", tables.consolidate([(KEYS, latents())], "latents"))
    plan = tables.scan(tmp_path, "latents").filter(pl.col("layer") == "projected").select("lam")
    assert "PROJECT 2/" in plan.explain() and plan.collect()["lam"].to_list() == [0.1]


def test_scan_out_of_a_bucket_reads_the_whole_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    version_one(tmp_path)
    whole = tables.read_table(tmp_path, "latents")
    monkeypatch.setattr(Storage, "is_local", property(lambda storage: False))
    assert tables.scan(Storage(tmp_path), "latents").collect().equals(whole)


@pytest.mark.parametrize(
    ("sweep", "table", "said"),
    [
        (
            "lambda",
            "planing",
            r"unknown table 'planing' \(did you mean 'planning'\?\); known: trials",
        ),
        ("lamda", "planning", r"no sweep 'lamda' \(did you mean 'lambda-two_room-quick'\?\)"),
        ("none/at/all", "planning", "no sweep in .*none/at/all"),
        (Path("nowhere"), "planning", "no sweep in .*nowhere: there is no such folder"),
    ],
)
def test_scan_of_what_is_not_there_is_one_line(
    tmp_path: Path, sweep: str | Path, table: str, said: str
) -> None:
    (tmp_path / "sweeps" / "lambda-two_room-quick").mkdir(parents=True)
    with pytest.raises(ValueError, match=said) as error:
        tables.scan(sweep, table, storage=tmp_path)
    assert "\n" not in str(error.value)


def test_scan_of_a_torn_table_says_so(tmp_path: Path) -> None:
    path = version_one(tmp_path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(tables.BrokenTable, match=r"latents\.parquet is not a whole"):
        tables.scan(tmp_path, "latents")


def test_a_table_of_other_columns_is_broken(tmp_path: Path) -> None:
    frame = tables.consolidate([(KEYS, latents())], "latents").rename({"isotropy": "other"})
    content = tables.encode(frame, dict(frame.schema))
    Storage(tmp_path).write_bytes(tables.table_key("latents"), content)
    for read in (tables.read_table, tables.check_table):
        with pytest.raises(tables.BrokenTable, match=r"latents\.parquet: .*missing \['isotropy'\]"):
            read(tmp_path, "latents")


def test_every_column_is_described_and_nothing_else() -> None:
    known = {name for schema in tables.SCHEMAS.values() for name in schema}
    assert set(columns.COLUMNS) == known and set(columns.ROWS) == set(tables.SCHEMAS)
    assert all(column in tables.SCHEMAS[table] for table, column in columns.MEANT_HERE)
    seconds = {name for name in known if name.endswith("_s") and name != "frames_per_s"}
    assert all(columns.COLUMNS[name].endswith(", s") for name in seconds)


def test_the_page_of_tables_is_current() -> None:
    page = (ROOT / "docs" / "tables.md").read_text(encoding="utf-8")
    assert page == columns.page(), "run: python -m pipeline.tables > docs/tables.md"
