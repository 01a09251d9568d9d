"""Verdicts: every question against the largest finished sweep that can answer it."""

from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from pipeline.claims import found as measured
from pipeline.claims import rules
from pipeline.claims.evidence import Evidence, Missing
from pipeline.claims.found import Found
from pipeline.claims.read import PUBLISHED_ENV, Question
from pipeline.claims.rules import NOT_RUN, NOT_TESTED, VERDICTS
from pipeline.stats.intervals import Interval
from pipeline.tables import PER_SWEEP_KEYS, SCHEMAS, make_frame

PROFILES = ("paper", "small", "hour", "quick", "short", "tiny")
"""Larger first; one that is not named comes last."""

DEFAULT_PROFILE = "quick"
"""What a command without `--profile` means."""

Row = dict[str, Any]


def judge_all(questions: Sequence[Question], evidence: Sequence[Evidence]) -> pl.DataFrame:
    """The `claims` table: a row per question, in their order.

    Args:
        evidence: finished sweeps; those of other names are ignored.
    """
    rows = [{**_judge(q, evidence), "order": i} for i, q in enumerate(questions)]
    return make_frame(rows, SCHEMAS["claims"])


def _judge(question: Question, evidence: Sequence[Evidence]) -> Row:
    """The answer of the largest profile that has one; of equals, of the sweep made for the question."""
    own = [one for one in evidence if one.name in question.sweeps]
    own.sort(key=lambda e: (_rank(e.profile), question.sweeps.index(e.name), e.folder))
    answers = [_answer(question, one) for one in own]
    for answer in answers:
        if answer["ours"] is not None:
            return answer
    ran = [answer for answer in answers if answer["verdict"] != NOT_RUN]
    if answers:
        return (ran or answers)[0]
    what = "no sweep of this project tests it"
    if question.sweeps:
        what = f"sweep {question.sweeps[0]} has no tables in this storage"
    return _row(question, None, NOT_RUN, what)


def _rank(profile: str) -> int:
    return PROFILES.index(profile) if profile in PROFILES else len(PROFILES)


def _answer(question: Question, evidence: Evidence) -> Row:
    """What one sweep says of a question."""
    envs = [env for env in evidence.envs if question.env in (None, env)]
    if question.metric == "plan_s" and not envs:
        envs = [PUBLISHED_ENV]
    if not envs:
        if not evidence.envs:
            return _row(question, evidence, NOT_RUN, "it has no trials")
        ran = ", ".join(evidence.envs)
        why = f"it ran {ran}; the claim is about {question.env}"
        return _row(question, evidence, NOT_TESTED, why)
    reasons = []
    for env in envs:
        try:
            verdict, found, why = JUDGES[question.kind](question, evidence, env)
        except Missing as error:
            reasons.append(str(error))
            continue
        if not rules.permitted(question.kind, evidence.profile, question.profiles):
            return _row(question, evidence, NOT_TESTED, _too_small(evidence), found)
        return _row(question, evidence, verdict, why, found)
    if not rules.permitted(question.kind, evidence.profile, question.profiles):
        return _row(question, evidence, NOT_TESTED, f"{_too_small(evidence)}; {reasons[0]}")
    if question.least is not None and evidence.profile != "paper":
        return _row(question, evidence, NOT_TESTED, f"{reasons[0]}; they are in profile paper")
    return _row(question, evidence, NOT_RUN, reasons[0])


def _too_small(evidence: Evidence) -> str:
    return f"profile {evidence.profile} says nothing about published numbers"


Judged = tuple[str, Found, str]


def _absolute(question: Question, evidence: Evidence, env: str) -> Judged:
    assert question.published is not None
    found = measured.number(evidence, question, env)
    gap = measured.less_value(evidence, question, env, question.published)
    verdict = rules.within(gap, -question.margin, question.margin)
    shown = "not known" if gap is None else f"{gap.low:+.3g} to {gap.high:+.3g}"
    return verdict, found, f"ours less published: {shown}; margin {question.margin:g}"


def _order(question: Question, evidence: Evidence, env: str) -> Judged:
    if question.low is not None and question.low.search:
        return _searches(question, evidence)
    if question.low is None:
        level = question.level or 0.0
        found = measured.number(evidence, question, env)
        return (
            rules.above(found.interval, level),
            found,
            f"{question.high.words()}: above {level:g}?",
        )
    sides = f"{question.high.words()} less {question.low.words()}"
    if question.metric == "plan_s":
        found = measured.time_ratio(evidence, question, question.low)
        why = f"{question.high.words()} over {question.low.words()}: above 1? {found.note}"
        return rules.above(found.interval, 1.0), found, why
    found = measured.difference(evidence, question, question.low, env)
    why = f"{sides}: above 0? {found.note}".rstrip()
    if evidence.profile != "paper" and _between_methods(question.high.method, question.low.method):
        why += "; LeWM's λ was chosen at profile quick, the other's weights are the published ones"
    return rules.above(found.interval), found, why


