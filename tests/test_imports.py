"""The import table of the design: which room may import which, lazy imports included."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
OURS = ("lewm", "pipeline", "reports")
HEAVY = ("torch", "ray", "mlflow", "pyarrow", "polars")

CONFIG = ("lewm.config", "lewm.identity", "lewm.overrides", "lewm.spelling")
LEAVES = ("stats", "tables", "tracking", "storage", "redact", "cluster", "progress")


def allowed(module: str) -> tuple[set[str], set[str]]:
    """(prefixes of ours that the module may import, heavy libraries that it must not)."""
    if module.startswith("lewm"):
        return {"lewm"}, {"ray", "mlflow", "pyarrow", "polars"}
    if module.startswith("reports"):
        return {"reports"}, {"torch", "ray", "mlflow"}
    name = module.removeprefix("pipeline").removeprefix(".")
    top = name.split(".")[0]
    if top in ("spec", "resolve", "shipped", "arguments", "axes"):
        rooms = ("spec", "storage", "shipped", "arguments", "axes", "search")
        rooms = {f"pipeline.{room}" for room in rooms}
        return {*CONFIG} | rooms, {"torch", "ray", "mlflow"}
    if top == "search":
        rooms = {"search", "spec", "resolve", "shipped", "storage", "tables", "stats", "progress"}
        rooms = {f"pipeline.{room}" for room in rooms}
        banned = {"torch", "mlflow"} | ({"ray"} if name != "search.optuna_search" else set())
        return {*CONFIG} | rooms, banned
    if top in ("simulate", "recorded_search"):
        rooms = {"search", "spec", "storage", "tables", "progress", "survey", "results"}
        rooms |= {"recorded_search", "options"}
        return {*CONFIG} | {f"pipeline.{room}" for room in rooms}, {"torch", "ray", "mlflow"}
    if top in LEAVES:
        banned = {"torch", "ray", "mlflow"}
        banned -= {"cluster": {"ray"}, "tracking": {"mlflow"}}.get(top, set())
        return {
            "pipeline.storage",
            "pipeline.redact",
            f"pipeline.{top}",
            *(["pipeline.survey"] * (top == "tables")),
        }, banned
    if name.startswith("stages.stability"):
        return {
            "pipeline.stats",
            "pipeline.tables",
            "pipeline.stages.stability",
        }, {"torch", "ray", "mlflow"}
    if top == "stages":
        return {
            "lewm",
            "pipeline.stats",
            "pipeline.tables",
            "pipeline.stages.loaded",
        }, {"ray", "mlflow"}
    if top == "trial":
        return {
            "lewm",
            *(
                f"pipeline.{room}"
                for room in (
                    *("spec", "stages", "tables", "tracking", "storage", "datasets.cache"),
                    *("cell_runner", "cluster", "redact"),
                )
            ),
        }, set()
    if top == "results":
        return {
            *(
                f"pipeline.{room}"
                for room in (
                    *("spec", "shipped", "tables", "storage"),
                    *("stages.stability", "search.record", "plan_times"),
                )
            ),
        }, {"torch", "ray", "mlflow"}
    if top in ("status", "survey", "clean"):
        rooms = {"storage", "survey", "progress", "report", "tables"}
        return {f"pipeline.{room}" for room in rooms}, {"torch", "ray", "mlflow"}
    if top in ("report", "reporting", "comparison", "claims"):
        return {
            "reports",
            *(
                f"pipeline.{room}"
                for room in (
                    "claims",
                    "comparison",
                    "reporting",
                    "shipped",
                    "spec",
                    "tables",
                    "stats",
                    "storage",
                    "stages.stability",
                    "redact",
                    "survey",
                )
            ),
        }, {"torch", "ray", "mlflow"}
    return set(OURS), set()


def imports(path: Path) -> set[str]:
    """Every module a file imports at run time, at any depth of its code."""
    found: set[str] = set()
    tree = ast.parse(path.read_text())
    skipped = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for child in node.body
        for inner in ast.walk(child)
    }
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            module = node.module or ""
            submodules = {
                f"{module}.{alias.name}"
                for alias in node.names
                if (ROOT / module.replace(".", "/") / f"{alias.name}.py").is_file()
                or (ROOT / module.replace(".", "/") / alias.name / "__init__.py").is_file()
            }
            found |= submodules or {module}
    return found


FILES = sorted(
    path for package in ("lewm", "pipeline", "reports") for path in (ROOT / package).rglob("*.py")
)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_room_imports_only_what_the_design_allows(path: Path) -> None:
    module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    may, must_not = allowed(module)
    for name in imports(path):
        top = name.split(".")[0]
        assert top not in must_not, f"{module} must not import {name}"
        if top in OURS:
            fits = any(name == prefix or name.startswith(f"{prefix}.") for prefix in may)
            assert fits, f"{module} may not import {name}"


def test_no_room_without_a_name() -> None:
    vague = {"utils.py", "common.py", "helpers.py", "misc.py"}
    assert not [path for path in FILES if path.name in vague]
