"""What the fine-tunings of a run amount to: statistics by hand, honest choices, failures by name."""

import zipfile
from pathlib import Path
from typing import Any

import pytest
from scipy.stats import ttest_ind

from fast_electra_core.config import EvaluateConfig
from steps.scores import (
    as_markdown,
    averages,
    chosen,
    failure_text,
    failures,
    notes,
    optimism,
    own_answers,
    protocol,
    statistics_of,
    submit,
    summarise,
)


def result_of(
    score: float, *, untrained: bool, task: str = "rte", degenerate: bool = False, seed: int = 0, rate: float = 1e-4
) -> dict[str, Any]:
    majority = {"accuracy": 0.5}
    scores = {"accuracy": score}
    kind = {"untrained": untrained, "degenerate": degenerate, "seed": seed, "learning_rate": rate, "epochs": 10.0}
    return {"task": task, "scores": scores, "majority": majority, "main_metric": "accuracy", **kind}


def test_the_summary_by_hand() -> None:
    trained, untrained = [0.6, 0.7, 0.8], [0.5, 0.5, 0.53]
    results = [result_of(value, untrained=False, seed=seed) for seed, value in enumerate(trained)]
    results += [result_of(value, untrained=True, degenerate=value == 0.5) for value in untrained]
    (row,) = summarise(results)
    assert (row["task"], row["metric"], row["is_main"], row["majority"]) == ("rte", "accuracy", True, 0.5)
    best = {"n": 3, "median": 0.7, "mean": pytest.approx(0.7), "std": pytest.approx(0.1), "best": 0.8}
    half = 4.302653 * 0.1 / 3**0.5  # Student's 97.5 % quantile for 2 degrees of freedom
    ends = {"low": pytest.approx(0.7 - half), "high": pytest.approx(0.7 + half)}
    how = {"num_degenerate": 0, "learning_rate": 1e-4, "epochs": 10.0}
    assert row["pretrained"] == {**best, **ends, **how, "values": {"0": 0.6, "1": 0.7, "2": 0.8}}
    assert row["untrained"]["num_degenerate"] == 2
    expected = ttest_ind(trained, untrained, equal_var=False).confidence_interval(0.95)
    assert (row["margin_low"], row["margin_high"]) == pytest.approx((expected.low, expected.high))
    assert row["margin"] == pytest.approx(0.19)
    assert row["is_outside_noise"] is False  # 0.19 ± 0.24: three seeds that far apart show nothing


def test_a_margin_outside_the_noise_on_either_side_is_called_so() -> None:
    high, low = [0.80, 0.81, 0.82], [0.50, 0.52, 0.51]
    for trained, untrained in ((high, low), (low, high)):
        results = [result_of(value, untrained=False) for value in trained]
        results += [result_of(value, untrained=True) for value in untrained]
        assert summarise(results)[0]["is_outside_noise"] is True


def test_one_seed_shows_no_margin_and_no_spread() -> None:
    (row,) = summarise([result_of(0.9, untrained=False), result_of(0.5, untrained=True)])
    assert row["margin"] is row["is_outside_noise"] is row["pretrained"]["std"] is None
    (row,) = summarise([result_of(0.9, untrained=False)])
    assert row["untrained"] is None


def test_seeds_that_all_score_the_same_leave_a_point() -> None:
    results = [result_of(0.7, untrained=False)] * 2 + [result_of(0.7, untrained=True)] * 2
    (row,) = summarise(results)
    assert (row["margin_low"], row["margin_high"], row["is_outside_noise"]) == (0.0, 0.0, False)


def test_seeds_without_any_spread_on_either_side_show_no_difference_outside_the_noise() -> None:
    results = [result_of(0.56, untrained=False)] * 2 + [result_of(0.54, untrained=True)] * 2
    (row,) = summarise(results)
    assert row["margin"] == pytest.approx(0.02)
    assert row["is_outside_noise"] is False


def test_averages_say_over_which_tasks() -> None:
    results = [result_of(value, untrained=False) for value in (0.6, 0.8)]
    results += [result_of(0.2, untrained=False, task="wnli"), result_of(0.1, untrained=True)]
    found = averages(results)
    assert found["electra"] == {"value": pytest.approx(0.7), "tasks": ["rte"], "is_complete": False}
    assert found["leaderboard"]["value"] == pytest.approx(0.45)
    assert averages([]) == {}


def test_a_task_that_is_in_no_average_is_in_none() -> None:
    """WNLI is in the leaderboard's alone, a task of one's own in neither."""
    own, wnli = result_of(0.9, untrained=False, task="tickets"), result_of(0.2, untrained=False, task="wnli")
    assert averages([own]) == {}
    assert averages([own, wnli]) == {"leaderboard": {"value": 0.2, "tasks": ["wnli"], "is_complete": False}}


def test_what_makes_scores_flatter_is_said() -> None:
    plain = EvaluateConfig().to_dict()
    assert optimism(plain) == []
    assert optimism(plain | {"best_epoch": True, "finetune_grid": "1e-4,3e-4"}) == [
        "best epoch on dev",
        "best of the learning rates 1e-4,3e-4 on dev",
    ]


