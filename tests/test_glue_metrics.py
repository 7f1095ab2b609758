"""GLUE's metrics against numbers worked out by hand; warnings are errors."""

import math
from dataclasses import replace

import pytest

from fast_electra_core.errors import DataError
from fast_electra_core.glue import SPECS, TASK_NAMES
from fast_electra_core.glue_metrics import (
    electra_average,
    leaderboard_average,
    majority_score,
    score,
)

pytestmark = pytest.mark.filterwarnings("error")


def test_accuracy_is_the_share_of_right_answers() -> None:
    assert score(SPECS["mnli"], [0, 1, 2, 2], [0, 1, 1, 2]) == {"accuracy": 0.75}


def test_f1_is_of_class_1() -> None:
    # One true positive, two false positives, one false negative: 2 / (2 + 2 + 1) = 0.4; one of five is right.
    assert score(SPECS["mrpc"], [1, 1, 1, 0, 0], [1, 0, 0, 1, 0]) == {"accuracy": 0.4, "f1": pytest.approx(0.4)}


def test_matthews_by_hand() -> None:
    # TP 2, TN 1, FP 1, FN 1: (2*1 - 1*1) / sqrt(3 * 3 * 2 * 2) = 1/6
    assert score(SPECS["cola"], [1, 1, 0, 0, 1], [1, 1, 1, 0, 0]) == {"matthews": pytest.approx(1 / 6)}


def test_correlations_by_hand() -> None:
    # Ranks 1 2 4 3 against 1 2 3 4: 1 - 6 * 2 / (4 * 15) = 0.8
    found = score(SPECS["stsb"], [1.0, 2.0, 8.0, 4.0], [0.0, 1.0, 2.0, 3.0])
    # Deviations (-2.75 -1.75 4.25 .25) and (-1.5 -.5 .5 1.5): 7.5 / sqrt(28.75 * 5)
    assert found == {"pearson": pytest.approx(7.5 / math.sqrt(143.75)), "spearman": pytest.approx(0.8)}


def test_ties_share_their_rank() -> None:
    # Ranks 1.5 1.5 3 against 1 2 3: covariance 1.5, variances 1.5 and 2
    assert score(SPECS["stsb"], [1, 1, 2], [1, 2, 3])["spearman"] == pytest.approx(1.5 / math.sqrt(3))


def test_a_constant_correlates_with_nothing() -> None:
    assert score(SPECS["stsb"], [2.5, 2.5, 2.5], [1.0, 2.0, 3.0]) == {"pearson": 0.0, "spearman": 0.0}
    assert score(SPECS["stsb"], [1.0, 2.0, 3.0], [0.1, 0.1, 0.1]) == {"pearson": 0.0, "spearman": 0.0}
    assert score(SPECS["stsb"], [1e6 + 1e-9, 1e6, 1e6], [1.0, 2.0, 3.0])["pearson"] == 0.0


def test_one_class_scores_zero_where_the_metric_is_undefined() -> None:
    assert score(SPECS["cola"], [1, 1, 1], [1, 0, 1]) == {"matthews": 0.0}
    assert score(SPECS["cola"], [1, 1], [1, 1]) == {"matthews": 0.0}
    assert score(SPECS["qqp"], [0, 0], [0, 0]) == {"accuracy": 1.0, "f1": 0.0}
    assert score(SPECS["qqp"], [1, 1], [1, 1]) == {"accuracy": 1.0, "f1": 1.0}


def test_a_single_example_can_be_scored() -> None:
    assert score(SPECS["stsb"], [1.0], [2.0]) == {"pearson": 0.0, "spearman": 0.0}


@pytest.mark.parametrize(("predictions", "labels"), [([], []), ([1], [1, 0])])
def test_predictions_must_match_labels(predictions: list[int], labels: list[int]) -> None:
    with pytest.raises(DataError, match=f"got {len(predictions)} for {len(labels)} labels"):
        score(SPECS["rte"], predictions, labels)


def test_the_main_metric_is_electras() -> None:
    main = {task: SPECS[task].main_metric for task in TASK_NAMES}
    assert {task: name for task, name in main.items() if name != "accuracy"} == {
        "cola": "matthews",
        "stsb": "spearman",
    }


