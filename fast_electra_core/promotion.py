"""Whether one encoder is better than another, by a paired test over the seeds of their fine-tunings.

docs/decisions/0008 has the reasons, and what the rule lets through at the noise of real tasks.
"""

import math
import statistics
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from fast_electra_core.comparison import ROUNDING
from fast_electra_core.errors import ConfigError, check_choice

PROMOTIONS = ("never", "if_better", "always")
GATES = ("finite", "majority", "replay", "signature", "lineage", "licence")
"""What a version must pass to be a challenger; steps.gates says how each is looked at."""
UNSTATED = "unstated"
"""The licence of a text whose licence is not known, and need not be."""
LEVEL = 0.05
"""Of the one-sided test."""
MARGIN = 0.005
"""Least mean difference, in units of the scores (0.005: half a GLUE point)."""
Scores = Mapping[str, Mapping[int, float]]
"""{task: {seed: score}}, each score the task's main metric, higher is better."""


class Verdict(NamedTuple):
    """What the test says of ours against theirs."""

    is_better: bool
    reason: str
    """In words, with the numbers below; where there is no test, why not."""
    n: int = 0
    """Seeds, each of which gives one difference: the mean over the tasks."""
    mean: float | None = None
    """Of the differences, ours less theirs."""
    low: float | None = None
    """Student's 90 % interval of the mean: it excludes 0 exactly where the one-sided test at 5 % rejects."""
    high: float | None = None
    p: float | None = None
    """One-sided paired t-test of a mean difference above 0."""


def check_waivers(waived: Iterable[str]) -> None:
    """Each is the name of a gate, or `majority:TASK`.

    Raises:
        ConfigError: one is not.
    """
    for each in waived:
        gate, _, task = each.partition(":")
        check_choice("waive_gates", gate, GATES)
        if ":" in each and (gate != "majority" or not task):
            raise ConfigError(f"waive_gates takes a task for majority alone, as in majority:rte, got {each!r}")


def judge(ours: Scores, theirs: Scores, *, margin: float = MARGIN) -> Verdict:
    """Better if, over the seeds, the mean difference is at least the margin and a one-sided paired t-test rejects
    equality at LEVEL.

    Both must have the same tasks with the same seeds, at least two. A pair is one task at one seed: the same data in
    the same order, the same head at the start. The differences of a seed are averaged over its tasks, so each seed
    gives one number, and the test stays exact however much the tasks differ in noise or share it.

    >>> judge({"rte": {0: 0.62, 1: 0.61}}, {"rte": {0: 0.60, 1: 0.58}}).reason
    'mean difference +0.0250 (90 % interval -0.0066 to +0.0566), p = 0.063, n = 2 seeds over rte'
    """
    problem = _why_no_pairs(ours, theirs)
    if problem:
        return Verdict(False, f"not comparable: {problem}")
    seeds = sorted(next(iter(ours.values())))
    n = len(seeds)
    differences = [statistics.fmean(ours[task][seed] - theirs[task][seed] for task in ours) for seed in seeds]
    mean = statistics.fmean(differences)
    over = f"n = {n} seed{'s' if n > 1 else ''} over {', '.join(ours)}"
    if not math.isfinite(mean):
        return Verdict(False, f"no test: a score is not a number; {over}", n)
    if n == 1:
        return Verdict(
            False, f"no test: mean difference {mean:+.4f}, but one seed says nothing of the noise; {over}", 1, mean
        )
    error = statistics.stdev(differences) / math.sqrt(n)
    if error <= ROUNDING:
        same = f"mean difference {mean:+.4f}, the same at every seed: nothing to judge the noise by"
        return Verdict(False, f"no test: {same}; {over}", n, mean)
    return _tested(mean, error, n, margin=margin, over=over)


def _tested(mean: float, error: float, n: int, *, margin: float, over: str) -> Verdict:
    from scipy.stats import t

    half = float(t.ppf(1 - LEVEL, n - 1)) * error
    p = float(t.sf(mean / error, n - 1))
    reason = (
        f"mean difference {mean:+.4f} (90 % interval {mean - half:+.4f} to {mean + half:+.4f}), p = {p:.2g}, {over}"
    )
    return Verdict(p < LEVEL and mean >= margin, reason, n, mean, mean - half, mean + half, p)


def _why_no_pairs(ours: Scores, theirs: Scores) -> str:
    if not ours or not theirs:
        return "no scores"
    if set(ours) != set(theirs):
        return f"tasks {', '.join(sorted(ours))} against {', '.join(sorted(theirs))}"
    all_seeds = {tuple(sorted(scores)) for side in (ours, theirs) for scores in side.values()}
    if len(all_seeds) > 1:
        uneven = [
            f"{task} ({_seeds(ours[task])} against {_seeds(theirs[task])})"
            for task in sorted(ours)
            if set(ours[task]) != set(theirs[task]) or set(ours[task]) != set().union(*ours.values())
        ]
        return f"not the same seeds for {', '.join(uneven)}"
    return ""


def _seeds(scores: Mapping[int, float]) -> str:
    return f"seeds {', '.join(map(str, sorted(scores)))}" if scores else "none"
