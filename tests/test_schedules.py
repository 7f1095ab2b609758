"""Temperature and learning rate: hand-made tables, descent, and refusal of what makes no sense."""

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fast_electra_core.schedules import SCHEDULES, learning_rate_at, remaining_at, temperature_at

PROGRESS = st.floats(0.0, 1.0)


@pytest.mark.parametrize(
    ("progress", "expected", "digits"),
    [(0.0, 2.00, 2), (0.05, 1.61, 2), (0.1, 1.37, 2), (0.2, 1.135, 3), (0.5, 1.007, 3), (1.0, 1.00005, 5)],
)
def test_exponential_schedule_matches_the_table_of_the_method(progress: float, expected: float, digits: int) -> None:
    assert round(temperature_at(progress, schedule="exponential", start=2.0, decay=0.1), digits) == expected


@pytest.mark.parametrize(
    ("schedule", "decay", "progress", "expected"),
    [
        # Start 3, end 1: two to go.
        ("exponential", 0.5, 0.5, 1 + 2 / math.e),
        ("exponential_exact", 0.5, 0.5, 1 + 2 / (math.e + 1)),  # (1/e - 1/e²) / (1 - 1/e²) = 1 / (e + 1)
        ("exponential_exact", 0.5, 1.0, 1.0),
        ("linear", 1.0, 0.25, 2.5),
        ("linear", 0.5, 0.25, 2.0),
        ("linear", 0.5, 0.75, 1.0),
        ("polynomial", 1.0, 0.25, 2.5),
        ("polynomial", 0.5, 0.5, 1.5),
        ("polynomial", 0.5, 1.0, 1.0),
        ("cosine", 1.0, 0.5, 2.0),
        ("cosine", 0.5, 0.5, 1.0),
        ("cosine", 0.3, 0.1, 2.5),  # cos 60° = 1/2
        ("step", 0.25, 0.2, 3.0),
        ("step", 0.25, 0.25, 2.0),
        ("step", 0.25, 0.5, 1.5),
        ("constant", 0.1, 0.0, 3.0),
        ("constant", 0.1, 1.0, 3.0),
    ],
)
def test_schedules_match_values_by_hand(schedule: str, decay: float, progress: float, expected: float) -> None:
    assert temperature_at(progress, schedule=schedule, start=3.0, decay=decay) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("schedule", SCHEDULES)
@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    progress=st.tuples(PROGRESS, PROGRESS),
    end=st.floats(0.1, 5.0),
    drop=st.floats(0.0, 5.0),
    decay=st.floats(1e-3, 1e3),
)
def test_every_schedule_descends_from_start_and_never_below_end(
    schedule: str, progress: tuple[float, float], end: float, drop: float, decay: float
) -> None:
    early, late = (
        temperature_at(u, schedule=schedule, start=end + drop, decay=decay, end=end) for u in sorted(progress)
    )
    slack = 1e-12 * (end + drop)
    assert end - slack <= late <= early + slack
    assert early <= end + drop + slack
    assert temperature_at(0.0, schedule=schedule, start=end + drop, decay=decay, end=end) == pytest.approx(end + drop)


@pytest.mark.parametrize("schedule", SCHEDULES)
@settings(max_examples=60, deadline=None, derandomize=True)
@given(progress=PROGRESS, decay=st.floats(1e-3, 1e3), start=st.floats(0.1, 5.0), end=st.floats(0.1, 5.0))
def test_the_temperature_has_as_far_to_go_as_the_share_says(
    schedule: str, progress: float, decay: float, start: float, end: float
) -> None:
    share = remaining_at(progress, schedule=schedule, decay=decay)
    assert 0.0 <= share <= 1.0 == remaining_at(0.0, schedule=schedule, decay=decay)
    temperature = temperature_at(progress, schedule=schedule, start=start, decay=decay, end=end)
    assert temperature - end == pytest.approx(share * (start - end), abs=1e-12)


@pytest.mark.parametrize("schedule", ["exponential_exact", "linear", "polynomial", "cosine"])
def test_these_schedules_end_exactly_at_the_end_temperature(schedule: str) -> None:
    assert temperature_at(1.0, schedule=schedule, start=2.0, decay=0.3, end=0.7) == 0.7


def test_exponential_exact_with_an_endless_time_constant_is_linear() -> None:
    assert temperature_at(0.25, schedule="exponential_exact", start=2.0, decay=1e18) == pytest.approx(1.75)


def test_a_schedule_may_rise_when_it_starts_below_its_end() -> None:
    assert temperature_at(0.5, schedule="linear", start=0.5, decay=1.0, end=1.0) == 0.75


@pytest.mark.parametrize("progress", [-0.001, 1.001, math.nan])
def test_progress_outside_the_unit_interval_is_refused(progress: float) -> None:
    with pytest.raises(ValueError, match=r"progress must be in \[0, 1\], got"):
        temperature_at(progress, schedule="linear", start=2.0)


@pytest.mark.parametrize("name", ["start", "decay", "end"])
@pytest.mark.parametrize("value", [0.0, -1.0, math.inf, math.nan])
def test_temperatures_and_decay_must_be_positive_and_finite(name: str, value: float) -> None:
    arguments: dict[str, Any] = {"start": 2.0, "decay": 0.1, "end": 1.0, name: value}
    with pytest.raises(ValueError, match=f"temperature {name} must be a finite number > 0, got"):
        temperature_at(0.5, schedule="linear", **arguments)


def test_an_unknown_schedule_is_refused_with_the_list_of_known_ones() -> None:
    with pytest.raises(ValueError, match=r"schedule must be one of exponential, .*constant; got 'sudden'"):
        temperature_at(0.5, schedule="sudden", start=2.0)


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (0, 0.25 * 4.0),  # a quarter of the warm-up, nothing decayed
        (1, 0.5 * 4.0 * 15 / 16),
        (3, 4.0 * 13 / 16),  # warm-up done
        (8, 4.0 * 8 / 16),
        (15, 4.0 * 1 / 16),  # the last step still learns
    ],
)
def test_learning_rate_is_warm_up_times_linear_decay(step: int, expected: float) -> None:
    assert learning_rate_at(step, peak=4.0, num_steps=16, warmup_fraction=0.25) == expected


def test_without_warm_up_the_first_step_has_the_peak_rate() -> None:
    assert learning_rate_at(0, peak=3.0, num_steps=10, warmup_fraction=0.0) == 3.0


@settings(max_examples=60, deadline=None, derandomize=True)
@given(num_steps=st.integers(1, 10_000), warmup_fraction=st.floats(0.0, 0.99), data=st.data())
def test_learning_rate_is_positive_and_at_most_the_peak(
    num_steps: int, warmup_fraction: float, data: st.DataObject
) -> None:
    step = data.draw(st.integers(0, num_steps - 1))
    rate = learning_rate_at(step, peak=2.0, num_steps=num_steps, warmup_fraction=warmup_fraction)
    assert 0.0 < rate <= 2.0
