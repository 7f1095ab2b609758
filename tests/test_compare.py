"""A comparison: its runs, one arm's run, and the page of them all, without the flow around them."""

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import write_text
from toys import electra_config, save_auxiliary
from transformers import ElectraForPreTraining

from fast_electra_core.arms import CompareConfig
from fast_electra_core.errors import ConfigError
from fast_electra_core.tokenizer import load_tokenizer
from steps import compare, comparison_page, lifecycle, planning
from steps.auxiliary import load_masked_lm

QUICK: dict[str, Any] = {
    "preset": "tiny", "heldout_fraction": 0.1, "auxiliary": "auxiliary", "max_auxiliary_fraction": 2.0, "num_steps": 4,
    "tasks": "rte,sst2", "seeds": 1, "finetune_max_examples": 16, "test_predictions": False, "pretrain_seeds": 2,
    "arms": "electra; fast_electra; wild: learning_rate=1e38",
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text and an auxiliary for it."""
    folder = tmp_path_factory.mktemp("compare")
    text = write_text(folder / "text.txt")
    save_auxiliary(folder / "auxiliary", text.read_text().split("\n\n"))
    return folder


def begin(folder: Path, **changes: Any) -> Any:
    """The plan of a run that keeps everything in the folder."""
    places = {name: str(folder / name) for name in ("auxiliary", "store")}
    given = {**QUICK, **places, "corpus": str(folder / "text.txt"), "tracking_uri": f"sqlite:///{folder}/mlflow.db"}
    given |= {"experiment": "comparisons", **changes}
    return planning.begin_compare(given, flow="CompareFlow", run_id="1")


class Compared:
    """All steps of the flow up to its end, in this process."""

    def __init__(self, folder: Path) -> None:
        self.plan = begin(folder)
        shards = lifecycle.list_tokenizings(self.plan)
        self.text = lifecycle.gather_tokens(self.plan, [lifecycle.tokenize(self.plan, each) for each in shards])
        scored = [lifecycle.score_candidate(self.plan, self.text, each) for each in self.plan["candidates"]]
        frozen, _ = lifecycle.freeze_auxiliary(self.plan, self.text, scored)
        self.runs = [run for group in compare.list_runs(self.plan, scored, frozen) for run in group]
        self.results = compare.run_arms(self.plan, self.text, self.runs)
        self.found, self.page, self.table = compare.gather(self.plan, self.results)


@pytest.fixture(scope="module")
def compared(folder: Path) -> Iterator[Compared]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)  # MLflow's artifacts
        yield Compared(folder)


def test_every_arm_is_trained_with_every_seed_and_the_first_seeds_come_first(compared: Compared) -> None:
    assert [(run["arm"], run["turn"]) for run in compared.runs] == [
        ("electra", 0), ("fast_electra", 0), ("wild", 0), ("electra", 1), ("fast_electra", 1), ("wild", 1),
    ]  # fmt: skip
    assert [run["config"]["seed"] for run in compared.runs] == [0, 0, 0, 1, 1, 1]


def test_a_loss_that_is_not_finite_is_a_result_and_the_other_arms_go_on(compared: Compared) -> None:
    failures = {(each["arm"], each["turn"]): each["failure"] for each in compared.results}
    assert [key for key, failure in failures.items() if failure] == [("wild", 0), ("wild", 1)]
    assert failures["wild", 0].startswith("diverged: ")
    assert "kept" not in failures["wild", 0] and "new run" not in failures["wild", 0], "remedies of a run of its own"
    rows = {row["arm"]: row for row in compared.found["arms"]}
    assert (rows["wild"]["num_runs"], rows["wild"]["num_failed"]) == (2, 2)
    assert (rows["electra"]["num_failed"], rows["fast_electra"]["scores"]["average"]["n"]) == (0, 2)


def test_the_untrained_encoder_is_an_arm_of_one_run(compared: Compared) -> None:
    """It follows from the seeds of fine-tuning, which all runs share: a second one would be the same once more."""
    (row,) = [row for row in compared.found["arms"] if row["arm"] == "untrained"]
    assert (row["num_runs"], row["reference"]) == (1, "electra")
    assert (row["scores"]["rte"]["std"], row["margins"]["rte"]["p"]) == (None, None)
    with_it = [(run["arm"], run["turn"]) for run in compared.runs if run["config"]["untrained_baseline"]]
    assert with_it == [("electra", 0)]


def test_mlflow_has_one_run_per_arm_with_its_seeds_below_it(compared: Compared) -> None:
    from mlflow import MlflowClient

    uri = compared.plan["config"]["tracking_uri"]
    client = MlflowClient(uri, registry_uri=uri)
    experiment = client.get_experiment_by_name("comparisons").experiment_id
    runs = client.search_runs([experiment], max_results=1000)
    arms = {run.data.tags["arm"]: run for run in runs if run.data.tags.get("role") == "arm"}
    assert set(arms) == {"electra", "fast_electra", "wild"}
    assert {run.data.tags["mlflow.parentRunId"] for run in arms.values()} == {compared.plan["mlflow_run_id"]}
    below = [r for r in runs if r.data.tags.get("mlflow.parentRunId") == arms["fast_electra"].info.run_id]
    assert sorted(run.info.run_name for run in below) == ["fast_electra seed 0", "fast_electra seed 1"]
    assert arms["fast_electra"].data.params["method"] == "fast_electra"
    assert arms["fast_electra"].data.metrics["scores.average.n"] == 2
    assert arms["wild"].data.metrics["num_failed"] == 2
    assert {run.info.status for run in arms.values()} == {"FINISHED"}
    parent = client.get_run(compared.plan["mlflow_run_id"])
    assert (parent.info.status, parent.data.params["comparison"]) == ("FINISHED", "paper_main")


def test_the_page_says_what_diverged_and_what_the_arms_cost(compared: Compared) -> None:
    assert "wild seed 1: diverged: " in compared.page
    ratios = {row["arm"]: row["numbers"].get("total_flops") for row in compared.found["arms"]}
    assert f"{ratios['fast_electra'] / ratios['electra']:.2f}" in compared.page
    assert "FLOPs, auxiliary charged" in compared.page
    charged = {row["arm"]: row["numbers"].get("charged_flops") for row in compared.found["arms"]}
    assert charged["fast_electra"] is None, "the auxiliary is a folder: nobody knows what its training has cost"
    assert charged["electra"] == ratios["electra"]
    assert compared.table.splitlines()[0].startswith("| arm | n | mean ± std |")
    assert "| wild | 0 |" in compared.table
    assert json.loads(json.dumps(compared.found)) == compared.found


def test_the_closing_words_lead_to_the_page(compared: Compared) -> None:
    assert compared.table.splitlines()[-1] == "browse the page, its arms and their runs: make ui"


def test_a_run_that_is_done_is_not_done_again(
    compared: Compared, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def never(*arguments: Any, **more: Any) -> None:
        raise AssertionError("a step was trained")

    monkeypatch.setattr("fast_electra_core.methods.Method.__call__", never, raising=False)
    monkeypatch.setattr("steps.finetune.load_task", never)
    monkeypatch.setattr("fast_electra_core.trainer.batch_at", never)
    with caplog.at_level(logging.INFO, "steps.compare"):  # of tasks side by side whose lines are alike but for their id
        again = compare.run_arms(compared.plan, compared.text, compared.runs[1:2])
    assert caplog.messages[0] == "fast_electra seed 0: its pre-training and fine-tunings are those of this task"
    assert again[0]["scores"] == compared.results[1]["scores"]


ARMS = "electra; fast_electra; flat: schedule=constant; deep: num_layers=3; mlm"


def test_the_tokens_that_are_said_are_those_of_each_arms_own_batches(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(folder)
    caplog.set_level(logging.INFO)
    plan = begin(folder, arms="electra; wide: batch_size=32")
    (frozen,) = plan["candidates"]
    compare.list_runs(plan, [frozen], frozen)
    both_seeds = 2 * 4 * 32 * (8 + 32)  # of 4 steps of 32 tokens a sequence, in batches of 8 and of 32
    assert f"4 runs of 4 steps, {both_seeds:.3g} tokens" in caplog.text


def test_at_equal_flops_the_cheaper_arm_trains_longer(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    plan = begin(folder, equal="flops", num_steps=100, arms=ARMS)
    (frozen,) = plan["candidates"]
    runs = [run for group in compare.list_runs(plan, [frozen], frozen) for run in group]
    # One layer of width 8 beside a main model of tiny, 32 tokens a sequence, by hand; the deep arm has a layer more.
    vocab = load_masked_lm(folder / "auxiliary").config.vocab_size
    auxiliary = 2 * (4 * 8 * 8 + 2 * 8 * 12) + 4 * 32 * 8 + 0.15 * 2 * (8 * 8 + 8 * vocab)
    layer, head = 2 * (4 * 32 * 32 + 2 * 32 * 64) + 4 * 32 * 32, 2 * (32 * 32 + 32)
    joint = 3 * (2 * layer + head + auxiliary)
    skipped = 0.85 * (2 * (2 * 8 * 8 + 2 * 8 * 12) + 4 * 32 * 8)  # frozen, all but keys and values run where selected
    frozen_ones = joint - 2 * auxiliary - skipped
    assert {run["arm"]: run["config"]["num_steps"] for run in runs} == {
        "electra": 100,
        "fast_electra": round(100 * joint / frozen_ones),
        "flat": round(100 * joint / frozen_ones),
        "deep": round(100 * joint / (frozen_ones + 3 * layer)),
        "mlm": round(100 * joint / (3 * (2 * layer + 0.15 * 2 * (32 * 32 + 32 * vocab)))),
    }


def test_the_untrained_encoder_is_there_where_the_first_arm_lies_on_a_grid_that_electra_does_not_read(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    plan = begin(folder, arms="fast_electra; electra", arm_grid="temperature_start=1.5,2")
    (frozen,) = plan["candidates"]
    runs = [run for group in compare.list_runs(plan, [frozen], frozen) for run in group]
    assert [(run["arm"], run["turn"]) for run in runs if run["config"]["untrained_baseline"]] == [("electra", 0)]


def test_an_arm_is_trained_on_one_machine(folder: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"num_nodes must be 1 in CompareFlow, got 2: .* PretrainFlow trains on several"
    ):
        begin(folder, num_nodes=2)


def test_an_arm_that_cannot_be_trained_is_refused_by_name_before_anything_costs(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"arm wide: auxiliary .*warm_start does not fit"):
        begin(folder, arms="electra; wide: hidden_size=64, warm_start=layers")
    with pytest.raises(ConfigError, match=r"^arm other: its auxiliary must be one of those in --auxiliary"):
        begin(folder, arms="electra; other: auxiliary=elsewhere")


def test_an_arm_that_the_initial_model_does_not_fit_is_refused_by_name_before_anything_costs(folder: Path) -> None:
    tokenizer = load_tokenizer(folder / "auxiliary")
    sizes = {"embedding_size": 32, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    shape = electra_config(len(tokenizer), num_attention_heads=2, max_position_embeddings=512, **sizes)
    ElectraForPreTraining(shape).save_pretrained(folder / "before")
    tokenizer.save_pretrained(folder / "before")
    with pytest.raises(
        ConfigError, match=r"arm deep: initial_model .*before does not fit: num_layers is 2 in it and 3"
    ):
        begin(folder, initial_model=str(folder / "before"), arms="electra; deep: num_layers=3")


def test_an_arms_note_counts_its_own_fine_tunings_that_predict_one_class_not_those_of_the_untrained_encoder() -> None:
    tuned = {"task": "rte", "scores": {"accuracy": 0.5}, "majority": {"accuracy": 0.5}, "main_metric": "accuracy"}
    tuned |= {"seed": 0, "learning_rate": 1e-4, "epochs": 1.0}
    trained = {"scores": {}, "seconds": 1.0, "peak_memory_megabytes": 1.0, "curve": []}
    trained |= {"cost": {"flops": {"total": 1.0, "charged": None}}}
    both = [{**tuned, "untrained": untrained, "degenerate": True} for untrained in (False, True)]
    assert compare._summary(trained, both)["notes"] == ["1 fine-tunings predict one class only"]
    assert compare._summary(trained, both[1:])["notes"] == []


def test_the_page_of_a_grid_has_a_chart_along_it() -> None:
    def run(base: str, rate: float) -> dict[str, Any]:
        arm = f"{base} learning_rate={rate:g}"
        return {
            "arm": arm, "base": base, "point": f"learning_rate={rate:g}", "turn": 0, "notes": [], "failure": "",
            "reference": f"electra learning_rate={rate:g}", "scores": {"rte": rate}, "untrained": {},
            "is_majority": False,
            "numbers": {"heldout_auc": 0.5}, "curve": [{"step": 1, "heldout_auc": 0.5}],
        }  # fmt: skip

    runs = [run(base, rate) for base in ("electra", "fast_electra") for rate in (0.001, 0.002)]
    rows = compare._as_plain(compare.compare(runs))
    settings = CompareConfig(comparison="stability").to_dict()
    page = comparison_page.page({"comparison": settings, "runs": runs, "arms": rows})
    assert "Median score along the grid" in page
    assert "Which methods stand a large learning rate?" in page
