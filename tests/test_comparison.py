"""Statistics of a comparison, against scipy and by hand."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import ttest_rel

from fast_electra_core.comparison import compare, paired, spread

score = st.integers(-1000, 1000).map(lambda each: each / 1000)  # below 1e-150, scipy's own variance is 0
scores = st.lists(st.tuples(score, score), min_size=2, max_size=12)


@given(scores)
def test_the_paired_test_is_scipys(pairs: list[tuple[float, float]]) -> None:
    ours, theirs = ({seed: pair[side] for seed, pair in enumerate(pairs)} for side in (0, 1))
    found = paired(ours, theirs)
    assert found is not None
    if found.p is None:
        assert len({round(a - b, 3) for a, b in pairs}) == 1
        return
    oracle = ttest_rel(*zip(*pairs, strict=True))
    interval = oracle.confidence_interval(0.95)
    assert found.p == pytest.approx(oracle.pvalue, abs=1e-9)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high), rel=1e-6, abs=1e-12)


def test_only_seeds_that_both_have_are_paired() -> None:
    found = paired({0: 0.5, 1: 0.7, 2: 0.9}, {1: 0.6, 2: 0.7, 3: 0.1})
    assert found is not None
    assert (found.n, found.mean) == (2, pytest.approx(0.15))
    assert paired({0: 1.0}, {1: 1.0}) is None


def test_pairs_without_spread_tell_nothing_of_the_noise() -> None:
    found = paired({0: 0.5, 1: 0.5}, {0: 0.25, 1: 0.25})
    assert found == (2, 0.25, None, None, None)
    rounded = paired({0: 0.7, 1: 0.8}, {0: 0.6, 1: 0.7})  # as floats they differ by 0.1 - 2.8e-17 and 0.1 + 8.3e-17
    assert rounded == (2, pytest.approx(0.1), None, None, None)
    small = paired({0: 0.5, 1: 0.50001}, {0: 0.5, 1: 0.5})  # 5e-6 with a standard error of 5e-6: t is 1, of 1 degree
    assert small is not None and small.p == pytest.approx(0.5)


def test_a_spread_by_hand() -> None:
    assert spread([]) is None
    found = spread([0.1, 0.2, 0.6])
    assert found is not None
    assert found[:3] == (3, pytest.approx(0.3), 0.2)
    assert found.std == pytest.approx(0.07**0.5)  # ((.2)^2 + (.1)^2 + (.3)^2) / 2
    assert found.best == 0.6
    assert spread([0.1]) == (1, 0.1, 0.1, None, 0.1)
    assert spread([1.0, 3.0]) == (2, 2.0, 2.0, pytest.approx(2**0.5), 3.0)  # of two seeds it has one already


def run_of(arm: str, turn: int, *, failure: str = "", **task_scores: float) -> dict[str, Any]:
    return {
        "arm": arm, "reference": "a", "turn": turn, "scores": task_scores, "failure": failure,
        "is_majority": turn == 1, "numbers": {} if failure else numbers_of(arm, turn),
    }  # fmt: skip


def numbers_of(arm: str, turn: int) -> dict[str, float]:
    """a: 0, 10 and 40 seconds; b: 100, 110 and 140. Memory was measured in turn 2 alone."""
    return {"seconds": 10.0 * turn**2 + (100 if arm == "b" else 0), **({"memory": 5.0} if turn == 2 else {})}


def test_a_comparison_by_hand() -> None:
    rows = compare(
        [
            run_of("a", 0, rte=0.5, sst2=0.7),
            run_of("b", 0, rte=0.6, sst2=0.9),
            run_of("a", 1, rte=0.5, sst2=0.9),
            run_of("b", 1, failure="diverged: the loss is nan"),
            run_of("a", 2, rte=0.8),
            run_of("b", 2, rte=0.6, sst2=0.6),
        ]
    )
    a, b = rows
    assert [row["arm"] for row in rows] == ["a", "b"]
    assert (a["num_runs"], a["num_failed"], a["num_majority"]) == (3, 0, 1)
    assert (b["num_runs"], b["num_failed"], b["num_majority"]) == (3, 1, 1)
    assert a["scores"]["rte"].mean == pytest.approx(0.6)
    assert (a["scores"]["average"].n, a["scores"]["average"].mean) == (2, pytest.approx(0.65))  # turn 2 lacks sst2
    assert (b["scores"]["average"].n, b["scores"]["average"].median) == (2, pytest.approx(0.675))
    assert b["margins"]["average"].mean == pytest.approx(0.15)  # turn 0 alone has both
    assert (b["margins"]["rte"].n, b["margins"]["rte"].mean) == (2, pytest.approx(-0.05))
    assert a["margins"] == {"rte": None, "sst2": None, "average": None}
    assert (a["numbers"], b["numbers"]) == ({"seconds": 10.0, "memory": 5.0}, {"seconds": 120.0, "memory": 5.0})


def test_a_single_task_has_no_average_and_an_arm_whose_reference_did_not_run_no_margin() -> None:
    (row,) = compare([run_of("b", 0, rte=0.6)])
    assert list(row["scores"]) == ["rte"]
    assert row["margins"] == {"rte": None}


def test_arms_and_tasks_come_in_the_order_of_the_runs_and_each_arm_has_its_own_reference() -> None:
    of_a = {**run_of("a", 0, sst2=0.5, rte=0.5), "reference": "b"}
    rows = compare([run_of("b", 0, sst2=0.75, rte=0.5), of_a])
    assert [(row["arm"], row["reference"]) for row in rows] == [("b", "a"), ("a", "b")]
    assert list(rows[0]["scores"]) == ["sst2", "rte", "average"]
    assert rows[1]["margins"]["sst2"].mean == -0.25
