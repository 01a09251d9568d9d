"""Tables of an invented sweep: 5 λ x 3 seeds, λ = 0 collapsed, one trial failed, one diverged.

The numbers follow the prototype of worlds-and-data.md §5; nothing here was measured.
"""

import json
from typing import Any

import numpy as np
import polars as pl

from pipeline.tables import SCHEMAS, make_frame, sort_rows

LAMS = (0.0, 0.03, 0.1, 0.3, 1.0)
SEEDS = (0, 1, 2)
RATE = {0.0: 0.04, 0.03: 0.55, 0.1: 0.88, 0.3: 0.83, 1.0: 0.45}
FLOOR = {"random": 0.05, "zero": 0.02, "oracle": 0.97}
VAL_LOSS = {0.0: 0.0002, 0.03: 0.02, 0.1: 0.034, 0.3: 0.11, 1.0: 0.35}
PROBE_R = {0.0: 0.73, 0.03: 0.85, 0.1: 0.96, 0.3: 0.95, 1.0: 0.8}
Row = dict[str, Any]

PROTOCOL = {
    "episodes": "held_out",
    "pre_solved": "dropped",
    "sampling": "one_per_episode",
    "options": {"collision": "swept"},
    "hold": 1,
    "goal_offset": 25,
    "budget": 50,
}
PROTOCOLS = {
    "paper": {
        **PROTOCOL,
        "episodes": "train",
        "pre_solved": "kept",
        "sampling": "rows_old",
        "options": {"collision": "endpoint"},
        "success": {"distance_px": 16.0},
    },
    "strict": {
        **PROTOCOL,
        "success": {"distance_px": 8.0, "cross_room": True, "goal_side": True},
    },
}
PLANNING = {
    "planner": "cem",
    "num_pairs": 30,
    "num_samples": 100,
    "num_elites": 10,
    "num_iterations": 6,
    "horizon": 5,
    "execute": 5,
    "history": 1,
    "eval_seeds": [42],
}
META: Row = {
    "name": "lambda",
    "question": "How do planning success and latent health move with the SIGReg weight λ?",
    "profile": "quick",
    "folder": "lambda-two_room-quick",
    "stages": ["latents", "planning", "probing", "surprise", "examples"],
    "worlds": [
        {
            "method": "lewm",
            "env": "two_room",
            "protocols": PROTOCOLS,
            "variants": [{"eval_point": "", "config": {"planning": PLANNING}}],
        }
    ],
    "command": "python -m pipeline.sweep lambda",
    "begun_at": "2026-11-22T21:00:00+00:00",
    "git_commit": "0123456789abcdef0123456789abcdef01234567",
    "versions": {"python": "3.11.9", "torch": "2.13.0", "ray": "2.60.0", "polars": "2.1.0"},
    "machine": {"cpu": "an invented processor", "num_cpus": 2, "memory_gb": 16},
    "trials": [],
}


def make_tables(
    lams: tuple[float, ...] = LAMS,
    seeds: tuple[int, ...] = SEEDS,
    failed: tuple[tuple[float, int], ...] = ((1.0, 2),),
    diverged: tuple[tuple[float, int], ...] = ((0.03, 2),),
    pending: tuple[tuple[float, int], ...] = (),
    num_pairs: int = 30,
    num_steps: int = 40,
) -> dict[str, pl.DataFrame]:
    """Every per-trial table of the sweep, as `pipeline.tables` would hold them."""
    rows: dict[str, list[Row]] = {name: [] for name in SCHEMAS}
    for lam in lams:
        for seed in seeds:
            trial = _keys(lam, seed)
            rng = np.random.default_rng([seed, round(lam * 1000)])
            status = {(lam, seed) in failed: "failed", (lam, seed) in diverged: "diverged"}.get(
                True, "pending" if (lam, seed) in pending else "done"
            )
            rows["trials"].append(_trial(trial, status, num_steps))
            if status in ("done", "diverged"):
                steps = num_steps if status == "done" else num_steps // 3
                rows["curves"] += _curve(trial, lam, rng, steps, num_steps)
            if status == "done":
                rows["latents"] += _latents(trial, lam, rng)
                rows["planning"] += _episodes(trial, lam, rng, num_pairs)
                rows["probing"] += _probes(trial, lam, rng)
                rows["surprise"] += _surprise(trial, lam, rng)
                rows["cells"] += [
                    {**trial, "stage": stage, "cell_id": f"{stage}0", "status": "done"}
                    for stage in META["stages"]
                ]
    rows["planning"] += _floors(num_pairs)
    return {name: sort_rows(make_frame(found, SCHEMAS[name])) for name, found in rows.items()}