def test_every_metric_has_the_majority_class_s_score_of_its_own() -> None:
    both = result_of(0.8, untrained=False, task="mrpc", degenerate=True)
    both |= {"scores": {"accuracy": 0.8, "f1": 0.9}, "majority": {"accuracy": 0.68, "f1": 0.81}}
    rows = summarise([both])
    assert [(row["metric"], row["is_main"], row["majority"]) for row in rows] == [
        ("accuracy", True, 0.68),
        ("f1", False, 0.81),
    ]
    nothing: dict[str, Any] = {"optimism": [], "failures": [], "skipped": {}, "own_answers": []}
    scores = {**nothing, "rows": rows, "submission": {"files": [], "missing": [], "seeds": {}}}
    assert notes(scores) == ["one class only is predicted by 1 of 1 fine-tunings of mrpc"]  # once, not once a metric


def test_names_and_numbers_do_not_break_the_table() -> None:
    odd = result_of(-0.00001, untrained=False, task="a|b")
    nothing: dict[str, Any] = {"optimism": [], "failures": [], "skipped": {}, "own_answers": [], "averages": {}}
    more = {"subject": "s", "protocol": "p", "submission": {"files": [], "missing": [], "seeds": {}}}
    table = as_markdown({**nothing, **more, "rows": summarise([odd])}, heading="GLUE")
    assert r"| a\|b | accuracy | 1 | 0.0000 | 0.0000 | – | – | 0.0000 | 0.0001 | 10 | 0.5000 |" in table.splitlines()


def test_of_a_grid_the_rate_with_the_best_median_counts_for_each_task_and_start() -> None:
    results = [result_of(score, untrained=False, rate=1e-4, seed=seed) for seed, score in enumerate((0.9, 0.5, 0.5))]
    results += [result_of(score, untrained=False, rate=3e-4, seed=seed) for seed, score in enumerate((0.6, 0.6, 0.6))]
    results += [result_of(score, untrained=True, rate=rate) for rate, score in ((1e-4, 0.55), (3e-4, 0.51))]
    (row,) = summarise(results)
    assert (row["pretrained"]["learning_rate"], row["pretrained"]["median"], row["pretrained"]["n"]) == (3e-4, 0.6, 3)
    assert (row["untrained"]["learning_rate"], row["untrained"]["mean"]) == (1e-4, 0.55)


def test_a_rate_of_a_grid_that_a_seed_diverged_at_counts_only_if_every_other_has_fewer_seeds() -> None:
    lucky = [result_of(0.9, untrained=False, rate=3e-4, seed=0), failed("rte", 1), failed("rte", 2)]
    steady = [result_of(0.8, untrained=False, rate=1e-4, seed=seed) for seed in (0, 1)]
    (row,) = summarise([*lucky, *steady])
    assert (row["pretrained"]["learning_rate"], row["pretrained"]["n"]) == (1e-4, 2)


def failed(task: str, seed: int, rate: float | None = None) -> dict[str, Any]:
    return {"task": task, "seed": seed, "untrained": False, "rate": rate, "failed": "NonFiniteLossError: nan"}


def test_a_failure_of_a_grid_is_named_with_its_rate() -> None:
    (found,) = failures([failed("rte", 1, rate=3e-2)])
    assert failure_text(found) == "rte seed 1, rate 0.03 (NonFiniteLossError: nan)"


def test_a_failed_fine_tuning_is_left_out_and_named() -> None:
    results = [result_of(0.6, untrained=False), failed("rte", 1), failed("cola", 0)]
    assert [(row["task"], row["pretrained"]["n"]) for row in summarise(results)] == [("rte", 1)]
    assert [(each["task"], each["seed"]) for each in failures(results)] == [("rte", 1), ("cola", 0)]
    assert len(chosen(results)) == 1
    scores = {
        "rows": summarise(results),
        "averages": averages(results),
        "failures": failures(results),
        "optimism": ["best epoch on dev"],
        "skipped": {"qqp": 2},
        "own_answers": ["predictions/tickets.tsv"],
        "subject": "models:/fast-electra@champion",
        "protocol": "recipe electra; seeds 0 to 2",
        "submission": {"files": ["RTE.tsv"], "missing": ["AX.tsv"], "seeds": {"rte": 0}},
    }
    assert as_markdown(scores, heading="GLUE").splitlines() == [
        "# GLUE",
        "",
        "models:/fast-electra@champion: recipe electra; seeds 0 to 2.",
        "",
        "| task | metric | n | median | mean | std | 95 % | best | rate | epochs | majority |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
        "| rte | accuracy | 1 | 0.6000 | 0.6000 | – | – | 0.6000 | 0.0001 | 10 | 0.5000 |",
        "",
        "- the scores flatter: best epoch on dev",
        "- failed and left out: rte seed 1 (NonFiniteLossError: nan)",
        "- failed and left out: cola seed 0 (NonFiniteLossError: nan)",
        "- broken rows left out: 2 of qqp",
        "- test answers: submission.zip, 1 of 11 files; for the leaderboard it lacks AX.tsv",
        "- test answers: predictions/tickets.tsv",
    ]


