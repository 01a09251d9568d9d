"""Text to paste: what was done, what cannot be concluded, how to cite."""

from collections.abc import Mapping, Sequence
from typing import Any

from reports import text
from reports.stability import collapse_rule, settings_of
from reports.views import Row, World, setting_name

PAPER = "https://arxiv.org/abs/2603.19312"
SOFTWARE = {
    "title": "lewm-sweep: is this world model stable, at which lambda, and how do we know?",
    "author": "the lewm-sweep authors",
    "version": "0.1.0",
}
PAPER_AUTHORS = (
    "Maes, Lucas",
    "Le Lidec, Quentin",
    "Scieur, Damien",
    "LeCun, Yann",
    "Balestriero, Randall",
)


def citation(meta: Mapping[str, Any]) -> str:
    """BibTeX of this software, at the commit that made the sweep, and of the paper."""
    commit = str(meta.get("git_commit") or "")
    note = f"version {SOFTWARE['version']}" + (f", commit {commit[:12]}" if commit else "")
    return (
        "@software{lewm_sweep,\n"
        f"  title = {{{{{SOFTWARE['title']}}}}},\n"
        f"  author = {{{{{SOFTWARE['author']}}}}},\n"
        f"  note = {{{note}}}\n"
        "}\n\n"
        "@article{maes2026leworldmodel,\n"
        "  title = {{LeWorldModel}},\n"
        f"  author = {{{' and '.join(PAPER_AUTHORS)}}},\n"
        "  year = {2026},\n"
        "  eprint = {2603.19312},\n"
        "  archivePrefix = {arXiv}\n"
        "}\n"
    )


def methods(world: World) -> str:
    """A methods paragraph: design, training, evaluation and statistics as the tables tell them."""
    parts = [_design(world), _training(world)]
    if world.main:
        parts += [_evaluation(world, world.main), _statistics(world, world.main)]
    parts.append(collapse_rule(world))
    return " ".join(part for part in parts if part)


def _design(world: World) -> str:
    trials = world.rows("trials")
    names = [slot.name for slot in world.axis.slots]
    per_point = {
        point: sum(row["point"] == point for row in trials)
        for point in {r["point"] for r in trials}
    }
    points = (
        text.listed(names)
        if len(names) <= 12
        else f"{len(names)} points from {names[0]} to {names[-1]}"
    )
    fates = {
        status: row["value"]
        for status in ("done", "diverged", "stopped", "failed", "pending", "running", "unavailable")
        if (row := world.summary(f"trials_{status}")).get("value")
    }
    lost = {name: n for name, n in fates.items() if name != "done"}
    told = f" Of {text.between([len(trials)], 'trial')}, " if lost else ""
    if lost:
        told += text.listed([f"{n:.0f} {STATUS.get(name, name)}" for name, n in lost.items()]) + "."
    return (
        f"We trained {world.key['method']} in {text.world(world.key['env'])} at {points}, with "
        f"{text.between(list(per_point.values()), 'training seed')} each.{told}"
    )


STATUS = {
    "diverged": "diverged",
    "failed": "failed",
    "stopped": "were stopped early",
    "pending": "have not begun",
    "running": "are still running",
    "unavailable": "could not be read",
}


def _training(world: World) -> str:
    trials = world.rows("trials")
    facts = []
    for column, words in (
        ("num_params", "parameters"),
        ("num_steps", "optimiser steps"),
    ):
        values = sorted({row[column] for row in trials if row[column] is not None})
        if values:
            shown = f"{values[0]:,}" if len(values) == 1 else f"{values[0]:,} to {values[-1]:,}"
            facts.append(f"{shown} {words}")
    for column, words in (("batch_size", "batch size"), ("precision", "precision")):
        values = sorted({row[column] for row in trials if row[column] is not None})
        if values:
            facts.append(f"{words} {', '.join(map(str, values))}")
    data = sorted({row["dataset_hash"] for row in trials if row["dataset_hash"]})
    profile = f"The {world.key['profile']} profile was used"
    told = f" ({'; '.join(facts)})" if facts else ""
    where = f", on the dataset with content hash {', '.join(data)}" if data else ""
    return f"{profile}{told}{where}."


