"""Claims about steps/run_charts.py, read off the figures that matplotlib is given."""

import itertools
from typing import Any

import pytest
from toy_costs import cost_of
from toy_scores import statistics, task_row

from steps import run_charts

ROWS = [{"step": step, "loss": 2.0 / step, "temperature": 1 + 1 / step, "replaced_fraction": 0.1} for step in (1, 2, 4)]
HELDOUT = [{"step": 4, "heldout_rtd_loss": 0.5, "heldout_majority_loss": 0.75}]


def drawn(axes: Any) -> dict[str, list[tuple[float, float]]]:
    """The lines of a panel by name."""
    return {line.get_label(): list(zip(*line.get_data(), strict=True)) for line in axes.get_lines()}


def test_loss_temperature_and_replaced_share_are_over_one_axis_of_progress() -> None:
    chart = run_charts.progress([*ROWS, *HELDOUT], 4)
    assert chart is not None and chart.title == "Loss, temperature and replaced share"
    loss, temperature, replaced = chart.figure().axes
    assert drawn(loss) == {
        "training": [(0.25, 2.0), (0.5, 1.0), (1.0, 0.5)],
        "held-out": [(1.0, 0.5)],
        "always the majority class": [(1.0, 0.75)],
    }
    assert drawn(temperature)["temperature"] == [(0.25, 2.0), (0.5, 1.5), (1.0, 1.25)]
    assert drawn(replaced)["replaced share"] == [(0.25, 0.1), (0.5, 0.1), (1.0, 0.1)]
    assert loss.get_shared_x_axes().joined(loss, replaced)
    assert [axes.get_xlabel() for axes in (loss, temperature, replaced)] == ["", "", "progress"]


def test_a_training_without_a_curriculum_shows_its_loss_alone() -> None:
    chart = run_charts.progress([{"step": 1, "loss": 2.0}], 4)
    assert chart is not None and chart.title == "Loss"
    assert len(chart.figure().axes) == 1
    assert run_charts.progress([], 4) is None


def test_a_panel_of_what_was_never_finite_is_neither_drawn_nor_named() -> None:
    chart = run_charts.progress([{"step": 1, "loss": float("nan"), "temperature": 2.0}], 1)
    assert chart is not None and chart.title == "Temperature"
    assert [axes.get_ylabel() for axes in chart.figure().axes] == ["temperature"]


def test_bars_of_many_tasks_with_long_names_have_names_that_do_not_run_into_each_other() -> None:
    rows = [task_row(f"{letter}_question_that_is_asked_of_tickets", "matthews_correlation") for letter in "abcdefgh"]
    chart = run_charts.scores(rows)
    figure = chart.figure()
    figure.draw_without_rendering()
    boxes = [label.get_window_extent() for label in figure.axes[0].get_xticklabels()]
    assert all(left.x1 < right.x0 for left, right in itertools.pairwise(boxes))


def test_bars_stand_beside_the_champion_s_and_the_untrained_encoder_s_with_the_intervals_of_the_means() -> None:
    # Mean 0.6; deviation 0.1, error 0.1 / sqrt 2; Student's 97.5 % with one degree of freedom 12.706.
    rival = {"name": "champion, version 1", "scores": {"sst2": {0: 0.6 - 0.1 / 2**0.5, 1: 0.6 + 0.1 / 2**0.5}}}
    rows = [task_row(), task_row("rte", pretrained=statistics(0.7, None), untrained=None, majority=0.525)]
    (axes,) = run_charts.scores(rows, rival).figure().axes
    bars = {bar.get_label(): [patch.get_height() for patch in bar] for bar in axes.containers}
    assert bars == {
        "pre-trained": [0.75, 0.7],
        "champion, version 1": [pytest.approx(0.6)],
        "untrained": [0.625],
        "majority class": [0.5, 0.525],
    }
    ends = [tuple(line.get_ydata()) for line in axes.get_lines()][:-1]  # the last is the axis at 0
    half = 12.706205 * 0.1 / 2**0.5
    assert ends == [(0.74, 0.76), (pytest.approx(0.6 - half), 1.0), (0.605, 0.645)]


def test_a_champion_without_a_score_on_a_task_has_no_bar_there() -> None:
    rival = {"name": "champion, version 1", "scores": {"sst2": {0: 0.5}, "rte": {}}}
    (axes,) = run_charts.scores([task_row(), task_row("rte", pretrained=None)], rival).figure().axes
    bars = {bar.get_label(): [patch.get_height() for patch in bar] for bar in axes.containers}
    assert bars["champion, version 1"] == [0.5]


def test_the_cost_is_split_into_operations_by_model_and_head_and_time_by_work() -> None:
    chart = run_charts.cost_split(cost_of(), {"tokenizing": 5.0, "fine-tuning": 25.0, "fine-tuning, untrained": 0.0})
    assert chart is not None
    operations, time = chart.figure().axes
    assert operations.get_title(loc="left") == "1.400e+09 floating-point operations of pre-training"
    assert [text.get_text() for text in operations.get_legend().get_texts()] == [
        "main model 71 %", "its head 14 %", "auxiliary 11 %", "the auxiliary's head 4 %",
    ]  # fmt: skip
    assert [patch.get_width() for patch in operations.patches] == pytest.approx(
        [1.0 / 1.4, 0.2 / 1.4, 0.15 / 1.4, 0.05 / 1.4]
    )
    assert time.get_title(loc="left") == "50 s of work, of tasks side by side the sum"
    assert [text.get_text() for text in time.get_legend().get_texts()] == [
        "pre-training 28 %", "its scores 6 %", "its checkpoints 2 %", "its start-up 4 %", "tokenizing 10 %",
        "fine-tuning 50 %",
    ]  # fmt: skip
    assert sum(patch.get_width() for patch in time.patches) == pytest.approx(1.0)


def test_every_kind_of_work_has_a_colour_of_its_own() -> None:
    cost = cost_of(is_drawn_ahead=True, measured={"drawing_seconds": 4.0})
    chart = run_charts.cost_split(cost, {"tokenizing": 5.0, "fine-tuning": 25.0, "fine-tuning, untrained": 20.0})
    assert chart is not None
    colours = [patch.get_facecolor() for patch in chart.figure().axes[1].patches]
    assert len(colours) == len(set(colours)) == 8