def test_the_table_beside_untrained_encoders_has_a_column_for_them() -> None:
    results = [result_of(0.6, untrained=False), result_of(0.5, untrained=True)]
    results += [result_of(0.8, untrained=False, task="sst2")]
    scores = {"rows": summarise(results), "averages": averages(results), "failures": [], "optimism": [], "skipped": {}}
    scores |= {
        "own_answers": [],
        "subject": "m",
        "protocol": "p",
        "submission": {"files": [], "missing": [], "seeds": {}},
    }
    lines = as_markdown(scores, heading="GLUE").splitlines()
    assert lines[4].endswith("| rate | epochs | untrained | majority |")
    assert lines[6].endswith("| 0.0001 | 10 | 0.5000 | 0.5000 |")
    assert lines[7].endswith("| 0.0001 | 10 | – | 0.5000 |")
    assert "- average as electra's: 0.7000 over sst2, rte, incomplete" in lines


def test_a_protocol_says_what_overrides_the_recipe() -> None:
    plain = EvaluateConfig(seeds=1).to_dict()
    assert protocol(plain) == "recipe electra, at most 128 tokens; seed 0"
    given = EvaluateConfig(
        tasks="mnli,rte", seeds=3, finetune_recipe="modernbert", finetune_learning_rate=1e-3, finetune_epochs=3,
        finetune_batch_size=16, layer_decay=1.0, finetune_max_examples=10_000, mnli_transfer=True,
    )  # fmt: skip
    assert protocol(given.to_dict()) == (
        "recipe modernbert, rate 0.001, epochs 3, batch size 16, layer decay 1, at most 10,000 training examples, "
        "at most 128 tokens, mrpc, stsb and rte from the encoder fine-tuned on mnli; seeds 0 to 2"
    )


def test_the_test_answers_are_those_of_the_seed_that_is_best_on_dev(tmp_path: Path) -> None:
    results = [
        {**result_of(score, untrained=False, seed=seed), "test_predictions": {"test": [seed % 2] * 3}}
        for seed, score in enumerate((0.5, 0.7, 0.7, 0.6))  # of equals the first
    ]
    results.append({**result_of(0.9, untrained=True, seed=4), "test_predictions": {"test": [0] * 3}})
    results.append({**result_of(0.9, untrained=False, task="tickets"), "test_predictions": {"test": [0]}})
    mnli = {**result_of(0.8, untrained=False, task="mnli"), "test_predictions": {"matched": [0], "ax": [2, 1]}}
    found = submit(tmp_path / "answers.zip", [*results, mnli])
    assert found["seeds"] == {"rte": 1, "mnli": 0}
    assert found["files"] == ["MNLI-m.tsv", "RTE.tsv", "AX.tsv"]
    with zipfile.ZipFile(tmp_path / "answers.zip") as archive:
        assert archive.read("RTE.tsv").decode().splitlines()[1:] == [f"{n}\tnot_entailment" for n in range(3)]
        assert archive.read("AX.tsv").decode().splitlines() == ["index\tprediction", "0\tcontradiction", "1\tneutral"]


def test_the_test_answers_of_own_tasks_are_in_their_own_words() -> None:
    tickets = [
        {
            **result_of(score, untrained=False, task="tickets"),
            "test_predictions": {"test": ids},
            "labels": ["no", "yes"],
        }
        for score, ids in ((0.5, [0, 0]), (0.8, [1, 0]))
    ]
    price = {**result_of(0.5, untrained=False, task="price"), "test_predictions": {"test": [2.5]}, "labels": []}
    silent = {**result_of(0.5, untrained=False, task="silent"), "test_predictions": {}}
    rte = {**result_of(0.5, untrained=False), "test_predictions": {"test": [0]}}
    assert own_answers([*tickets, price, silent, rte]) == {
        "predictions/tickets.tsv": "index\tprediction\n0\tyes\n1\tno\n",
        "predictions/price.tsv": "index\tprediction\n0\t2.5\n",
    }


def test_without_test_sets_there_is_no_zip(tmp_path: Path) -> None:
    results = [{**result_of(0.5, untrained=False), "test_predictions": {}}]
    assert submit(tmp_path / "answers.zip", results) == {"files": [], "missing": [], "seeds": {}}
    assert not (tmp_path / "answers.zip").exists()


def test_an_interval_ends_where_scores_do() -> None:
    """Two scores .1 apart: Student's factor is 12.7, so half of the interval is .635."""
    assert statistics_of([0.9, 1.0]) | {"low": 0, "std": 0} == {
        "n": 2, "median": 0.95, "mean": 0.95, "std": 0, "best": 1.0, "low": 0, "high": 1.0,
    }  # fmt: skip
    assert statistics_of([-0.9, -1.0])["low"] == -1.0
