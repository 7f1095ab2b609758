"""What a person reads of the ledger: each figure under its name, and what is not known called unknown."""

import re

import pytest
from toy_costs import cost_of

from fast_electra_core.config import PretrainConfig
from steps import cost_words
from steps.closing_table import closing_table


def squeezed(text: str) -> list[str]:
    return [re.sub(" {2,}", "  ", line.strip()) for line in text.splitlines()]


def words(lines: list[cost_words.Line]) -> list[str]:
    return ["  ".join(line).strip() for line in lines]


UNKNOWN = {"flops": {"charged": None, "auxiliary_training": None, "charged_saving_fraction": None}}
JOINT = {"flops": {"auxiliary_training": 0.0, "total": 1.8e9, "charged": 1.8e9, "auxiliary": 0.6e9}}
ALONE = {
    "flops": {"auxiliary_training": 0.0, "joint_total": None, "auxiliary": 0.0, "total": 1.2e9, "by_google": None},
    "parameters": {"main": 1000, "auxiliary": 0},
    "memory": {"auxiliary": 0.0, "auxiliary_if_joint": None},
    "address": None,
}


def test_the_plan_says_operations_in_both_accountings_and_memory() -> None:
    assert squeezed(cost_words.plan_text([cost_of()])) == [
        "this run will cost, training on 1,000 tokens:",
        "with the auxiliary models:/aux@champion:",
        "FLOPs of this run  1.400e+09  1.40e+06 per token; auxiliary 2.000e+08, 14 %",
        "FLOPs, auxiliary charged  1.650e+09  its training 1.000e+09, shared by 4 runs",
        "FLOPs of joint ELECTRA  1.800e+09  this run 22 % less; charged 8 % less",
        "memory of training, in float32  4.4 MB  at its peak; weights 600.0 kB, gradients 400.0 kB, "
        "optimizer state 800.0 kB, activations 3.0 MB, logits 10.0 kB",
        "memory for the auxiliary  200.0 kB  trained alongside: 1.5 MB",
    ]


def test_the_plan_of_several_processes_is_that_of_one_of_them() -> None:
    replicas = cost_of(num_processes=8, memory={"exchange": 4e5})
    lines = squeezed(cost_words.plan_text([replicas]))
    assert lines[-2].startswith("memory of each of 8 processes, in float32  4.4 MB  at its peak; weights 600.0 kB,")
    assert lines[-2].endswith(", logits 10.0 kB, exchange with the others 400.0 kB")
    shards = cost_of(num_processes=2, is_sharded=True, memory={"exchange": 4e5, "saved": 2e6})
    lines = squeezed(cost_words.plan_text([shards]))
    assert lines[-2].startswith("memory of the first of 2 processes, in float32  4.4 MB  at its peak; weights")
    assert lines[-2].endswith(", exchange with the others 400.0 kB, whole weights, to score and save 2.0 MB")
    rows = {name: rest for name, *rest in cost_words.measured_rows(shards)}
    assert rows["memory: whole weights, to score and save"] == ["2.0 MB", ""]
    assert not [name for name, *_ in cost_words.measured_rows(cost_of()) if "others" in name or "whole" in name]


def test_the_plan_lists_every_candidate_that_may_be_chosen() -> None:
    text = cost_words.plan_text([cost_of(), cost_of(address="other", flops={"charged": 2e9})])
    assert text.count("if it is chosen:") == 2
    assert text.index("models:/aux@champion") < text.index("1.650e+09") < text.index("other") < text.index("2.000e+09")


def test_the_plan_of_an_ensemble_says_that_prices_add_up() -> None:
    text = cost_words.plan_text([cost_of(), cost_of(address="other")], ensemble_size=2)
    assert squeezed(text)[-1] == "2 of them draw together: what the auxiliary costs is then the sum of theirs"


def test_the_plan_calls_unknown_what_is_not_known() -> None:
    lines = squeezed(cost_words.plan_text([cost_of(**UNKNOWN)]))
    assert "FLOPs, auxiliary charged  unknown  its training unknown, shared by 4 runs" in lines
    assert "FLOPs of joint ELECTRA  1.800e+09  this run 22 % less; charged unknown" in lines


def test_a_run_that_is_dearer_than_joint_training_is_said_to_be() -> None:
    text = cost_words.plan_text([cost_of(flops={"charged": 2.7e9, "charged_saving_fraction": -0.5})])
    assert "this run 22 % less; charged 50 % more" in text


def test_a_joint_run_is_neither_compared_with_itself_nor_charged() -> None:
    lines = squeezed(cost_words.plan_text([cost_of(**JOINT)]))
    assert lines[2] == "FLOPs of this run  1.800e+09  1.40e+06 per token; auxiliary 6.000e+08, 33 %"
    assert not [line for line in lines if "charged" in line or "joint" in line]


def test_a_run_without_an_auxiliary_speaks_of_none() -> None:
    text = cost_words.plan_text([cost_of(**ALONE)])
    assert "auxiliary" not in text
    assert "1.200e+09" in text


def test_a_teacher_is_called_a_teacher() -> None:
    taught = cost_of(beside="teacher", **{"flops": {"joint_total": None}, "memory": {"auxiliary_if_joint": None}})
    text = cost_words.plan_text([taught])
    assert "with the teacher models:/aux@champion:" in text
    assert "FLOPs, teacher charged" in text
    assert squeezed(text)[-1] == "memory for the teacher  200.0 kB"
    assert "auxiliary" not in text
    assert not [name for name, *_ in cost_words.accounting_rows(taught) if "auxiliary" in name]