def _evaluation(world: World, main: Row) -> str:
    means, runs = world.spread("success", **main)
    pairs = text.between([row["num_episodes"] or None for row in runs], "start/goal pair")
    evals = text.between([row["num_eval_seeds"] for row in means], "evaluation seed")
    words = f"Each trained model planned {pairs} from {evals} ({setting_name(main)})"
    protocol = (world.meta.get("protocols") or {}).get(main["protocol"])
    if protocol:
        rule = ", ".join(f"{key} {_plain(value)}" for key, value in protocol["success"].items())
        words += (
            f"; success: {rule}, within {protocol['budget']} steps, the goal being {protocol['goal_offset']} "
            "steps ahead in a recorded episode"
        )
    planning = settings_of(world).get("planning") or {}
    if {"num_samples", "num_iterations", "horizon"} <= set(planning):
        words += (
            f"; {planning['num_samples']} samples, {planning['num_iterations']} iterations, horizon "
            f"{planning['horizon']} action blocks"
        )
    return f"{words}. A diverged run counts as no success."


def _plain(value: Any) -> str:
    return "required" if value is True else str(value)


def _statistics(world: World, main: Row) -> str:
    means = world.spread("success", **main)[0]
    methods = {row["ci_method"] for row in means if row["ci_low"] is not None}
    words = ["Success is the mean over training seeds"]
    if methods:
        words[0] += f"; its intervals: {text.listed(sorted(methods))}"
    else:
        words[0] += "; no interval can be given"
    if any(
        row["p_adjusted"] is not None for row in world.rows("comparison", metric="success", **main)
    ):
        words.append(
            "Differences are paired on the same seeds and start/goal pairs, their p-values adjusted "
            "after Holm over the points"
        )
    chance = world.summary("p_best", **main)
    if chance.get("value") is not None:
        words.append(f"Probabilities of being best and the regret come from {chance['ci_method']}")
    plateau = world.summary("plateau_low", **main)
    if plateau.get("value") is not None:
        words.append(f"The plateau is the {str(plateau['ci_method']).split('; ends')[0]}")
    if world.summary("floor_random", protocol=main["protocol"]):
        words.append(
            "Planners without a model (random and recorded actions) planned the same pairs"
        )
    return ". ".join(words) + "."


def limits(world: World) -> list[str]:
    """What cannot be concluded from this sweep, and why: one sentence each."""
    if not world.main:
        return [*_no_results(world), *(_no_stages(world) if world.plans else ())]
    main = world.main
    best, success = (world.summary(q, **main) for q in ("best_point", "best_success"))
    found = []
    if best["n"] < 2:
        found.append("One point was tried: nothing is known about others, and there is no plateau.")
    if success["n"] == 1:
        found.append(
            "One training seed at the best point: its spread over seeds, an interval, and how likely it is the "
            "best cannot be told."
        )
    elif success["ci_low"] is None:
        reason = str(success["ci_method"]).removeprefix("none: ")
        found.append(f"No interval at the best point ({reason}).")
    if not world.summary("floor_random", protocol=main["protocol"]):
        found.append("Random actions were not measured: whether planning beats chance is open.")
    return [*found, *_no_stages(world)]


def _no_results(world: World) -> Sequence[str]:
    trials = world.rows("trials")
    fates = {row["status"] for row in trials}
    if trials and fates <= {"failed"}:
        return [
            "Every trial failed: nothing can be concluded about any point. The errors are below."
        ]
    if trials and fates <= {"diverged"}:
        return [
            "Every trial diverged: at these points, with these settings, training is not stable."
        ]
    if not world.plans:
        return []
    return ["No trial has planning results: which point plans best cannot be told yet."]


def _no_stages(world: World) -> list[str]:
    absent = {
        "latents": "Latents were not measured: whether a latent space has collapsed cannot be told.",
        "probing": "No probes were fitted: what the latent space holds cannot be told.",
        "surprise": "Surprise was not measured: whether the model notices the impossible cannot be told.",
        "curves": "There are no training curves: smoothness of training cannot be told.",
    }
    trained = [row for row in world.rows("trials") if row["status"] in ("done", "stopped")]
    if not trained:
        return []
    return [words for table, words in absent.items() if world.tables[table].is_empty()]
