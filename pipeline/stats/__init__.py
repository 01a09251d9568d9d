"""The project's statistics: arrays in, numbers out; each function names its source.

The unit of replication is a training seed. Episodes of one trained model are not independent, so an
interval over pooled episodes is too narrow for a statement about the method. Where a statement cannot be
made (one seed, no spread) the functions answer None, never a number that looks like one.

What each interval covers is measured by `tests/benchmarks/bench_coverage.py`; docs/statistics.md has the
figures.
"""

from pipeline.stats.aggregates import (
    iqm,
    iqr,
    optimality_gap,
    performance_profile,
    probability_of_improvement,
    std,
    stratified_bootstrap,
)
from pipeline.stats.compare import (
    Comparison,
    against_value,
    holm,
    paired_t,
    paired_two_way,
    unpaired,
    unpaired_two_way,
)
from pipeline.stats.intervals import Interval, exact, rate_interval, t_interval, wilson
from pipeline.stats.plateau import (
    Plateau,
    draw_means,
    outer_slopes,
    plateau,
    plateau_ends,
    probability_best,
    regret,
    within_margin,
)
from pipeline.stats.smoothness import bursts_per_1000, falling_share
from pipeline.stats.variance import Components, components, half_width, needed_pairs, needed_seeds

__all__ = [
    "Comparison",
    "Components",
    "Interval",
    "Plateau",
    "against_value",
    "bursts_per_1000",
    "components",
    "draw_means",
    "exact",
    "falling_share",
    "half_width",
    "holm",
    "iqm",
    "iqr",
    "needed_pairs",
    "needed_seeds",
    "optimality_gap",
    "outer_slopes",
    "paired_t",
    "paired_two_way",
    "performance_profile",
    "plateau",
    "plateau_ends",
    "probability_best",
    "probability_of_improvement",
    "rate_interval",
    "regret",
    "std",
    "stratified_bootstrap",
    "t_interval",
    "unpaired",
    "unpaired_two_way",
    "wilson",
    "within_margin",
]
