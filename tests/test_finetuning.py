"""Fine-tuning: the recipe's numbers by hand, what is loaded, what is learnt; and the step around it."""

import json
import random
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from toys import change_tensors, save_detector
from transformers import BertConfig, BertForMaskedLM

from fast_electra_core import finetuning, task_batches
from fast_electra_core.classifier import build_classifier
from fast_electra_core.config import PretrainConfig
from fast_electra_core.data import SpecialIds
from fast_electra_core.errors import CheckpointError, ConfigError, DataError, NonFiniteLossError
from fast_electra_core.finetuning import (
    FinetuneResult,
    _build_optimizer,
    _is_degenerate,
    _predict,
    _rate_factor,
    finetune,
    layer_factor,
)
from fast_electra_core.glue import Example, TaskData
from fast_electra_core.models import build_discriminator, encoder_config
from fast_electra_core.recipes import FinetuneSettings
from fast_electra_core.sample_tasks import sample_task
from fast_electra_core.task_batches import EncodedExamples, ExampleEncoder, length_batches
from fast_electra_core.tokenizer import load_tokenizer, train_tokenizer
from steps.finetune import run
from steps.store import Store
from steps.tasks import check_tasks


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved ELECTRA of 2 layers × 32 with its tokenizer."""
    shape = {"num_hidden_layers": 2, "intermediate_size": 64, "max_position_embeddings": 64}
    return save_detector(tmp_path_factory.mktemp("encoder"), **shape)


def tuned(encoder: Path, data: TaskData, **changes: Any) -> FinetuneResult:
    settings = FinetuneSettings(**{"max_length": 32, "epochs": 1, **changes})
    num_labels = {"stsb": 1, "mnli": 3}.get(data.name, 2)
    model = build_classifier(encoder, num_labels=num_labels, seed=settings.seed)
    return finetune(model, load_tokenizer(encoder), data, settings=settings)


def test_the_rate_falls_by_one_power_of_decay_per_layer_below_the_head() -> None:
    factors = {
        name: layer_factor(name, num_layers=3, decay=0.5)
        for name in (
            "classifier.dense.weight",
            "electra.encoder.layer.2.output.dense.bias",
            "electra.encoder.layer.0.output.dense.bias",
            "electra.embeddings_project.weight",
            "electra.embeddings.word_embeddings.weight",
            "model.layers.1.mlp.weight",
        )
    }
    assert list(factors.values()) == [1.0, 0.5, 0.125, 0.0625, 0.0625, 0.25]


def test_every_parameter_is_in_one_group_and_only_matrices_decay(encoder: Path) -> None:
    model = build_classifier(encoder, num_labels=2, seed=0)
    optimizer, factors = _build_optimizer(model, FinetuneSettings(layer_decay=0.5))
    grouped = [p for group in optimizer.param_groups for p in group["params"]]
    assert len(grouped) == len(list(model.parameters()))
    assert sorted(set(factors)) == [0.125, 0.25, 0.5, 1.0]
    for group in optimizer.param_groups:
        assert {p.ndim > 1 for p in group["params"]} == {group["weight_decay"] == 0.01}


def test_the_optimizer_is_the_recipes(encoder: Path) -> None:
    model = build_classifier(encoder, num_labels=2, seed=0)
    optimizer, _ = _build_optimizer(model, FinetuneSettings(betas=(0.8, 0.95), weight_decay=0.3))
    assert {(group["betas"], group["eps"]) for group in optimizer.param_groups} == {((0.8, 0.95), 1e-6)}
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.0, 0.3}


def test_the_rate_rises_for_a_tenth_of_the_steps_and_falls_linearly() -> None:
    assert [_rate_factor(step, 20, 0.1) for step in (0, 1, 2, 11, 19)] == pytest.approx([0.5, 1, 1, 0.5, 1 / 18])
    assert _rate_factor(0, 1, 0.1) == 1.0


def test_batches_hold_every_index_once_and_little_padding() -> None:
    rng = random.Random(0)
    lengths = [int(rng.lognormvariate(2.5, 0.6)) + 3 for _ in range(4000)]
    batches = length_batches(lengths, batch_size=32, rng=rng)
    assert sorted(index for batch in batches for index in batch) == list(range(4000))
    assert {len(batch) for batch in batches} == {32}
    padded = sum(len(batch) * max(lengths[index] for index in batch) for batch in batches)
    assert 1 - sum(lengths) / padded < 0.1


def test_batches_of_all_lengths_are_mixed_in_time() -> None:
    lengths = list(range(320))
    batches = length_batches(lengths, batch_size=32, rng=random.Random(0))
    assert sorted(min(batch) for batch in batches) == list(range(0, 320, 32))
    assert [min(batch) for batch in batches] != sorted(min(batch) for batch in batches)


def test_examples_that_stand_together_in_the_file_are_drawn_apart() -> None:
    """Files are often sorted by label; here every length is the same, so that none of the order comes of that."""
    batches = length_batches([7] * 3200, batch_size=32, rng=random.Random(0))
    halves = [sum(index < 1600 for index in batch) for batch in batches]
    assert all(0 < first_half < 32 for first_half in halves)


def test_the_encoders_weights_are_really_loaded(encoder: Path) -> None:
    saved = load_file(encoder / "model.safetensors")
    loaded = build_classifier(encoder, num_labels=2, seed=0).state_dict()
    names = [name for name in saved if name.startswith("electra.")]
    assert len(names) > 30
    for name in names:
        assert torch.equal(loaded[name], saved[name]), name


def test_an_untrained_classifier_shares_no_weight_matrix_with_the_saved_one(encoder: Path) -> None:
    saved = load_file(encoder / "model.safetensors")
    fresh = build_classifier(encoder, num_labels=2, seed=0, untrained=True).state_dict()
    matrices = [name for name in saved if name.startswith("electra.") and saved[name].ndim > 1]
    assert matrices
    assert not any(torch.equal(fresh[name], saved[name]) for name in matrices)


def test_the_head_follows_from_the_seed_and_the_global_generator_is_left_alone(encoder: Path) -> None:
    before = torch.random.get_rng_state()
    heads = [build_classifier(encoder, num_labels=3, seed=seed).classifier.dense.weight for seed in (0, 0, 1)]
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])
    assert torch.equal(before, torch.random.get_rng_state())


def copy_with(encoder: Path, folder: Path, change: Any) -> Path:
    shutil.copytree(encoder, folder, dirs_exist_ok=True)
    change_tensors(folder, change)
    return folder


def test_missing_encoder_weights_are_refused(encoder: Path, tmp_path: Path) -> None:
    name = "electra.encoder.layer.1.output.dense.weight"
    folder = copy_with(encoder, tmp_path, lambda weights: weights.pop(name))
    with pytest.raises(CheckpointError, match=f"lacks encoder weights {name}"):
        build_classifier(folder, num_labels=2, seed=0)


def test_encoder_weights_the_config_does_not_know_are_refused(encoder: Path, tmp_path: Path) -> None:
    name = "electra.encoder.layer.2.output.dense.weight"
    folder = copy_with(encoder, tmp_path, lambda weights: weights.update({name: torch.zeros(32, 64)}))
    with pytest.raises(CheckpointError, match=f"has unknown encoder weights {name}"):
        build_classifier(folder, num_labels=2, seed=0)


def test_weights_of_another_shape_are_refused(encoder: Path, tmp_path: Path) -> None:
    name = "electra.encoder.layer.1.output.dense.weight"
    folder = copy_with(encoder, tmp_path, lambda weights: weights.update({name: torch.zeros(8, 8)}))
    with pytest.raises(CheckpointError, match=f"has wrongly shaped encoder weights {name}"):
        build_classifier(folder, num_labels=2, seed=0)


@pytest.mark.parametrize("num_labels", [1, 2, 3])
def test_a_modernbert_detector_gives_its_encoder_and_keeps_its_head(tmp_path: Path, num_labels: int) -> None:
    settings = PretrainConfig(
        architecture="modernbert", num_layers=2, hidden_size=32, embedding_size=32, num_heads=2, intermediate_size=32
    )
    special_ids = SpecialIds(cls=2, sep=3, mask=4, pad=0, all_special=(0, 1, 2, 3, 4))
    detector = build_discriminator(encoder_config(settings, vocab_size=60, special_ids=special_ids), seed=0)
    detector.save_pretrained(tmp_path)
    model = build_classifier(tmp_path, num_labels=num_labels, seed=1)
    for name, weight in detector.base_model.state_dict().items():
        assert torch.equal(model.base_model.state_dict()[name], weight), name
    assert model.classifier.weight.shape == (num_labels, 32)
    heads = [module.head.dense.weight for module in (model, build_classifier(tmp_path, num_labels=num_labels, seed=1))]
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], detector.head.dense.weight)


def test_a_pickle_is_not_read(encoder: Path, tmp_path: Path) -> None:
    shutil.copytree(encoder, tmp_path, dirs_exist_ok=True)
    torch.save(load_file(tmp_path / "model.safetensors"), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="holds no encoder that can be fine-tuned"):
        build_classifier(tmp_path, num_labels=2, seed=0)


def test_weights_that_are_cut_short_are_refused(encoder: Path, tmp_path: Path) -> None:
    shutil.copytree(encoder, tmp_path, dirs_exist_ok=True)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="holds no encoder that can be fine-tuned"):
        build_classifier(tmp_path, num_labels=2, seed=0)


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds no encoder that can be fine-tuned"):
        build_classifier(tmp_path, num_labels=2, seed=0)


def test_another_family_of_encoders_is_loaded_too(encoder: Path, tmp_path: Path) -> None:
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = BertConfig(vocab_size=300, max_position_embeddings=64, type_vocab_size=1, **sizes)
    BertForMaskedLM(config).save_pretrained(tmp_path)  # has no pooler
    model = build_classifier(tmp_path, num_labels=2, seed=0)
    data = sample_task("rte", num_train=40, num_dev=10)  # pairs, to an encoder without segments
    result = finetune(model, load_tokenizer(encoder), data, settings=FinetuneSettings(epochs=1, max_length=64))
    assert result.num_steps == 2


def test_a_tiny_model_learns_sentiment(encoder: Path) -> None:
    data = sample_task("sst2")
    result = tuned(encoder, data, epochs=6, learning_rate=4e-3, layer_decay=1.0)
    assert result.scores["accuracy"] > 0.7  # majority: 0.54
    assert result.curve[-1]["loss"] < 0.5 < result.curve[0]["loss"]
    assert not result.degenerate
    assert result.padding_fraction < 0.1
    assert result.num_steps == 6 * 32  # ceil(1000 / 32) = 32 per epoch
    assert len(result.predictions["dev"]) == 200


def test_the_same_seed_gives_the_same_result_and_another_seed_another(encoder: Path) -> None:
    data = sample_task("sst2", num_train=100, num_dev=20)
    results = [tuned(encoder, data, seed=seed) for seed in (0, 0, 1)]
    assert results[0].curve == results[1].curve
    assert results[0].predictions == results[1].predictions
    assert results[0].curve != results[2].curve


def test_predictions_are_in_the_order_of_the_examples_and_padding_does_not_change_them(encoder: Path) -> None:
    model, tokenizer = build_classifier(encoder, num_labels=1, seed=0), load_tokenizer(encoder)
    examples = [Example("the interface is always good " * n, None, 0.0) for n in (3, 1, 4, 2)]
    encode = ExampleEncoder(model, tokenizer, 32)
    found = _predict(model, encode, encode(examples), is_regression=True)
    with torch.inference_mode():
        alone = [model(**tokenizer(e.text_a, return_tensors="pt")).logits.item() for e in examples]
    assert found == pytest.approx(alone, abs=1e-6)


def test_pairs_have_segments_and_are_cut_to_the_longest_allowed(encoder: Path) -> None:
    encode = ExampleEncoder(build_classifier(encoder, num_labels=2, seed=0), load_tokenizer(encoder), 16)
    encoded = encode([Example("the code is good " * 9, "the code is bad " * 9, 1), Example("a", "b", 0)])
    assert encoded.lengths[0] == 16
    batch = encode.batch(encoded, [0, 1])
    assert batch["input_ids"].shape == (2, 16)
    assert batch["attention_mask"].sum(dim=1).tolist() == [16, encoded.lengths[1]]
    assert sorted(set(batch["token_type_ids"][0].tolist())) == [0, 1]


def test_pairs_are_doubled_in_the_other_order_for_mrpc_but_not_for_rte(encoder: Path) -> None:
    doubled = tuned(encoder, sample_task("mrpc", num_train=32, num_dev=8), batch_size=8)
    single = tuned(encoder, sample_task("rte", num_train=32, num_dev=8), batch_size=8)
    assert (doubled.num_steps, doubled.num_train) == (8, 32)
    assert (single.num_steps, single.num_train) == (4, 32)


def test_fewer_examples_and_part_of_an_epoch(encoder: Path) -> None:
    data = sample_task("cola", num_train=64, num_dev=8)
    result = tuned(encoder, data, max_examples=32, epochs=0.5, batch_size=8)
    assert (result.num_train, result.num_steps) == (32, 2)


def test_both_splits_of_mnli_are_scored(encoder: Path) -> None:
    result = tuned(encoder, sample_task("mnli", num_train=32, num_dev=10))
    assert set(result.scores) == {"accuracy", "accuracy_mismatched"}
    assert set(result.predictions) == {"matched", "mismatched"}


def test_a_regression_predicts_numbers(encoder: Path) -> None:
    result = tuned(encoder, sample_task("stsb", num_train=32, num_dev=10))
    assert set(result.scores) == {"pearson", "spearman"}
    assert all(isinstance(value, float) for value in result.predictions["dev"])


def test_one_class_for_every_example_is_called_degenerate(encoder: Path) -> None:
    data = sample_task("sst2", num_train=64, num_dev=20)
    all_good = TaskData(data.spec, [example._replace(label=1) for example in data.train], data.dev)
    assert tuned(encoder, all_good, learning_rate=5e-3, epochs=3).degenerate


@pytest.mark.parametrize(
    ("task", "predictions", "labels", "is_degenerate"),
    [
        ("sst2", [1, 1, 1], [0, 1, 1], True),
        ("sst2", [1, 1, 1], [1, 1, 1], True),
        ("sst2", [1, 0, 1], [1, 1, 1], False),
        ("stsb", [2.0, 2.04, 2.01], [0.0, 2.0, 5.0], True),  # less than a hundredth of the labels' range
        ("stsb", [2.0, 2.06, 2.01], [0.0, 2.0, 5.0], False),
    ],
)
def test_degenerate_is_one_class_or_for_a_regression_nearly_one_number(
    task: str, predictions: list[Any], labels: list[float], is_degenerate: bool
) -> None:
    data = TaskData(sample_task(task).spec, [], {"dev": [Example("a", None, label) for label in labels]})
    assert _is_degenerate(data, {"dev": predictions}) == is_degenerate


def test_a_loss_that_is_not_a_number_stops_the_run(encoder: Path) -> None:
    with pytest.raises(NonFiniteLossError, match=r"fine-tuning became nan .* lower finetune_learning_rate"):
        tuned(encoder, sample_task("sst2", num_train=64, num_dev=8), learning_rate=float("inf"), batch_size=8)


@pytest.mark.parametrize("task", ["sst2", "stsb"])
def test_weights_that_the_last_step_made_no_numbers_give_no_score(task: str, encoder: Path) -> None:
    """No loss comes behind it. The largest of no numbers is the first class, and there is no correlation with them."""
    data = sample_task(task, num_train=32, num_dev=8)
    model = build_classifier(encoder, num_labels=1 if data.spec.is_regression else 2, seed=0)

    def after(step: int, row: dict[str, float]) -> None:
        if step + 1 == row["num_steps"]:
            torch.nn.init.constant_(next(model.parameters()), float("nan"))

    settings = FinetuneSettings(epochs=1, batch_size=16, max_length=32)
    with pytest.raises(NonFiniteLossError, match="answers is not finite; lower finetune_learning_rate"):
        finetune(model, load_tokenizer(encoder), data, settings=settings, on_metrics=after)


def test_sequences_beyond_the_models_positions_are_refused(encoder: Path) -> None:
    with pytest.raises(ConfigError, match="finetune_max_length must be <= 64, the model's positions, got 128"):
        tuned(encoder, sample_task("sst2", num_train=8, num_dev=8), max_length=128)


def test_progress_is_reported(encoder: Path) -> None:
    seen: list[tuple[int, dict[str, float]]] = []
    data = sample_task("sst2", num_train=64, num_dev=8)
    finetune(
        build_classifier(encoder, num_labels=2, seed=0),
        load_tokenizer(encoder),
        data,
        settings=FinetuneSettings(epochs=1, batch_size=16, max_length=32),
        on_metrics=lambda step, values: seen.append((step, values)),
    )
    assert [step for step, _ in seen] == [0, 1, 2, 3]
    assert set(seen[0][1]) == {"loss", "learning_rate", "num_steps"}


# The step around it.


def config_of(**changes: Any) -> dict[str, Any]:
    small = {"finetune_epochs": 1.0, "finetune_max_length": 32, "finetune_max_examples": 64, "tasks": "sst2"}
    return PretrainConfig(**(small | changes)).to_dict()


def done(encoder: Path, store: Path, task: str = "sst2", **changes: Any) -> dict[str, Any]:
    """One job with these changes of the config, in a store of its own."""
    job = {"task": task, "seed": changes.pop("seed", 0), "untrained": changes.pop("untrained", False), "rate": None}
    config = config_of(tasks=task, **changes)
    digest = check_tasks(PretrainConfig(**config))[task]["digest"]
    return run(config, encoder_folder=encoder, job=job, store=Store(str(store)), key="finetuned", digest=digest)


def test_the_step_returns_a_plain_dict(encoder: Path, tmp_path: Path) -> None:
    found = done(encoder, tmp_path, seed=3, untrained=True)
    assert json.loads(json.dumps(found)) == found
    assert (found["task"], found["seed"], found["untrained"], found["num_train"]) == ("sst2", 3, True, 64)
    assert found["num_dev"] == {"dev": 200}
    assert found["majority"] == {"accuracy": 0.54}
    assert set(found["scores"]) == set(found["majority"])


def test_a_job_that_was_done_is_not_done_again(encoder: Path, tmp_path: Path) -> None:
    first = done(encoder, tmp_path)
    assert done(Path("/nowhere"), tmp_path) == first


def test_every_metric_of_the_mismatched_split_has_its_majority(encoder: Path, tmp_path: Path) -> None:
    found = done(encoder, tmp_path, "mnli")
    assert set(found["scores"]) == set(found["majority"]) == {"accuracy", "accuracy_mismatched"}


@pytest.mark.parametrize(
    ("knob", "value"),
    [
        ("finetune_recipe", "modernbert"),
        ("finetune_learning_rate", 1e-3),
        ("finetune_batch_size", 16),
        ("finetune_epochs", 2.0),
        ("finetune_max_length", 8),
        ("finetune_max_examples", 48),
        ("layer_decay", 0.5),
    ],
)
def test_every_knob_of_fine_tuning_changes_its_course(
    encoder: Path, tmp_path: Path, knob: str, value: float | str
) -> None:
    curves = [
        done(encoder, tmp_path / str(index), **changes)["curve"] for index, changes in enumerate(({}, {knob: value}))
    ]
    assert curves[0] != curves[1]


def test_data_that_changed_since_the_start_is_refused(encoder: Path, tmp_path: Path) -> None:
    job = {"task": "sst2", "seed": 0, "untrained": False, "rate": None}
    with pytest.raises(DataError, match="task sst2 of sample changed since the run began"):
        run(config_of(), encoder_folder=encoder, job=job, store=Store(str(tmp_path)), key="k", digest="0" * 16)


def test_the_best_epoch_is_the_one_that_is_kept(encoder: Path) -> None:
    data = sample_task("sst2", num_train=200, num_dev=100)
    result = tuned(encoder, data, epochs=5, learning_rate=2e-2, layer_decay=1.0, is_best_epoch=True)
    assert len(result.epoch_scores) == 5
    assert result.scores["accuracy"] == max(each["accuracy"] for each in result.epoch_scores)
    assert tuned(encoder, data, epochs=1).epoch_scores == []


def test_of_epochs_that_are_equally_good_the_last_is_kept_whatever_comes_after(
    encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three and a half epochs of two steps: scored after each, and at the end."""
    model = build_classifier(encoder, num_labels=2, seed=0)
    scores, states = iter([0.2, 0.9, 0.9, 0.1, 0.9]), []

    def score(*_: Any) -> dict[str, float]:
        states.append({name: value.clone() for name, value in model.state_dict().items()})
        return {"accuracy": next(scores)}

    monkeypatch.setattr(finetuning, "_score", score)
    settings = FinetuneSettings(max_length=32, epochs=3.5, batch_size=8, learning_rate=1e-2, is_best_epoch=True)
    data = sample_task("sst2", num_train=16, num_dev=8)
    result = finetune(model, load_tokenizer(encoder), data, settings=settings)
    assert [each["accuracy"] for each in result.epoch_scores] == [0.2, 0.9, 0.9, 0.1]
    weights = [each["classifier.out_proj.weight"] for each in states]
    assert len({tuple(each.flatten().tolist()) for each in weights[:4]}) == 4
    assert torch.equal(weights[4], weights[2])