def _between_methods(high: str | None, low: str | None) -> bool:
    """Whether LeWM stands against another trained method."""
    return "lewm" in (high, low) and bool({high, low} & {"pldm", "dino_wm"})


def _searches(question: Question, evidence: Evidence) -> Judged:
    """Fewer trials: more of the replayed searches arrive within the budget, Wilson's intervals apart."""
    assert question.low is not None
    high, low = measured.search_shares(evidence, question, question.low)
    medians = [row["value"] for row in (high, low)]
    ratio = medians[0] / medians[1] if None not in medians and medians[1] else None
    told = [
        f"{row['point']}: median {_told(row['value'])} trials, {row['text']}" for row in (high, low)
    ]
    gap = Interval(low["ci_low"] - high["ci_high"], low["ci_high"] - high["ci_low"])
    place: Row = {k: high[k] for k in ("env", "metric", "point") if k in high}
    found = Found(ratio, None, "shares that arrive: 95 % Wilson, apart", high["n"], place)
    return rules.above(gap), found, "; ".join(told)


def _told(value: float | None) -> str:
    return "more than the budget of" if value is None else f"{value:g}"


def _plateau(question: Question, evidence: Evidence, env: str) -> Judged:
    if question.factor is not None:
        return _wide(question, evidence, env)
    if question.low is not None:  # times
        found = measured.time_ratio(evidence, question, question.low)
        low, high = rules.near(1.0, question.margin)
        return (
            rules.within(found.interval, low, high),
            found,
            f"a ratio of {low:.2g} to {high:.2g}?",
        )
    if question.level is not None:
        found = measured.number(evidence, question, env)
        level, margin = question.level, question.margin
        verdict = rules.within(found.interval, level - margin, level + margin)
        return verdict, found, f"within {margin:g} of {level:g}?"
    rows = measured.flat_rows(evidence, question, env)
    intervals = [
        None if row["ci_low"] is None else Interval(row["ci_low"], row["ci_high"]) for row in rows
    ]
    worst = min(rows, key=lambda row: row["diff"])
    at = {k: v for k, v in worst.items() if k in PER_SWEEP_KEYS}
    place = rows.index(worst)
    found = Found(worst["diff"], intervals[place], worst["ci_method"], worst["n"], at)
    why = f"{worst['point']} less {worst['other']}, the widest of {len(rows)} differences; margin "
    return rules.flat(intervals, question.margin), found, f"{why}{question.margin:g}"


def _wide(question: Question, evidence: Evidence, env: str) -> Judged:
    """The plateau in λ, from the nearest and the farthest of its uncertain ends."""
    assert question.factor is not None
    low, high = measured.plateau_ends(evidence, question, env)
    interval = None
    if low["ci_high"] and low["ci_low"] and high["ci_low"] is not None:
        interval = Interval(high["ci_low"] / low["ci_high"], high["ci_high"] / low["ci_low"])
    at = {k: v for k, v in low.items() if k in PER_SWEEP_KEYS}
    method = "95 % of the ends"
    found = Found(high["value"] / low["value"], interval, method, low["n"], at)
    verdict = rules.UNDECIDED
    if interval is not None and interval.low >= question.factor:
        verdict = rules.REPRODUCED
    elif interval is not None and interval.high < question.factor:
        verdict = rules.NOT_REPRODUCED
    return verdict, found, f"at least a factor of {question.factor:g}? {low['text']}"


def _ratio(question: Question, evidence: Evidence, env: str) -> Judged:
    assert question.low is not None and question.published is not None
    found = measured.time_ratio(evidence, question, question.low)
    low, high = rules.near(question.published, question.margin)
    return rules.within(found.interval, low, high), found, f"{low:.3g} to {high:.3g}? {found.note}"


JUDGES = {
    "absolute": _absolute,
    "order": _order,
    "direction": _order,
    "plateau": _plateau,
    "ratio": _ratio,
}


