"""Claims about steps/model_card.py: what the text says, what it leaves out, and what it never gives away."""

from typing import Any

import huggingface_hub
import pytest

from steps.model_card import Facts, description, model_card, rows_of, with_licence

TAGS = {
    "corpus.address": "/home/somebody/text/wiki_en",
    "corpus.digest": "0123456789abcdef",
    "corpus.num_tokens": 13_958_302,
    "tokenizer.digest": "fedcba",
    "auxiliary.version": "fast-electra-auxiliary/1",
    "auxiliary.digest": "a2d2",
    "code.git_sha": "5bd69d5",
}
CONFIG = {
    "architecture": "electra", "num_steps": 1000, "batch_size": 32, "sequence_length": 64, "schedule": "exponential",
    "temperature_start": 2.0, "micro_batch_size": None, "store": "/home/somebody/store", "glue": "/home/somebody/glue",
    "tracking_uri": "http://user:secret@host", "experiment": "private", "corpus": "text/",
}  # fmt: skip


def statistics(mean: float, std: float | None, n: int) -> dict[str, Any]:
    ends = {"low": None, "high": None} if std is None else {"low": mean - std, "high": mean + std}
    rest = {"best": mean, "num_degenerate": 0, "learning_rate": 1e-3, "epochs": 3.0}
    return {"n": n, "median": mean, "mean": mean, "std": std, **rest, **ends}


def scores_of(n: int = 5, **changes: Any) -> dict[str, Any]:
    row = {
        "task": "sst2", "metric": "accuracy", "is_main": True, "majority": 0.509,
        "pretrained": statistics(0.7807, 0.0043, n), "untrained": None,
    }  # fmt: skip
    averages = {"electra": {"value": 0.7807, "tasks": ["sst2", "rte"], "is_complete": False}}
    words = {"subject": "/home/somebody/bert, weights dd", "protocol": "dev, 5 seeds", "skipped": {}}
    nothing = {"failures": [], "optimism": [], "submission": {"files": [], "missing": []}, "own_answers": []}
    return {"suite": "glue", "rows": [row], "averages": averages, **words, **nothing, **changes}


def facts_of(**changes: Any) -> Facts:
    cost = {"seconds": 3319.6, "num_parameters": 1_721_729, "device": "cpu", "total": 2.5e15, "joint_total": 3.1e15}
    values: dict[str, Any] = {
        "summary": "An encoder.", "task": "feature-extraction", "tags": TAGS, "metrics": {"heldout_auc": 0.75218},
        "config": CONFIG, "scores": scores_of(), "cost": cost,
    }  # fmt: skip
    return Facts(**{**values, **changes})


def test_the_hub_can_read_the_head() -> None:
    card = huggingface_hub.ModelCard(model_card("fast-electra", facts_of()))
    assert card.data.to_dict() == {
        "library_name": "transformers", "pipeline_tag": "feature-extraction", "tags": ["electra", "fast-electra"],
    }  # fmt: skip
    assert card.text.lstrip().startswith("# fast-electra\n\nAn encoder.\n")


@pytest.mark.parametrize(
    "line",
    [
        "| text | wiki_en |",
        "| digest of the text | 0123456789abcdef |",
        "| tokens of the text | 13,958,302 |",
        "| tokens trained on | 2,048,000 |",  # 1000 steps × 32 sequences × 64 tokens
        "| auxiliary | fast-electra-auxiliary/1 |",
        "| schedule | exponential |",
        "| temperature_start | 2.0 |",
        "bert, weights dd: dev, 5 seeds.",
        "| sst2 | accuracy | 5 | 0.7807 | 0.7807 | 0.0043 | 0.7764 to 0.7850 | 0.7807 | 0.001 | 3 | 0.5090 |",
        "- average as electra's: 0.7807 over sst2, rte, incomplete",
        "| heldout_auc | 0.7522 |",
        "| seconds of training | 3,320 |",
        "| parameters | 1,721,729 |",
        "| floating-point operations | 2.5e+15 |",
        "| the same with the auxiliary trained alongside | 3.1e+15 |",
        "| device | cpu |",
        "| code.git_sha | 5bd69d5 |",
        "- Pre-trained on sequences of 64 tokens; longer ones are new to it.",
    ],
)
def test_the_card_says(line: str) -> None:
    assert line in model_card("fast-electra", facts_of()).splitlines()


def test_the_card_gives_away_no_path_address_or_password() -> None:
    card = model_card("fast-electra", facts_of())
    for word in ("/home", "somebody", "secret", "host", "private"):
        assert word not in card


def test_what_is_not_known_is_left_out() -> None:
    card = model_card("theirs", Facts(summary="", task="fill-mask", tags={}))
    assert "None" not in card
    headings = [line for line in card.splitlines() if line.startswith("#")]
    assert headings == ["# theirs", "## Use", "## Limits"]
    assert "micro_batch_size" not in model_card("fast-electra", facts_of())


def test_only_real_glue_is_called_glue() -> None:
    config = {**CONFIG, "glue": "sample"}
    sample = model_card("fast-electra", facts_of(config=config, scores=scores_of(suite="sample")))
    assert "## Scores on GLUE" in model_card("fast-electra", facts_of())
    assert "## Scores on sample tasks" in sample
    assert sample.count("GLUE") == 1
    assert "- The sample tasks show that the pipeline works, not how good the model is; they are not GLUE." in sample