def test_texts_without_labels_are_answered_as_those_with_labels(encoder: Path) -> None:
    data = sample_task("rte", num_train=32, num_dev=20)
    blind = [example._replace(label=None) for example in data.dev["dev"]]
    model = build_classifier(encoder, num_labels=2, seed=0)
    settings = FinetuneSettings(epochs=1, max_length=32)
    result = finetune(model, load_tokenizer(encoder), replace(data, test={"test": blind}), settings=settings)
    assert result.test_predictions == {"test": result.predictions["dev"]}


def test_what_was_tokenized_is_read_again_and_nothing_changes(
    encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = build_classifier(encoder, num_labels=2, seed=0), load_tokenizer(encoder)
    examples = sample_task("rte", num_train=20, num_dev=2).train
    plain = ExampleEncoder(model, tokenizer, 64)(examples)
    cached = ExampleEncoder(model, tokenizer, 64, cache=tmp_path)
    cached(examples)
    monkeypatch.setattr(cached, "tokenizer", None)  # a second tokenizing would fail
    again = cached(examples)
    assert {name: column.tolist() for name, column in again.columns.items()} == {
        name: column.tolist() for name, column in plain.columns.items()
    }
    assert again.lengths == plain.lengths == [len(tokenizer(e.text_a, e.text_b)["input_ids"]) for e in examples]
    assert len(list(tmp_path.iterdir())) == 1
    ExampleEncoder(model, tokenizer, 16, cache=tmp_path)(examples)
    assert len(list(tmp_path.iterdir())) == 2  # another length is another file
    ExampleEncoder(model, train_tokenizer(iter(["other words"] * 20), vocab_size=300), 64, cache=tmp_path)(examples)
    assert len(list(tmp_path.iterdir())) == 3  # so is another tokenizer
    for pair in (("ka", "mora"), ("kamo", "ra")):
        cached_pair = ExampleEncoder(model, tokenizer, 64, cache=tmp_path)([Example(*pair, 0)])
        assert cached_pair.columns["input_ids"].tolist() == tokenizer(*pair)["input_ids"]


def test_the_shorter_sequence_of_a_batch_is_filled_up_with_the_tokenizers_padding(encoder: Path) -> None:
    """Which is 1 in a RoBERTa: its positions are told by it."""
    encode = ExampleEncoder(build_classifier(encoder, num_labels=2, seed=0), load_tokenizer(encoder), 64)
    encode.tokenizer.pad_token = "[MASK]"
    starts, ids = np.array([0, 3, 4, 6]), np.arange(11, 17, dtype=np.int32)
    columns = {"input_ids": ids, "token_type_ids": np.ones(6, np.int32)}
    batch = encode.batch(EncodedExamples(columns, starts, [0, 0, 0]), [2, 0])
    assert batch["input_ids"].tolist() == [[15, 16, encode.tokenizer.mask_token_id], [11, 12, 13]]
    assert batch["token_type_ids"].tolist() == [[1, 1, 0], [1, 1, 1]]
    assert batch["attention_mask"].tolist() == [[1, 1, 0], [1, 1, 1]]


def test_what_is_tokenized_in_parts_is_what_is_tokenized_at_once(
    encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = build_classifier(encoder, num_labels=2, seed=0), load_tokenizer(encoder)
    examples = sample_task("rte", num_train=20, num_dev=2).train
    monkeypatch.setattr(task_batches, "TOKENIZED_AT_ONCE", 7)
    found = ExampleEncoder(model, tokenizer, 16)(examples)
    for index, example in enumerate(examples):
        one = tokenizer(example.text_a, example.text_b, truncation=True, max_length=16)
        span = slice(found.starts[index], found.starts[index + 1])
        for name in ("input_ids", "token_type_ids"):
            assert found.columns[name][span].tolist() == one[name]