def test_macro_f1_is_the_mean_over_classes() -> None:
    # Class 0: 1 right, 0 false, 1 missed: 2/3; class 1: 1 right, 1 false: 2/3; class 2: right, 1.
    spec = replace(SPECS["mnli"], metrics=("macro_f1",))
    assert score(spec, [0, 1, 1, 2], [0, 1, 0, 2]) == {"macro_f1": pytest.approx(7 / 9)}


SCORES = {
    "cola": {"matthews": 0.5},
    "mrpc": {"accuracy": 0.8, "f1": 0.9},
    "stsb": {"pearson": 0.6, "spearman": 0.7},
    "mnli": {"accuracy": 0.7, "accuracy_mismatched": 0.1},
    "wnli": {"accuracy": 0.3},
}


def test_electras_average_takes_main_metrics_without_wnli() -> None:
    average = electra_average(SCORES)
    assert average.value == pytest.approx((0.5 + 0.8 + 0.7 + 0.7) / 4)
    assert average.tasks == ("cola", "mrpc", "stsb", "mnli")
    assert not average.is_complete


def test_the_leaderboards_average_takes_means_of_metrics_and_wnli() -> None:
    average = leaderboard_average(SCORES)
    assert average.value == pytest.approx((0.5 + 0.85 + 0.65 + (0.7 + 0.1) / 2 + 0.3) / 5)
    assert average.tasks == ("cola", "mrpc", "stsb", "mnli", "wnli")


def test_the_leaderboards_average_of_bert_large_is_the_leaderboards() -> None:
    """BERT-Large's row of the GLUE leaderboard (Devlin et al. 2019, sec. 4.1, give its score as 80.5)."""
    scores = {
        "cola": {"matthews": 60.5},
        "sst2": {"accuracy": 94.9},
        "mrpc": {"f1": 89.3, "accuracy": 85.4},
        "stsb": {"pearson": 87.6, "spearman": 86.5},
        "qqp": {"f1": 72.1, "accuracy": 89.3},
        "mnli": {"accuracy": 86.7, "accuracy_mismatched": 85.9},
        "qnli": {"accuracy": 92.7},
        "rte": {"accuracy": 70.1},
        "wnli": {"accuracy": 65.1},
    }
    assert round(leaderboard_average(scores).value, 1) == 80.5


def test_an_average_knows_when_it_is_complete() -> None:
    rest = {task: {"accuracy": 1.0, "f1": 1.0} for task in ("sst2", "qqp", "qnli", "rte")}
    assert electra_average(SCORES | rest).is_complete
    assert leaderboard_average(SCORES | rest).is_complete
    without_wnli = {task: scores for task, scores in (SCORES | rest).items() if task != "wnli"}
    assert electra_average(without_wnli).is_complete
    assert not leaderboard_average(without_wnli).is_complete


def test_an_average_of_nothing_is_refused() -> None:
    with pytest.raises(DataError, match="an average needs a score of at least one of cola"):
        electra_average({"wnli": {"accuracy": 1.0}})


def test_the_majority_of_train_is_what_dev_is_scored_with() -> None:
    assert majority_score(SPECS["rte"], [1, 1, 0], [0, 0, 0, 1]) == {"accuracy": 0.25}
    assert majority_score(SPECS["mrpc"], [1, 1, 0], [0, 0, 0, 1]) == {"accuracy": 0.25, "f1": pytest.approx(0.4)}
    assert majority_score(SPECS["cola"], [1, 1, 0], [0, 1]) == {"matthews": 0.0}
    assert majority_score(SPECS["stsb"], [1.0, 4.0], [0.0, 5.0]) == {"pearson": 0.0, "spearman": 0.0}


def test_a_tied_majority_is_the_lower_class() -> None:
    assert majority_score(SPECS["rte"], [1, 0], [0]) == {"accuracy": 1.0}


def test_a_majority_of_nothing_is_refused() -> None:
    with pytest.raises(DataError, match="rte: no training labels"):
        majority_score(SPECS["rte"], [], [1])
