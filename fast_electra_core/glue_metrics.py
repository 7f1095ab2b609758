"""GLUE's metrics, the two averages in use, and the score of predicting the majority class.

Scores are fractions: 0 .. 1, or -1 .. 1 for correlations. Predictions: class ids, or a regression's numbers.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fast_electra_core.errors import DataError
from fast_electra_core.glue import SPECS, TaskSpec

ELECTRA_TASKS = ("cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte")
LEADERBOARD_TASKS = (*ELECTRA_TASKS, "wnli")


@dataclass(frozen=True)
class Average:
    """A mean over tasks, which says over which: averages over different tasks do not compare."""

    value: float
    tasks: tuple[str, ...]
    is_complete: bool
    """Whether every task of the convention is in it."""


def score(spec: TaskSpec, predictions: Sequence[float], labels: Sequence[float]) -> dict[str, float]:
    """The task's metrics by name. f1 is of class 1. What is undefined (a constant, one class) counts 0.

    Raises:
        DataError: no examples, or not one prediction per label.
    """
    if len(predictions) != len(labels) or not len(labels):
        raise DataError(
            f"{spec.name}: one prediction per label needed, got {len(predictions)} for {len(labels)} labels"
        )
    return {name: _METRICS[name](np.asarray(predictions), np.asarray(labels)) for name in spec.metrics}


def electra_average(scores: Mapping[str, Mapping[str, float]]) -> Average:
    """Mean of the main metrics, as ELECTRA reports it: eight tasks, no wnli; scores: task -> metric -> value.

    mnli is its accuracy on the matched split. Raises DataError if none of the eight is there.
    """
    values = {task: scores[task][SPECS[task].main_metric] for task in ELECTRA_TASKS if task in scores}
    return _average(values, ELECTRA_TASKS)


def leaderboard_average(scores: Mapping[str, Mapping[str, float]]) -> Average:
    """Mean over tasks of the mean over a task's scores (F1 and accuracy, Pearson and Spearman), with wnli.

    mnli is the mean of both splits, where both are there. Raises DataError if no task is there.
    """
    values: dict[str, float] = {}
    for task in LEADERBOARD_TASKS:
        if task in scores:
            names = [f"{metric}{ending}" for metric in SPECS[task].metrics for ending in ("", "_mismatched")]
            values[task] = float(np.mean([scores[task][name] for name in names if name in scores[task]]))
    return _average(values, LEADERBOARD_TASKS)


def majority_score(spec: TaskSpec, train_labels: Sequence[float], dev_labels: Sequence[float]) -> dict[str, float]:
    """What predicting train's commonest class (lowest id on a tie), or train's mean, scores on dev."""
    if not len(train_labels):
        raise DataError(f"{spec.name}: no training labels")
    if spec.is_regression:
        guess = float(np.mean(train_labels))
    else:
        counts = Counter(train_labels)
        guess = min(counts, key=lambda label: (-counts[label], label))
    return score(spec, [guess] * len(dev_labels), dev_labels)


def _average(values: Mapping[str, float], convention: tuple[str, ...]) -> Average:
    if not values:
        raise DataError(f"an average needs a score of at least one of {', '.join(convention)}")
    return Average(float(np.mean(list(values.values()))), tuple(values), len(values) == len(convention))


def _accuracy(predictions: np.ndarray, labels: np.ndarray) -> float:
    return float(np.mean(predictions == labels))  # without scikit-learn, which takes two seconds to import


def _f1(predictions: np.ndarray, labels: np.ndarray) -> float:
    from sklearn.metrics import f1_score

    return float(f1_score(labels == 1, predictions == 1, zero_division=0.0))


def _macro_f1(predictions: np.ndarray, labels: np.ndarray) -> float:
    from sklearn.metrics import f1_score

    return float(f1_score(labels, predictions, average="macro", zero_division=0.0))


def _matthews(predictions: np.ndarray, labels: np.ndarray) -> float:
    from sklearn.metrics import matthews_corrcoef

    if np.ptp(predictions) == 0 or np.ptp(labels) == 0:
        return 0.0  # scikit-learn warns where both are constant
    return float(matthews_corrcoef(labels, predictions))


def _pearson(predictions: np.ndarray, labels: np.ndarray) -> float:
    from scipy.stats import pearsonr

    return 0.0 if _is_constant(predictions) or _is_constant(labels) else float(pearsonr(predictions, labels)[0])


def _spearman(predictions: np.ndarray, labels: np.ndarray) -> float:
    from scipy.stats import spearmanr

    return 0.0 if _is_constant(predictions) or _is_constant(labels) else float(spearmanr(predictions, labels)[0])


def _is_constant(values: np.ndarray) -> bool:
    # scipy warns of near-constant input as well, where the correlation is rounding noise.
    deviation = np.linalg.norm(values - values.mean())
    return bool(deviation < 1e-12 * max(1.0, abs(float(values.mean()))))


_METRICS = {
    "accuracy": _accuracy,
    "f1": _f1,
    "macro_f1": _macro_f1,
    "matthews": _matthews,
    "pearson": _pearson,
    "spearman": _spearman,
}
