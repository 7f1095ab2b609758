"""Every rival through all the steps of the main job, in this process: the same text and masks, and a true account."""

from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import transformers
from conftest import write_text
from toys import save_auxiliary

from fast_electra_core import trainer
from fast_electra_core.data import SpecialIds
from fast_electra_core.errors import ConfigError
from fast_electra_core.method_knobs import METHODS, MODEL_FREE
from fast_electra_core.methods import Batch
from steps import delivery, lifecycle, planning, scoring
from steps.auxiliary import load_masked_lm
from steps.config import resolve_pretrain
from steps.gates import SCHEDULE_TAGS
from steps.pretrain import _start_main_model
from steps.store import Store
from steps.training_run import training_run

# Of the three without a model one will do here: where they draw from is tests/test_frozen.py's.
RIVALS = [method for method in METHODS if method not in ("fast_electra", "uniform", "unigram")]
NUM_STEPS = 4
GIVEN = {
    "preset": "tiny", "corpus": "text.txt", "heldout_fraction": 0.1, "store": "store", "corpus_licence": "CC0-1.0",
    "num_steps": NUM_STEPS,
    "tracking_uri": "sqlite:///mlflow.db", "auxiliary": "auxiliary", "embedding_size": 8, "tasks": "rte", "seeds": 1,
    "finetune_max_examples": 8, "untrained_baseline": False, "test_predictions": False,
}  # fmt: skip


class Ran(NamedTuple):
    """What the steps of one run handed on."""

    plan: dict[str, Any]
    text: dict[str, Any]
    frozen: dict[str, Any]
    trained: dict[str, Any]
    scores: dict[str, Any]
    version: dict[str, Any]
    table: str
    page: str
    batches: list[Batch]
    """What training saw."""

    @property
    def folder(self) -> Path:
        """The delivered model's."""
        return Store(self.plan["config"]["store"]).get_folder(self.trained["key"])


def run(method: str, monkeypatch: pytest.MonkeyPatch) -> Ran:
    batches: list[Batch] = []

    def recorded(*arguments: Any, **more: Any) -> Batch:
        batches.append(batch_at(*arguments, **more))
        return batches[-1]

    batch_at = trainer.batch_at
    monkeypatch.setattr(trainer, "batch_at", recorded)
    plan = planning.begin_pretrain({**GIVEN, "method": method}, flow="PretrainFlow", run_id=method)
    text = lifecycle.gather_tokens(plan, [lifecycle.tokenize(plan, task) for task in lifecycle.list_tokenizings(plan)])
    scored = [lifecycle.score_candidate(plan, text, candidate) for candidate in plan["candidates"]]
    frozen, _ = lifecycle.freeze_auxiliary(plan, text, scored)
    drawn = [lifecycle.corrupt(plan, text, frozen, task) for task in lifecycle.list_corruptions(plan)]
    corrupted = lifecycle.gather_corruptions(plan, text, frozen, drawn)
    trained, _ = lifecycle.pretrain(plan, text, frozen, corrupted)
    packs = scoring.list_packs(plan)
    results = [result for pack in packs for result in scoring.finetune(plan, trained["key"], pack)]
    scores, _ = scoring.gather_scores(plan, results)
    version = delivery.register_discriminator(plan, text, frozen, trained, scores, pathspec=f"PretrainFlow/{method}/1")
    version = delivery.promote(plan, scores, version)
    table, page = delivery.close_pretrain(plan, text, scored, frozen, trained, scores, version)
    monkeypatch.undo()
    return Ran(plan, text, frozen, trained, scores, version, table, page, batches)


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The current folder for a while: text, an auxiliary, and what runs leave."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("rivals")
        patch.chdir(folder)
        text = write_text(folder / "text.txt", num_documents=120)
        save_auxiliary(folder / "auxiliary", text.read_text().split("\n\n"))
        yield folder


@pytest.fixture(scope="module")
def runs(here: Path) -> dict[str, Ran]:
    found = {}
    for method in RIVALS:
        with pytest.MonkeyPatch.context() as patch:
            found[method] = run(method, patch)
    return found


def client() -> Any:
    from mlflow import MlflowClient

    return MlflowClient("sqlite:///mlflow.db", registry_uri="sqlite:///mlflow.db")


@pytest.mark.parametrize("method", RIVALS)
def test_a_rival_trains_on_the_sequences_masks_and_numbers_of_fast_electra(method: str, runs: dict[str, Ran]) -> None:
    ran = runs[method]
    config = resolve_pretrain({**GIVEN, "method": "fast_electra"})
    dataset = training_run(ran.plan, ran.text, "none").dataset("train", config)
    assert len(ran.batches) == NUM_STEPS
    for step, batch in enumerate(ran.batches):
        expected = trainer.batch_at(step, dataset, config)
        assert torch.equal(batch.input_ids, expected.input_ids)
        assert torch.equal(batch.is_selected, expected.is_selected)
        assert torch.equal(batch.sample_uniforms, expected.sample_uniforms)


def test_all_freeze_the_same_auxiliary_and_make_models_of_their_own(runs: dict[str, Ran]) -> None:
    assert len({ran.frozen["digest"] for ran in runs.values()}) == 1
    assert len({ran.trained["digest"] for ran in runs.values()}) == len(RIVALS)


