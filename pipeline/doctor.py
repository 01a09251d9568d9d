"""Can these machines run a sweep? One line per check, with its mend; it writes nothing but notes that it takes away again.

python -m pipeline.doctor                                    this machine alone, without starting Ray
python -m pipeline.doctor --storage s3://bucket/runs         ... with that storage
python -m pipeline.doctor --address auto --storage s3://bucket/runs --profile paper --env reacher
                                                             from the driver's machine and from every node
"""

import argparse
import os
import sys
import uuid
from collections.abc import Sequence
from dataclasses import replace

from pipeline import cluster
from pipeline.checks import SHARE, Finding, Request, examine, examine_node, last_line, versions
from pipeline.redact import redact
from pipeline.shipped import choice, env_names, load_profile
from pipeline.storage import Storage

SOUND, SOMETHING_FAILED, BAD_INPUT = 0, 1, 2
NODE_S = 90.0
"""A node that does not answer within this has failed."""
ORDER = (
    "versions", "storage", "clock", "mlflow", "gpu", "drawing", "cache", "disk", "shared memory",
    "open files", "node",
)  # fmt: skip


def examine_nodes(request: Request) -> list[Finding]:
    """The same checks on every node of the connected cluster; a node that hangs is a finding."""
    import ray

    on_node = replace(request, on_node=True)
    gpus = {_name(node): node["Resources"].get("GPU", 0.0) for node in ray.nodes() if node["Alive"]}
    found: list[Finding] = []
    answers = cluster.on_every_node(lambda: examine_node(on_node), NODE_S)
    for place, answer in answers.items():
        if isinstance(answer, Exception):
            mend = "`ray status`; the logs are in /tmp/ray/session_latest/logs of the node"
            found.append(Finding("node", "FAIL", redact(last_line(answer)), mend, place))
            continue
        found += [replace(finding, place=place) for finding in answer]
    if request.wants_gpu and not any(gpus.values()):
        text = f"none of {len(gpus)} nodes has one"
        mend = "add GPU nodes; where they start with the work, run this again while a sweep runs"
        found.append(Finding("gpu", "warn", text, mend, "cluster"))
    return found


def _name(node: dict[str, object]) -> str:
    return f"{node['NodeManagerAddress']}:{node['NodeManagerPort']}"


def _notes_read_back(request: Request, nodes: int) -> Finding:
    """Whether the driver finds what the nodes wrote."""
    notes = len(Storage(request.storage).list(request.token)) - 1
    if notes >= nodes:
        return Finding("storage", "ok", f"notes of {nodes} nodes read back")
    return Finding("storage", "FAIL", f"only {notes} of {nodes} nodes' notes arrived", SHARE)


def _take_notes_away(request: Request) -> None:
    storage = Storage(request.storage)
    for name in storage.list(request.token):
        storage.remove(f"{request.token}/{name}")
    if storage.is_local:
        storage.path(request.token).rmdir()


def report(findings: Sequence[Finding]) -> list[str]:
    """One line per check and answer; places that answer alike share one."""
    groups: dict[tuple[str, str, str, str], list[str]] = {}
    for found in findings:
        groups.setdefault((found.check, found.state, found.text, found.mend), []).append(
            found.place
        )
    out = []
    for check, state, text, mend in sorted(groups, key=lambda key: ORDER.index(key[0])):
        places = groups[check, state, text, mend]
        where = places[0] if len(places) == 1 else f"{len(places)} places"
        if len(places) > 1 and state != "ok":
            where = ", ".join(places)
        out.append(f"{state:4s}  {check:13s}  {where}: {text}" + (f" -> {mend}" if mend else ""))
    return out


def diagnose(storage: Storage, address: str | None, profile: str, env: str) -> list[Finding]:
    """Everything, from this machine and, with an address, from every node of its cluster.

    Raises:
        ValueError: no Ray answers at the address, or an unknown profile or environment.
    """
    request = Request(
        storage=storage.uri,
        token=f".doctor-{uuid.uuid4().hex[:8]}",
        env=choice(env, env_names(), "--env"),
        wants_gpu=load_profile(profile).get("estimate", {}).get("unit") == "gpu",
        mlflow=os.environ.get("MLFLOW_TRACKING_URI"),
        versions=versions(),
    )
    if address is not None:
        cluster.connect(address)
    found = examine(request if address is None else replace(request, wants_gpu=False))
    usable = any(f.check == "storage" and f.state == "ok" for f in found)
    try:
        if address is not None:
            found += examine_nodes(request)
            reached = [f for f in found if f.check == "storage" and f.state == "ok"]
            found += [_notes_read_back(request, len(reached) - 1)] if usable else []
        return found
    finally:
        if usable:
            _take_notes_away(request)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.doctor",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=__doc__,
        epilog="Exit codes: 0 nothing failed, 1 something did, 2 no Ray answers at the address, or bad input.",
    )
    add = parser.add_argument
    add("--address", help="an existing Ray cluster: auto or host:port")
    add("--storage", default="runs", help="folder or s3://bucket/prefix (default: runs)")
    add("--profile", default="quick", help="quick, small, paper: does it need a GPU?")
    add("--env", default="two_room", help="does it draw on every machine?")
    args = parser.parse_args(argv)
    try:
        found = diagnose(Storage(args.storage), args.address, args.profile, args.env)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_INPUT
    print("\n".join(report(found)))
    counts = {state: sum(f.state == state for f in found) for state in ("ok", "warn", "FAIL")}
    print(", ".join(f"{num} {state}" for state, num in counts.items()))
    return SOMETHING_FAILED if counts["FAIL"] else SOUND


if __name__ == "__main__":
    sys.exit(main())