def relabelled(frame: pl.DataFrame, seed: int, fewer: float, **fields: Any) -> pl.DataFrame:
    """A copy of a method's rows under other labels, a share of its successes taken away."""
    frame = frame.filter(pl.col("method") == "lewm")
    changed = [pl.lit(value).alias(name) for name, value in fields.items()]
    if "success" in frame.columns:
        kept = np.random.default_rng(seed).random(frame.height) >= fewer
        changed.append((pl.col("success") & pl.Series(kept)).alias("success"))
    return frame.with_columns(*changed)


def with_methods(fewer: dict[str, float]) -> dict[str, pl.DataFrame]:
    """The synthetic sweep with further methods, whose trials are their own."""
    tables = make_tables()
    for name in ("trials", "planning", "cells", "curves", "latents"):
        parts = [tables[name]]
        for seed, (method, share) in enumerate(fewer.items()):
            part = relabelled(tables[name], seed, share, method=method)
            parts.append(part.with_columns(trial_id=pl.col("trial_id") + f"-{method}"))
        tables[name] = pl.concat(parts)
    return tables


def _at(table: dict[float, float], lam: float) -> float:
    """The table's value, between its λ > 0 interpolated in log λ."""
    if lam in table:
        return table[lam]
    known = [x for x in table if x > 0]
    return float(np.interp(np.log(lam), np.log(known), [table[x] for x in known]))


def _keys(lam: float, seed: int) -> Row:
    keys = {"method": "lewm", "env": "two_room", "profile": "quick", "lam": lam, "seed": seed}
    return {**keys, "trial_id": f"{round(lam * 1e4):06x}{seed:06x}", "point": f"loss.lam={lam}"}


def _trial(keys: Row, status: str, num_steps: int) -> Row:
    row = {
        **keys,
        "status": status,
        "num_params": 812_354,
        "num_steps": num_steps,
        "batch_size": 32,
        "num_threads": 1,
        "precision": "fp32",
        "policy": "expert",
        "config_json": "{}",
        "attempts": 1,
    }
    if status == "pending":
        return row
    if status == "failed":
        return {**row, "error": "RuntimeError: <a made-up> failure & its message"}
    row |= {
        "wall_s": 95.0 + keys["seed"],
        "dataset_hash": "3f9a1c0b77de",
        "checkpoint_hash": f"{keys['trial_id']}cafe",
        "git_commit": META["git_commit"],
        "versions": json.dumps(META["versions"]),
        "host": "laptop",
        "device": "cpu",
        "frames_per_s": 540.0,
        "peak_mem_gb": 1.2,
    }
    return {**row, "diverged_step": 133} if status == "diverged" else row


