"""The page of a comparison, read off the charts and cells that it is made of; runs by hand."""

import math
import re
from typing import Any

import pytest

from fast_electra_core.comparison import compare
from steps import comparison_page
from steps.charts import Chart, lines
from steps.compare import _as_plain, _nothing
from steps.config import resolve_compare

SHARED = resolve_compare({"preset": "tiny", "comparison": "stability"}).to_dict()


def run_of(base: str, point: str = "", *, turn: int = 0, reference: str = "electra", **changes: Any) -> dict[str, Any]:
    name = f"{base} {point}".strip()
    numbers = {"heldout_auc": 0.75, "total_flops": 1.2937e18, "seconds": 20.0, "peak_memory_megabytes": 512.0}
    run = {"arm": name, "base": base, "point": point, "turn": turn, "reference": f"{reference} {point}".strip()}
    return {**run, **_nothing(""), "scores": {"rte": 0.625}, "numbers": numbers, **changes}


def found_of(*runs: dict[str, Any], **changes: Any) -> dict[str, Any]:
    turns = len({run["turn"] for run in runs})
    shared = {**SHARED, "pretrain_seeds": turns, **changes}
    return {"comparison": shared, "runs": list(runs), "arms": _as_plain(compare(runs))}


def along(*runs: dict[str, Any]) -> Chart:
    chart = comparison_page._along_grid(found_of(*runs), "score")
    assert chart is not None
    return chart


def test_the_chart_along_a_grid_has_its_values_as_ticks_in_plain_figures() -> None:
    (axes,) = along(*(run_of("electra", f"learning_rate={rate}") for rate in ("0.016", "0.002"))).figure().axes
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0.002", "0.016"]
    assert list(axes.get_lines()[0].get_xdata()) == [0.002, 0.016]  # whatever their order on the command line
    svg = str(along(run_of("electra", "learning_rate=0.002"), run_of("electra", "learning_rate=0.016")).svg)
    assert "mathdefault" not in svg


def test_a_grid_that_holds_0_is_drawn_with_it() -> None:
    (axes,) = along(*(run_of("electra", f"dropout={value}") for value in ("0", "0.1"))).figure().axes
    low, high = axes.get_xlim()
    assert axes.get_xscale() == "linear"
    assert low < 0 < 0.1 < high


def test_a_point_of_the_grid_that_diverged_is_a_gap_in_its_line() -> None:
    runs = [run_of("electra", f"learning_rate={rate}") for rate in (1, 2, 4)]
    runs[1] |= _nothing("diverged: the loss is nan")
    (axes,) = along(*runs, run_of("mlm", "learning_rate=1", **_nothing("diverged"))).figure().axes
    (line,) = axes.get_lines()  # of mlm nothing is known
    assert list(line.get_xdata()) == [1, 2, 4]
    assert [math.isnan(score) for score in line.get_ydata()] == [False, True, False]


def test_a_curve_over_training_spans_all_of_it_also_where_it_is_one_point() -> None:
    chart = lines({"electra": [(1.0, 0.7)]}, "AUC", x="progress", y="AUC")
    assert chart is not None
    assert chart.figure().axes[0].get_xlim() == (0, 1)


def test_an_arm_whose_name_begins_with_an_underscore_is_in_the_legend() -> None:
    figure = along(run_of("electra", "dropout=0.1"), run_of("_late", "dropout=0.1")).figure()
    figure.draw_without_rendering()
    assert [text.get_text().strip() for text in figure.legends[0].get_texts()] == ["electra", "_late"]


@pytest.mark.parametrize(
    "turns, said",
    [
        (1, "With 1 pre-training there is neither interval nor p, and the margin says nothing of the noise."),
        (2, "With 2 pre-trainings an interval is wide: one that holds 0 says nothing either way."),
    ],
)
def test_the_page_says_how_little_few_pre_trainings_show(turns: int, said: str) -> None:
    found = found_of(*(run_of(arm, turn=turn) for turn in range(turns) for arm in ("electra", "mlm")))
    assert said in comparison_page.page(found)
    assert said in comparison_page.as_markdown(found)


@pytest.mark.parametrize(
    "changes, tokens",
    [
        ({}, "2,560"),  # tiny: 10 steps of 8 sequences of 32
        ({"arm_grid": "batch_size=8,4,16"}, "1,280 to 5,120"),
        ({"arms": "electra; fast_electra; long: num_steps=30"}, "2,560 to 7,680"),
        ({"arms": "electra; fast_electra; large: batch_size=16", "equal": "flops"}, "2,560"),
    ],
)
def test_the_page_says_how_many_tokens_an_arm_sees_where_arms_differ(changes: dict[str, str], tokens: str) -> None:
    facts = comparison_page._question(found_of(run_of("electra"), run_of("mlm"), **changes)).facts
    label = "tokens of the reference" if "equal" in changes else "tokens per pre-training"
    assert dict(facts)[label] == tokens


def test_flops_are_as_short_as_on_the_other_pages() -> None:
    cells = re.findall(r"<td>(.*?)</td>", comparison_page.page(found_of(run_of("electra"), run_of("mlm"))))
    assert cells[cells.index("1.294e+18") + 1] == "1.00"


def test_the_table_in_the_terminal_says_why_a_run_is_not_in_it() -> None:
    runs = [run_of("electra"), run_of("mlm", notes=["left out: rte seed 1 (no memory)"]), run_of("wild")]
    runs[2] |= _nothing("diverged: the loss is nan")
    lines = comparison_page.as_markdown(found_of(*runs)).splitlines()
    assert lines[6:8] == ["- mlm seed 0: left out: rte seed 1 (no memory)", "- wild seed 0: diverged: the loss is nan"]