@pytest.mark.parametrize(
    "changes, limit",
    [
        ({"scores": scores_of(n=3)}, "Scores are over 3 seeds: differences within the intervals say nothing."),
        ({"scores": scores_of(n=1)}, "Scores are of one seed: nothing says how much of a difference is noise."),
        (
            {"scores": scores_of(n=5)},
            "Scores are on the dev sets, and speak of one pre-training: another seed of it differs too.",
        ),
        ({"tags": {**TAGS, "code.git_sha": "5bd-dirty"}}, "The code that made it had changes that no commit has."),
        ({}, "The licence of its text is not stated; whoever hands the model on must know it."),
        (
            {"tags": {"score.rule": "the best of 5 seeds on dev"}},
            "Chosen as the best of 5 seeds on dev: its own score flatters, the mean over seeds does not.",
        ),
    ],
)
def test_a_limit_is_named_where_it_holds(changes: dict[str, Any], limit: str) -> None:
    assert f"- {limit}" in model_card("fast-electra", facts_of(**changes)).splitlines()


def test_limits_that_do_not_hold_are_not_named() -> None:
    card = model_card("fast-electra", facts_of(tags={**TAGS, "corpus.licence": "cc-by-sa-4.0"}))
    assert "| licence of the text | cc-by-sa-4.0 |" in card
    for words in ("not stated", "seeds: differences", "no commit", "flatters", "sample tasks"):
        assert words not in card


@pytest.mark.parametrize("before", ["", "unstated", "cc-by-sa-4.0"])
@pytest.mark.parametrize("after", ["unstated", "MIT | \\1"])
def test_a_licence_that_is_stated_later_stands_where_the_first_one_would(before: str, after: str) -> None:
    old, new = (facts_of(tags=TAGS | ({"corpus.licence": licence} if licence else {})) for licence in (before, after))
    row = "| corpus.licence |"  # of a version that had none, the tag was none of those that it was made with
    lines = [line for line in model_card("fast-electra", new).splitlines() if before or not line.startswith(row)]
    assert with_licence(model_card("fast-electra", old), after).splitlines() == lines
    assert with_licence(description(old), after) == description(new)


@pytest.mark.parametrize(
    "task, architecture, loader",
    [
        ("feature-extraction", "electra", "AutoModelForPreTraining"),
        ("feature-extraction", "modernbert", "AutoModelForTokenClassification"),
        ("fill-mask", "electra", "AutoModelForMaskedLM"),
        ("text-classification", "modernbert", "AutoModelForSequenceClassification"),
    ],
)
def test_the_card_says_which_class_loads_the_model(task: str, architecture: str, loader: str) -> None:
    card = model_card("fast-electra", facts_of(task=task, config={"architecture": architecture}))
    assert f'model = {loader}.from_pretrained("FOLDER")' in card
    assert loader in next(line for line in card.splitlines() if line.startswith("from transformers import"))


def test_bars_and_line_breaks_do_not_break_a_table() -> None:
    assert "| odd | a\\|b c |" in model_card("x", facts_of(tags={"odd": "a|b\nc"}))
    assert "| a\\|b.accuracy | 0.5000 |" in model_card("x", facts_of(metrics={"a|b.accuracy": 0.5}))
    failure = {"task": "rte", "seed": 1, "untrained": False, "rate": None, "reason": "out of memory\n\nin layer 3"}
    rows = [{**scores_of()["rows"][0], "task": "a|b"}]
    lines = model_card("x", facts_of(scores=scores_of(rows=rows, failures=[failure]))).splitlines()
    assert "- failed and left out: rte seed 1 (out of memory in layer 3)" in lines
    assert any(line.startswith("| a\\|b | accuracy | 5 |") for line in lines)


def test_the_description_has_summary_scores_and_limits_and_fits_the_database() -> None:
    short = description(facts_of())
    assert short.startswith("An encoder.\n\n## Scores on GLUE\n")
    assert "0.0043" in short and "## Limits" in short and "5bd69d5" not in short
    rows = scores_of()["rows"] * 200
    assert len(description(facts_of(scores=scores_of(rows=rows)))) <= 5000


def test_the_scores_of_one_task_leave_out_what_is_of_others() -> None:
    other = {**scores_of()["rows"][0], "task": "rte"}
    failures = [
        {"task": task, "seed": 1, "untrained": False, "rate": None, "reason": "no memory"} for task in ("sst2", "rte")
    ]
    scores = scores_of(
        rows=[*scores_of()["rows"], other], failures=failures, skipped={"sst2": 1, "rte": 2}, own_answers=["rte.txt"],
    )  # fmt: skip
    card = model_card("fast-electra-rte", facts_of(scores=rows_of(scores, "rte")))
    assert "| rte | accuracy |" in card
    assert "- failed and left out: rte seed 1 (no memory)" in card
    assert "broken rows left out: 2 of rte" in card
    for words in ("sst2", "average", "rte.txt"):
        assert words not in card
