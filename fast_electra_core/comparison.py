"""What the runs of a comparison amount to: statistics over pre-training seeds, and paired tests against the reference.

A pair is two arms at one seed: they saw the same text in the same order with the same positions selected, so what they
share cancels out of the difference.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

CONFIDENCE = 0.95
ROUNDING = 1e-12
"""A standard error below this is that of floats, not of scores."""


class Spread(NamedTuple):
    """Of one number over the seeds."""

    n: int
    mean: float
    median: float
    std: float | None
    """Of the sample; None of a single seed."""
    best: float


class Paired(NamedTuple):
    """Arm less reference, over the seeds that both have."""

    n: int
    mean: float
    low: float | None
    """Student's 95 % interval of the mean difference; None of a single pair, and where all pairs differ by the same."""
    high: float | None
    p: float | None
    """Two-sided paired t-test; None likewise."""


def spread(values: Sequence[float]) -> Spread | None:
    """Statistics of the values; None if there are none.

    >>> spread([1.0, 2.0, 6.0])
    Spread(n=3, mean=3.0, median=2.0, std=2.6457513110645907, best=6.0)
    """
    if not values:
        return None
    std = statistics.stdev(values) if len(values) > 1 else None
    return Spread(len(values), statistics.fmean(values), statistics.median(values), std, max(values))


def paired(ours: Mapping[int, float], reference: Mapping[int, float]) -> Paired | None:
    """The difference at each seed, by {seed: value}; None where no seed has both.

    >>> paired({0: 2.0}, {0: 1.5, 1: 3.0})
    Paired(n=1, mean=0.5, low=None, high=None, p=None)
    """
    differences = [ours[seed] - reference[seed] for seed in sorted(ours) if seed in reference]
    if not differences:
        return None
    n, mean = len(differences), statistics.fmean(differences)
    if n == 1:
        return Paired(n, mean, None, None, None)
    error = statistics.stdev(differences) / math.sqrt(n)
    if error <= ROUNDING:  # every pair differs by the same: nothing to judge the noise by
        return Paired(n, mean, None, None, None)
    from scipy.stats import t

    half = float(t.ppf((1 + CONFIDENCE) / 2, n - 1)) * error
    return Paired(n, mean, mean - half, mean + half, 2 * float(t.sf(abs(mean) / error, n - 1)))


Run = Mapping[str, Any]
"""One pre-training and its fine-tunings: `arm`, `reference` (an arm's name), `turn`, `scores` {task: score} (empty if
there are none), `numbers` {name: value}, `failure` (a reason, or empty), `is_majority` (learnt no more than always to
say the majority class)."""


def compare(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """One row per arm, in the order they come.

    Each: arm, reference, num_runs, num_failed, num_majority; scores {task: Spread, and "average" over the tasks of a
    run that has all of them}; margins {the same: Paired, against the reference}; numbers {name: median}.
    """
    arms = list(dict.fromkeys(run["arm"] for run in runs))
    tasks = list(dict.fromkeys(task for run in runs for task in run["scores"]))
    by_seed = {arm: _by_seed([run for run in runs if run["arm"] == arm], tasks) for arm in arms}
    rows = []
    for arm in arms:
        of_arm = [run for run in runs if run["arm"] == arm]
        reference = of_arm[0]["reference"]
        names = dict.fromkeys(name for run in of_arm for name in run["numbers"])
        margins = {
            name: paired(values, by_seed[reference][name]) if reference in by_seed and reference != arm else None
            for name, values in by_seed[arm].items()
        }
        rows.append(
            {
                "arm": arm,
                "reference": reference,
                "num_runs": len(of_arm),
                "num_failed": sum(bool(run["failure"]) for run in of_arm),
                "num_majority": sum(bool(run["is_majority"]) for run in of_arm),
                "scores": {name: spread(list(values.values())) for name, values in by_seed[arm].items()},
                "margins": margins,
                "numbers": {
                    name: statistics.median(run["numbers"][name] for run in of_arm if name in run["numbers"])
                    for name in names
                },
            }
        )
    return rows


def _by_seed(runs: Sequence[Run], tasks: Sequence[str]) -> dict[str, dict[int, float]]:
    """{task or "average": {turn: score}}; a run that lacks a task has no average."""
    found: dict[str, dict[int, float]] = {
        task: {run["turn"]: run["scores"][task] for run in runs if task in run["scores"]} for task in tasks
    }
    if len(tasks) > 1:
        whole = [run for run in runs if all(task in run["scores"] for task in tasks)]
        found["average"] = {run["turn"]: statistics.fmean(run["scores"][task] for task in tasks) for run in whole}
    return found