def _row(
    question: Question,
    evidence: Evidence | None,
    verdict: str,
    why: str,
    found: Found | None = None,
) -> Row:
    """A row of the table; what was asked, what was found, what follows."""
    place = {k: v for k, v in (found.place if found else {}).items() if k in PER_SWEEP_KEYS}
    asked = {
        "method": question.high.method,
        "env": question.env,
        "target": question.target,
        "probe": question.probe,
        "event": question.event,
    }
    interval = found.interval if found else None
    sweep = evidence.name if evidence else (question.sweeps or (None,))[0]
    command = None if sweep is None else f"python -m pipeline.sweep {sweep}"
    if command and question.kind in rules.ABSOLUTE:
        command += " --profile paper"
    elif command and evidence and evidence.profile != DEFAULT_PROFILE:
        command += f" --profile {evidence.profile}"
    if _silent(verdict, found):
        why = f"no interval: one seed, or nothing varies; {why}"
    if question.env is None and found and place.get("env") not in (None, PUBLISHED_ENV):
        why += f"; in {place['env']}, published on {PUBLISHED_ENV}"
    return {
        **asked,
        **{k: v for k, v in place.items() if v is not None},
        "protocol": place.get("protocol"),
        "metric": question.metric,
        "profile": evidence.profile if evidence else None,
        "claim": question.id,
        "kind": question.kind,
        "statement": question.statement,
        "setting": _setting(question),
        "source": question.source,
        "version": question.version,
        "reevaluation": question.reevaluation,
        "sweep": sweep,
        "folder": evidence.folder if evidence else None,
        "command": command,
        "published": question.published,
        "published_spread": question.spread,
        "published_n": question.n,
        "unit": _unit(question),
        "margin": question.margin,
        "ours": found.value if found else None,
        "ci_low": interval.low if interval else None,
        "ci_high": interval.high if interval else None,
        "ci_method": found.method if found and interval else None,
        "n": found.n if found else None,
        "num_episodes": found.num_episodes if found else None,
        "same_protocol": _same_protocol(question, evidence, place) if found else None,
        "verdict": verdict,
        "text": why,
    }


def _silent(verdict: str, found: Found | None) -> bool:
    return verdict == rules.UNDECIDED and found is not None and found.interval is None


def _same_protocol(question: Question, evidence: Evidence | None, place: Mapping[str, Any]) -> bool:
    """The published size, environment and protocol; at any other profile model and data differ."""
    assert evidence is not None
    env = question.env or PUBLISHED_ENV
    return evidence.profile == "paper" and place.get("env") in (None, env)


FACTORS = ("search_trials", "surprise_ratio", "tokens")


def _unit(question: Question) -> str | None:
    """Of the row's numbers."""
    alone = question.low is None and question.axis is None
    if question.kind == "ratio" or question.factor is not None or question.metric in FACTORS:
        return "factor"
    if question.metric == "plan_s":
        return "s" if alone else "factor"
    if question.metric == "success":
        return "share" if alone else "points"
    return None


def _setting(question: Question) -> str:
    """What the row is about within its claim."""
    parts = [question.high.words()]
    if question.low is not None:
        parts[0] += f" against {question.low.words()}"
    parts += [part for part in (question.metric, question.probe, question.event) if part]
    return ", ".join(part for part in parts if part)


def summarise(claims: pl.DataFrame) -> pl.DataFrame:
    """The `summary` of the reproduction: its counts, and the sentences of the page's head."""
    counts = {verdict: claims.filter(verdict=verdict).height for verdict in VERDICTS}
    rows: list[Row] = []
    for kind in rules.KINDS:
        for verdict in VERDICTS:
            own = claims.filter(verdict=verdict, kind=kind).height
            rows.append(
                {"quantity": _quantity(verdict, kind), "value": float(own), "n": claims.height}
            )
    for verdict, count in counts.items():
        rows.append({"quantity": _quantity(verdict), "value": float(count), "n": claims.height})
    profiles = sorted(claims["profile"].drop_nulls().unique(), key=_rank)
    told = ", ".join(f"{count} {verdict}" for verdict, count in counts.items())
    rows.append(
        {
            "quantity": "verdict",
            "text": f"Of {claims.height} published numbers and statements: {told}.",
            "n": claims.height,
        }
    )
    rows.append({"quantity": "certainty", "text": _scope(claims, profiles)})
    rows += [
        {"quantity": f"claims_{name}", "text": _listed(claims, verdict)}
        for name, verdict in (("which", rules.REPRODUCED), ("which_not", rules.NOT_REPRODUCED))
    ]
    return make_frame(rows, SCHEMAS["summary"])


def _quantity(verdict: str, kind: str | None = None) -> str:
    name = f"claims_{verdict.replace(' ', '_')}"
    return f"{name}_{kind}" if kind else name


def _scope(claims: pl.DataFrame, profiles: Sequence[str]) -> str:
    if not profiles:
        return "No sweep of the programme has run in this storage yet."
    said = f"Judged at {' and '.join(f'profile {name}' for name in profiles)}."
    if "paper" in profiles:
        return said
    return (
        f"{said} At this scale no published number can be reproduced or refuted: only directions are judged "
        "(the order of methods and settings, collapse at λ = 0, plateaus), in smaller models on smaller data."
    )


def _listed(claims: pl.DataFrame, verdict: str) -> str:
    own = claims.filter(verdict=verdict)["statement"].unique(maintain_order=True).to_list()
    return "; ".join(str(statement) for statement in own)


def with_order(questions: Sequence[Question], names: Sequence[str]) -> list[Question]:
    """The questions by the order of their sweeps in the programme; others last."""
    known = {name: place for place, name in enumerate(names)}
    last = len(known)
    return sorted(questions, key=lambda q: known.get(q.sweeps[0], last) if q.sweeps else last + 1)
