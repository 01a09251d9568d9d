"""Published claims judged by finished sweeps: from their tables to `claims` and its `summary`.

`read` holds what was published (sweeps/published.toml), `evidence` finds what a sweep's tables say of it,
`rules` are the verdicts, `judge` puts them together. Pure: tables in, tables out.
"""

from pipeline.claims.evidence import Evidence
from pipeline.claims.judge import judge_all, summarise, with_order
from pipeline.claims.read import Question, load_claims
from pipeline.claims.rules import RULES, VERDICTS

__all__ = [
    "RULES",
    "VERDICTS",
    "Evidence",
    "Question",
    "judge_all",
    "load_claims",
    "summarise",
    "with_order",
]