def test_the_closing_lines_set_measured_beside_planned() -> None:
    assert words(cost_words.closing_lines(cost_of()))[3:] == [
        "cost: time in training steps  14.0 s  71 tokens/s; 1.00e+08 FLOP/s, 62 % of peak",
        "cost: time of them for batches  0.5 s",
        "cost: time beside them  6.0 s  scores 3.0 s, checkpoints 1.0 s, start-up 2.0 s",
        "cost: memory, measured  5.0 MB  planned 4.4 MB",
    ]


def test_a_large_price_is_in_plain_figures() -> None:
    paid = {"measured": {"money": 12345.678, "money_charged": 20000.5}, "price_per_hour": 98.25}
    cost = cost_of(**paid)
    said = "cost: price  12,346  at 98.25 per hour; auxiliary charged 20,000"
    assert words(cost_words.closing_lines(cost))[-1] == said
    assert cost_words.facts(cost)[-1] == ("price", "12,346", "")


def test_money_is_said_where_there_is_a_price() -> None:
    paid = {"measured": {"money": 1.5, "money_charged": 2.25}, "price_per_hour": 270.0}
    assert words(cost_words.closing_lines(cost_of(**paid)))[-1] == (
        "cost: price  1.5  at 270 per hour; auxiliary charged 2.25"
    )
    paid["measured"]["money_charged"] = None  # type: ignore[index]
    assert words(cost_words.closing_lines(cost_of(**paid)))[-1].endswith("auxiliary charged unknown")
    assert words(cost_words.closing_lines(cost_of(**{**JOINT, **paid})))[-1] == "cost: price  1.5  at 270 per hour"


def test_what_was_drawn_ahead_and_reused_is_said() -> None:
    ahead = {"flops": {"auxiliary_reused": 5e7}, "measured": {"drawing_seconds": 2.0}, "is_drawn_ahead": True}
    lines = words(cost_words.closing_lines(cost_of(**ahead)))
    assert "cost: FLOPs reused, not in the sum  5.000e+07  drawn by an earlier run" in lines
    assert "cost: time of drawing ahead  2.0 s" in lines


def test_the_closing_lines_fit_the_terminal() -> None:
    dear = {
        "flops": {"auxiliary_reused": 5e7}, "measured": {"money": 1234.5, "money_charged": 2345.6, "seconds": 1e6},
        "price_per_hour": 2.125, "auxiliary_shared_by": 100, "is_drawn_ahead": True,
    }  # fmt: skip
    table = closing_table(auxiliary=None, cost=cost_of(**dear))
    assert "…" not in table


def test_the_rows_of_the_page_by_hand() -> None:
    assert cost_words.accounting_rows(cost_of()) == [
        ["main model, forward and backward", "1.200e+09", "1.200e+06", "0.667"],
        ["auxiliary in this run", "2.000e+08", "2.000e+05", "0.111"],
        ["this run, per step", "1.400e+09", "1.400e+06", "0.778"],
        ["the auxiliary's own training, shared by 4 runs", "2.500e+08", "2.500e+05", "0.139"],
        ["this run, with the auxiliary's training charged", "1.650e+09", "1.650e+06", "0.917"],
        ["drawn by an earlier run, in none of the sums", "0.000e+00", "0.000e+00", "0.000"],
        ["joint ELECTRA of these models", "1.800e+09", "1.800e+06", "1.000"],
        ["this run, as ELECTRA's paper counts", "9.000e+08", "", ""],
    ]


def test_rows_of_the_page_that_are_not_known_say_so() -> None:
    rows = {name: rest for name, *rest in cost_words.accounting_rows(cost_of(**UNKNOWN))}
    assert rows["this run, with the auxiliary's training charged"] == ["unknown", "unknown", "unknown"]
    alone = {name: rest for name, *rest in cost_words.accounting_rows(cost_of(**ALONE))}
    assert alone["this run, per step"] == ["1.200e+09", "1.200e+06", ""]
    assert not [name for name in alone if "joint" in name or "paper" in name]


def test_the_page_sets_measured_beside_planned() -> None:
    paid = {"measured": {"money": 1.5, "money_charged": None}, "price_per_hour": 270.0}
    rows = {name: rest for name, *rest in cost_words.measured_rows(cost_of(**paid))}
    assert rows["memory: peak"] == ["4.4 MB", "5.0 MB"]
    assert rows["training steps"] == ["1.400e+09", "14.0 s"]
    assert rows["price"] == ["270 per hour", "1.5"]
    assert rows["price, with the auxiliary's training charged"] == ["", "unknown"]
    ahead = {name: rest for name, *rest in cost_words.measured_rows(cost_of(is_drawn_ahead=True))}
    assert ahead["training steps"] == ["1.200e+09", "14.0 s"]


def test_the_price_of_the_whole_training_is_expected_from_its_first_steps() -> None:
    """100 steps of 8 × 32 tokens at 64 a second are 400 s; at 9 an hour that is 1."""
    config = PretrainConfig(num_steps=100, batch_size=8, sequence_length=32, price_per_hour=9.0)
    expected = "at 64 tokens per second, measured in the first steps, all steps take 400.0 s and cost 1;"
    assert cost_words.expected_price(config, 64.0).startswith(expected)


@pytest.mark.parametrize(
    "value, text", [(999.0, "1.0 kB"), (12_345.0, "12.3 kB"), (2.5e6, "2.5 MB"), (1.26e12, "1,260.0 GB")]
)
def test_bytes_are_short_and_readable(value: float, text: str) -> None:
    assert cost_words._bytes(value) == text