def _curve(keys: Row, lam: float, rng: np.random.Generator, steps: int, total: int) -> list[Row]:
    rows = []
    for step in range(1, steps + 1):
        fall = np.exp(-step / (0.12 * total))
        pred = _at(VAL_LOSS, lam) * 0.95 + 0.9 * fall * np.exp(rng.normal(0, 0.15))
        sigreg = (12.9 if lam < 0.02 else 1.6 + 11 * fall) * np.exp(rng.normal(0, 0.05))
        row = {**keys, "step": step, "pred_loss": pred, "sigreg_loss": sigreg}
        row |= {
            "loss": pred + lam * sigreg,
            "grad_norm": 1.0 + fall,
            "lr": 1e-3 * (1 - step / total),
        }
        if step % max(total // 4, 1) == 0:
            row["val_pred_loss"] = _at(VAL_LOSS, lam) * np.exp(rng.normal(0, 0.08)) + 0.8 * fall
            row["mean_std"] = 0.01 if lam == 0 else 0.9 * (1 - fall)
        rows.append(row)
    if steps < total:
        rows[-1]["loss"] = rows[-1]["pred_loss"] = float("nan")
    return rows


def _latents(keys: Row, lam: float, rng: np.random.Generator) -> list[Row]:
    gone = lam == 0 or (lam == 0.03 and keys["seed"] == 1)
    rows = []
    for layer, scale in (("encoder", 1.3), ("projected", 1.0)):
        std = (0.011 if gone else 0.9 + 0.04 * np.log10(lam + 1e-9)) * scale
        std *= np.exp(rng.normal(0, 0.03))
        row = {**keys, "layer": layer, "mean_std": std, "min_std": 0.6 * std}
        row |= {"effective_rank": 8.0 + rng.normal(), "isotropy": 0.12 + 0.1 * lam}
        row |= {"epps_pulley": (0.4 if gone else 0.03) * np.exp(rng.normal(0, 0.1))}
        row |= {"straightness": 0.3 + 0.2 * lam + rng.normal(0, 0.02)}
        rows.append({**row, "collapsed": gone if layer == "projected" else None})
    return rows


def _episodes(keys: Row, lam: float, rng: np.random.Generator, num_pairs: int) -> list[Row]:
    rows = []
    for protocol, bonus in (("paper", 0.08), ("strict", 0.0)):
        rate = float(np.clip(_at(RATE, lam) + bonus + rng.normal(0, 0.05), 0, 1))
        wins = rng.random(num_pairs) < rate
        if protocol == "strict" and lam == 0:
            wins[:] = False
        shared = {"planner": "cem", "protocol": protocol, "eval_point": "", "num_samples": 100}
        shared |= {"num_iterations": 6, "num_elites": 10, "horizon": 5, "history": 1}
        for pair, won in enumerate(wins.tolist()):
            rows.append({**keys, **shared, **_episode(pair, won, rng)})
    return rows


def _episode(pair: int, won: bool, rng: np.random.Generator) -> Row:
    return {
        "eval_seed": 42,
        "manifest_hash": "feedbeefcafe",
        "pair_id": pair,
        "episode_id": pair,
        "start_row": 3 * pair,
        "initial_success": False,
        "success": won,
        "steps_to_success": int(rng.integers(10, 50)) if won else None,
        "final_distance": float(rng.uniform(1, 7) if won else rng.uniform(20, 90)),
        "plan_s": 0.3,
    }


def _floors(num_pairs: int) -> list[Row]:
    rng = np.random.default_rng(7)
    rows = []
    for protocol in ("paper", "strict"):
        for planner, rate in FLOOR.items():
            wins = rng.random(num_pairs) < rate + (0.2 if protocol == "paper" else 0) * (rate < 0.5)
            for pair, won in enumerate(wins.tolist()):
                floor = {"env": "two_room", "profile": "quick", "planner": planner}
                floor |= {"protocol": protocol, "eval_point": ""}
                rows.append({**floor, **_episode(pair, won, rng)})
    return rows


def _probes(keys: Row, lam: float, rng: np.random.Generator) -> list[Row]:
    quality = _at(PROBE_R, lam)
    rows = []
    for dim in (0, 1):
        for layer in ("encoder", "projected"):
            for probe, gain in (("linear", 0.0), ("mlp", 0.3)):
                r = quality + gain * (1 - quality) + rng.normal(0, 0.01)
                row = {**keys, "target": "agent_position", "dim": dim, "layer": layer}
                row |= {"probe": probe, "r": r, "mse": 1 - r**2, "mse_std": 0.1}
                rows.append({**row, "num_train": 2000, "num_test": 1000})
    return rows


def _surprise(keys: Row, lam: float, rng: np.random.Generator) -> list[Row]:
    level = _at(VAL_LOSS, lam)
    rows = []
    for clip in range(64):
        control = level * np.exp(rng.normal(0, 0.5))
        for event, kind, gain in (("colour", "visual", 1.2), ("teleport", "physical", 9.0)):
            row = {**keys, "episode_id": clip, "start_row": 91 * clip, "event": event, "kind": kind}
            row |= {"event_step": 15, "surprise": control * gain * np.exp(rng.normal(0, 0.4))}
            rows.append({**row, "surprise_control": control})
    return rows