@pytest.mark.parametrize("method", RIVALS)
def test_what_is_delivered_loads_whole_and_fine_tunes(method: str, runs: dict[str, Ran]) -> None:
    ran = runs[method]
    model_class = transformers.ElectraForMaskedLM if method == "mlm" else transformers.ElectraForPreTraining
    model, report = model_class.from_pretrained(ran.folder, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert model.config.architectures == [model_class.__name__]
    assert model.config.num_hidden_layers == ran.plan["config"]["num_layers"]
    assert ran.scores["failures"] == []
    assert ran.scores["rows"][0]["pretrained"]["n"] == 1


@pytest.mark.parametrize("method", RIVALS)
def test_the_registered_version_says_how_it_was_made_and_what_the_auxiliary_was_to_it(
    method: str, runs: dict[str, Ran]
) -> None:
    version = client().get_model_version("fast-electra", runs[method].version["version"])
    shape = "" if method in ("mlm", *MODEL_FREE) else " and the generator's shape"
    assert version.tags["method"] == method
    assert version.tags["auxiliary.role"] == f"gives the tokenizer{shape}"
    assert version.tags["corruption"] == ("none" if method == "mlm" else "online")
    assert {version.tags[name] for name in SCHEDULE_TAGS} == {"not used"}
    assert version.tags["gate.lineage"].startswith("pass: ")
    assert version.tags["gate.replay"].startswith("pass: fine-tuned again from the registry, seed 0: rte accuracy ")
    parent = client().get_run(runs[method].plan["mlflow_run_id"])
    assert parent.info.status == "FINISHED"
    assert client().get_run(version.run_id).data.tags["auxiliary.role"] == version.tags["auxiliary.role"]


@pytest.mark.parametrize("method", RIVALS)
def test_scores_on_held_out_text_are_those_of_what_the_model_does(method: str, runs: dict[str, Ran]) -> None:
    ran = runs[method]
    name, other = "heldout_rtd_loss", "heldout_masked_loss"
    if method == "mlm":
        name, other = other, name
    version = client().get_model_version("fast-electra", ran.version["version"])
    assert float(version.tags[name]) == ran.trained["scores"][name] > 0
    assert other not in version.tags
    last = ran.trained["curve"][-1]
    assert (name in last, other in last) == (True, False)
    assert ran.trained["scores"][name] == pytest.approx(last[name], rel=1e-6)  # finishing changes nothing
    assert ("AUC, replaced tokens" in ran.table) == ("Detection on held-out text" in ran.page) == (method != "mlm")
    assert ("main model: held-out masked loss" in ran.table) == (method == "mlm")
    assert f"method {method}" in ran.page


@pytest.mark.parametrize("method", RIVALS)
def test_the_plan_charges_each_method_for_what_it_runs(method: str, runs: dict[str, Ran]) -> None:
    """One layer of width 8 beside two of 32, 32 tokens a sequence; multiply-adds count twice, by hand."""
    flops, config = runs[method].trained["cost"]["flops"], runs[method].plan["config"]
    vocab = load_masked_lm(Path("auxiliary")).config.vocab_size
    num_tokens = NUM_STEPS * config["batch_size"] * 32
    # Embeddings to width, then per layer four matrices, two of the feed-forward, and the attention's two products.
    encoder = 2 * 8 * 32 + 2 * (2 * (4 * 32 * 32 + 2 * 32 * 64) + 4 * 32 * 32)
    auxiliary = 2 * (4 * 8 * 8 + 2 * 8 * 12) + 4 * 32 * 8 + 0.15 * 2 * (8 * 8 + 8 * vocab)
    detector = encoder + 2 * (32 * 32 + 32)
    joint = 3 * (detector + auxiliary)
    mlm = 3 * (encoder + 0.15 * 2 * (32 * 8 + 8 * vocab))
    expected = {"mlm": mlm, **dict.fromkeys(MODEL_FREE, 3 * detector)}.get(method, joint)
    assert flops["total"] == pytest.approx(expected * num_tokens)
    assert flops["auxiliary_reused"] == 0
    assert flops["charged"] == flops["total"]  # no method but fast_electra uses the auxiliary's weights
    assert flops["joint_total"] == pytest.approx(joint * num_tokens)
    assert flops["auxiliary"] == pytest.approx(3 * auxiliary * num_tokens if expected == joint else 0)
    assert flops["saving_fraction"] == pytest.approx(1 - expected / joint)
    assert runs[method].plan["costs"][0]["flops"] == flops


def test_a_generator_whose_embeddings_cannot_be_shared_is_refused_in_start(here: Path) -> None:
    message = (
        r"^auxiliary auxiliary: method electra_gdes shares token embeddings, but the main model's are 32 wide and .*"
    )
    with pytest.raises(ConfigError, match=message + "--embedding_size 8, another auxiliary, or --method electra_decou"):
        planning.begin_pretrain(
            {**GIVEN, "method": "electra_gdes", "embedding_size": 32}, flow="PretrainFlow", run_id="refused"
        )


def test_a_main_model_for_masked_words_takes_over_what_a_warm_start_says(here: Path) -> None:
    sizes = {"hidden_size": 8, "intermediate_size": 12, "num_heads": 2}
    config = resolve_pretrain({**GIVEN, **sizes, "method": "mlm", "warm_start": "layers"})
    auxiliary = load_masked_lm(Path("auxiliary"))
    counts = torch.arange(auxiliary.config.vocab_size).numpy()
    special = SpecialIds(cls=2, sep=3, mask=4, pad=0, all_special=(0, 1, 2, 3, 4))
    main_model = _start_main_model(config, auxiliary, special, counts=lambda size: counts, initial_model=None)
    theirs = auxiliary.base_model.state_dict()
    ours = main_model.base_model.state_dict()
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())
    assert main_model.get_output_embeddings().weight is main_model.get_input_embeddings().weight
    expected = torch.log((torch.from_numpy(counts) + 1).double() / (counts + 1).sum()).float()
    torch.testing.assert_close(main_model.get_output_embeddings().bias.detach(), expected)
