"""Every knob is checked, counts, survives the way through JSON, and a given value wins. And the docs' examples run."""

import doctest
import importlib
import json
import math
import pkgutil
import re
from collections.abc import Callable
from dataclasses import FrozenInstanceError, fields, replace
from typing import Any

import pytest

import fast_electra_core
from fast_electra_core.config import AuxiliaryConfig, PretrainConfig, TrainingConfig
from fast_electra_core.errors import ConfigError, FastElectraError, check_choice
from fast_electra_core.method_knobs import FIXED, METHODS, MODEL_FREE
from fast_electra_core.presets import AUXILIARY_PRESETS, PRETRAIN_PRESETS, preset_values
from steps.config import resolve_auxiliary, resolve_compare, resolve_evaluate, resolve_pretrain, resolve_retrain

SHARED: dict[str, Any] = {
    "preset": "tiny", "corpus": "a.txt", "corpus_licence": "CC0-1.0", "text_field": "body", "on_bad_text": "skip",
    "heldout_fraction": 0.5,
    "shard_megabytes": 0.5, "sequence_length": 8, "attention": "document", "architecture": "modernbert",
    "num_layers": 1, "hidden_size": 128, "embedding_size": 64, "num_heads": 8, "intermediate_size": 1, "dropout": 0.0,
    "mask_fraction": 0.5, "masking": "spans", "keep_fraction": 0.15,
    "num_steps": 1, "batch_size": 1, "micro_batch_size": 32, "learning_rate": 1.0,
    "warmup_fraction": 0.0, "weight_decay": 0.0, "max_gradient_norm": 0.1, "precision": "fp32", "seed": 2**60 - 1,
    "processes_per_node": 2, "sharding": "fsdp", "group_timeout_seconds": 60.0,
    "max_skipped_steps": 0, "activation_checkpointing": True,
    "compile_layers": True, "keep_checkpoints": 1, "milestone_every_steps": 1000,
    "checkpoint_every_steps": 1, "log_every_steps": 1, "price_per_hour": 0.5, "store": "s3://b/p", "tracking_uri": "http://h",
    "experiment": "other",
}  # fmt: skip
AUXILIARY: dict[str, Any] = {
    "embedding_init": "cooccurrence", "tokenizer": "hub:x", "vocab_size": 256, "distill_from": "folder",
    "distill_share": 1.0, "distill_temperature": 1.0,
}  # fmt: skip
PRETRAIN: dict[str, Any] = {
    "warm_start": "layers", "initial_model": "folder",
    "method": "electra", "corruption": "offline", "num_nodes": 2, "auxiliary": "a,b",
    "max_auxiliary_fraction": 2.0, "auxiliary_shared_by": 2, "schedule": "step", "temperature_start": 3.0,
    "temperature_decay": 0.3, "temperature_end": 0.5, "rtd_weight": 10.0, "generator_learning_rate": 0.1,
    "ensemble_size": 2, "auxiliary_dropout": 0.9, "unigram_share": 1.0, "top_k": 1, "top_p": 0.1,
    "soft_target_share": 1.0, "consistency_weight": 7.0, "promote": "always", "promotion_margin": 0.0,
    "waive_gates": "finite",
    "glue": "folder", "tasks": "rte", "seeds": 1,
    "finetune_learning_rate": 1e-5, "finetune_batch_size": 1, "finetune_epochs": 0.5, "finetune_max_length": 512,
    "finetune_max_examples": 1, "layer_decay": 1.0, "untrained_baseline": False, "finetune_recipe": "modernbert",
    "finetune_grid": "1e-4,3e-4", "best_epoch": True, "mnli_transfer": True, "test_predictions": False,
    "keep_task_models": False,
}  # fmt: skip
CHANGES = [
    *((AuxiliaryConfig, name, value) for name, value in (SHARED | AUXILIARY).items()),
    *((PretrainConfig, name, value) for name, value in (SHARED | PRETRAIN).items()),
]
IDS = [f"{config_class.__name__}-{name}" for config_class, name, _ in CHANGES]


def start_of(name: str) -> dict[str, Any]:
    """What else must be given for another value of `name` to be allowed."""
    return {
        "architecture": {"embedding_size": 256},
        "mnli_transfer": {"tasks": "mnli"},
        "generator_learning_rate": {"method": "electra_decoupled"},
        "ensemble_size": {"auxiliary": "a,b"},
    }.get(name, {})


@pytest.mark.parametrize("module", [info.name for info in pkgutil.iter_modules(fast_electra_core.__path__)])
def test_the_examples_in_docstrings_are_true(module: str) -> None:
    result = doctest.testmod(importlib.import_module(f"fast_electra_core.{module}"))
    assert result.failed == 0


def test_every_field_is_changed_here() -> None:
    assert (SHARED | AUXILIARY).keys() == {field.name for field in fields(AuxiliaryConfig)}
    assert (SHARED | PRETRAIN).keys() == {field.name for field in fields(PretrainConfig)}


@pytest.mark.parametrize(("config_class", "name", "value"), CHANGES, ids=IDS)
def test_every_field_counts_in_the_digest(config_class: type[TrainingConfig], name: str, value: Any) -> None:
    before = config_class(**start_of(name))
    after = replace(before, **{name: value})
    assert getattr(after, name) == value != getattr(before, name)
    assert after.digest() != before.digest()


@pytest.mark.parametrize(("config_class", "name", "value"), CHANGES, ids=IDS)
def test_a_config_survives_the_way_through_json(config_class: type[TrainingConfig], name: str, value: Any) -> None:
    config = config_class(**{**start_of(name), name: value})
    assert config_class.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_the_digest_is_of_values_whatever_their_order() -> None:
    assert TrainingConfig.digest_of({"a": 1, "b": None}) == TrainingConfig.digest_of({"b": None, "a": 1})
    assert len(PretrainConfig().digest()) == 16
    assert PretrainConfig().digest() == PretrainConfig().digest()


def test_a_config_cannot_be_changed() -> None:
    with pytest.raises(FrozenInstanceError, match="cannot assign to field 'seed'"):
        PretrainConfig().seed = 1  # type: ignore[misc]


OUT_OF_RANGE = [
    *((name, 0.0, "must be > 0, got 0.0") for name in ("shard_megabytes", "learning_rate", "max_gradient_norm")),
    ("learning_rate", -1.0, "must be > 0, got -1.0"),
    ("price_per_hour", 0.0, "must be > 0, got 0.0"),
    *(
        (name, 0, "must be >= 1, got 0")
        for name in (
            "embedding_size", "num_heads", "intermediate_size", "num_steps", "batch_size",
            "micro_batch_size", "checkpoint_every_steps", "log_every_steps",
        )
    ),
    ("num_layers", 0, r"must be in \[1, 1000\], got 0"),
    ("num_layers", 1001, r"must be in \[1, 1000\], got 1001"),
    ("hidden_size", 0, "must be >= 1, got 0"),
    ("hidden_size", 255, r"must be a multiple of num_heads \(4\), got 255"),
    ("sequence_length", 7, "must be >= 8, got 7"),
    ("weight_decay", -0.1, "must be >= 0.0, got -0.1"),
    ("heldout_fraction", 0.0, r"must be in \(0, 0.5\], got 0.0"),
    ("heldout_fraction", 0.51, r"must be in \(0, 0.5\], got 0.51"),
    ("dropout", -0.1, r"must be in \[0, 1\), got -0.1"),
    ("dropout", 1.0, r"must be in \[0, 1\), got 1.0"),
    ("mask_fraction", 0.0, r"must be in \(0, 1\), got 0.0"),
    ("mask_fraction", 1.0, r"must be in \(0, 1\), got 1.0"),
    ("keep_fraction", -0.1, r"must be in \[0, 1\), got -0.1"),
    ("keep_fraction", 1.0, r"must be in \[0, 1\), got 1.0"),
    ("warmup_fraction", -0.1, r"must be in \[0, 1\), got -0.1"),
    ("warmup_fraction", 1.0, r"must be in \[0, 1\), got 1.0"),
    ("seed", -1, r"must be in \[0, 1.15292e\+18\), got -1"),
    ("seed", 2**60, r"must be in \[0, 1.15292e\+18\), got 1152921504606846976"),
    *((name, "  ", "must not be empty") for name in ("corpus", "text_field", "store", "tracking_uri", "experiment")),
]  # fmt: skip
OUT_OF_PRETRAIN_RANGE = [
    *(
        (name, value, f"must be > 0, got {value}")
        for name in (
            "temperature_start", "temperature_decay", "temperature_end", "rtd_weight", "max_auxiliary_fraction",
            "finetune_learning_rate", "finetune_epochs",
        )
        for value in (0.0, -1.0)
    ),
    *(
        (name, 0, "must be >= 1, got 0")
        for name in ("seeds", "finetune_batch_size", "finetune_max_examples", "top_k")
    ),
    ("num_nodes", 0, r"must be in \[1, 128\], got 0"),
    ("num_nodes", 129, r"must be in \[1, 128\], got 129"),  # as many as a batch has rows
    ("group_timeout_seconds", 0.5, r"must be >= 1, got 0.5"),
    ("processes_per_node", 0, r"must be in \[1, 128\], got 0"),
    ("max_skipped_steps", -1, "must be >= 0, got -1"),
    ("auxiliary_shared_by", 0, "must be >= 1, got 0"),
    ("auxiliary_dropout", -0.1, r"must be in \[0, 1\), got -0.1"),
    ("auxiliary_dropout", 1.0, r"must be in \[0, 1\), got 1.0"),
    *(
        (name, value, rf"must be in \[0, 1\], got {value}")
        for name in ("unigram_share", "soft_target_share")
        for value in (-0.1, 1.1)
    ),
    ("top_p", 0.0, r"must be in \(0, 1\], got 0.0"),
    ("top_p", 1.1, r"must be in \(0, 1\], got 1.1"),
    ("consistency_weight", -0.1, "must be >= 0.0, got -0.1"),
    ("promote", "if_beter", "must be one of never, if_better, always; got 'if_beter'. Did you mean 'if_better'"),
    ("promotion_margin", -0.1, "must be >= 0.0, got -0.1"),
    ("waive_gates", "finite,licenses", "must be one of finite, majority, .*; got 'licenses'. Did you mean 'licence'"),
    ("waive_gates", "replay:rte", "takes a task for majority alone, as in majority:rte, got 'replay:rte'"),
    ("waive_gates", "majority:", "takes a task for majority alone, as in majority:rte, got 'majority:'"),
    *(
        ("ensemble_size", size, rf"must be between 1 and the number of candidates \(1\), got {size}; name more with")
        for size in (0, 2)
    ),
    ("finetune_max_length", 7, r"must be in \[8, 512\], got 7"),
    ("finetune_max_length", 513, r"must be in \[8, 512\], got 513"),
    ("layer_decay", 0.0, r"must be in \(0, 1\], got 0.0"),
    ("layer_decay", 1.1, r"must be in \(0, 1\], got 1.1"),
    ("auxiliary", " , ", "must name at least one candidate"),
    ("tasks", "", "must name at least one of cola, sst2, mrpc"),
    ("tasks", "ax", "must name at least one of cola, sst2, mrpc"),
    ("finetune_grid", "1e-4,fast", "must be numbers, comma-separated, got 'fast'"),
    ("finetune_grid", "1e-4,-1", "must be > 0, got -1.0"),
    ("mnli_transfer", True, "needs mnli among the tasks, got 'cola,sst2,mrpc,rte'"),
]  # fmt: skip


def test_the_diagnostic_set_needs_mnli_and_a_source_that_has_it() -> None:
    assert PretrainConfig(tasks="mnli,ax", glue="folder").task_list() == ["mnli", "ax"]
    with pytest.raises(ConfigError, match="ax is answered by the models trained on mnli; add mnli to tasks"):
        PretrainConfig(tasks="rte,ax", glue="folder")
    with pytest.raises(ConfigError, match=r"tasks must be one of cola, .*, wnli; got 'ax'"):
        PretrainConfig(tasks="mnli,ax")


@pytest.mark.parametrize("glue", ["sample", "hub:nyu-mll/glue", "folder"])
@pytest.mark.parametrize("tasks", ["cola sst2", "cola  sst2", "cola, sst2 rte", "cola;sst2"])
def test_tasks_that_are_not_parted_by_commas_are_said_as_they_should_be(tasks: str, glue: str) -> None:
    with pytest.raises(ConfigError, match=rf"^tasks must be comma-separated, .*{tasks!r}. Give --tasks cola,sst2"):
        PretrainConfig(tasks=tasks, glue=glue)


def test_a_task_of_ones_own_may_have_a_blank_in_its_name() -> None:
    """Its name is its folder's."""
    assert PretrainConfig(tasks="my tickets,cola", glue="folder").task_list() == ["my tickets", "cola"]


def test_a_grid_and_a_rate_exclude_each_other() -> None:
    assert PretrainConfig(finetune_grid="1e-4, 3e-4").grid() == [1e-4, 3e-4]
    with pytest.raises(ConfigError, match="finetune_grid and finetune_learning_rate exclude each other"):
        PretrainConfig(finetune_grid="1e-4", finetune_learning_rate=1e-4)


def test_a_task_that_only_a_folder_can_have_is_left_to_the_folder() -> None:
    assert PretrainConfig(tasks="tickets", glue="folder").task_list() == ["tickets"]
    for glue in ("sample", "hub:nyu-mll/glue"):
        with pytest.raises(ConfigError, match=r"tasks must be one of .*; got 'tickets'"):
            PretrainConfig(tasks="tickets", glue=glue)


@pytest.mark.parametrize("config_class", [AuxiliaryConfig, PretrainConfig])
@pytest.mark.parametrize(("name", "value", "message"), OUT_OF_RANGE)
def test_values_out_of_range_are_refused(
    config_class: type[TrainingConfig], name: str, value: Any, message: str
) -> None:
    with pytest.raises(ConfigError, match=f"^{name} {message}"):
        config_class(**{name: value})


@pytest.mark.parametrize(("name", "value", "message"), OUT_OF_PRETRAIN_RANGE)
def test_values_out_of_range_are_refused_in_pre_training(name: str, value: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{name} {message}"):
        PretrainConfig(**{name: value})


def test_a_temperature_does_not_rise() -> None:
    """From 2, as it is by default, to 3: no schedule goes there, as no curriculum gets easier."""
    expected = r"^temperature_end must be <= temperature_start \(2\), got 3: .* Raise --temperature_start, or lower"
    with pytest.raises(ConfigError, match=expected):
        PretrainConfig(temperature_end=3.0)
    assert PretrainConfig(temperature_end=2.0).temperature_end == 2.0


def test_a_constant_temperature_may_lie_below_the_end_that_it_never_reaches() -> None:
    config = PretrainConfig(schedule="constant", temperature_start=0.5)
    assert (config.temperature_start, config.temperature_end) == (0.5, 1.0)


@pytest.mark.parametrize("name", [field.name for field in fields(PretrainConfig) if "float" in str(field.type)])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_must_be_finite(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"^{name} must be a finite number, got"):
        PretrainConfig(**{name: value})


@pytest.mark.parametrize("size", [255, 2**24 + 1])
def test_a_trained_vocabulary_has_256_entries_or_more_and_no_more_than_memory_holds(size: int) -> None:
    with pytest.raises(ConfigError, match=rf"^vocab_size must be in \[256, 1.67772e\+07\], got {size}"):
        AuxiliaryConfig(vocab_size=size)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("distill_share", 0.0, r"must be in \(0, 1\], got 0.0"),
        ("distill_share", 1.1, r"must be in \(0, 1\], got 1.1"),
        ("distill_temperature", 0.0, "must be > 0, got 0.0"),
    ],
)
def test_values_of_distillation_out_of_range_are_refused(name: str, value: float, message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{name} {message}"):
        AuxiliaryConfig(**{name: value})


def test_a_tokenizer_must_be_named() -> None:
    with pytest.raises(ConfigError, match=r"^tokenizer must not be empty; `train` trains one on the corpus"):
        AuxiliaryConfig(tokenizer=" ")


def test_a_batch_must_be_divisible_into_its_micro_batches() -> None:
    assert PretrainConfig(batch_size=12, micro_batch_size=4).micro_batch_size == 4
    with pytest.raises(ConfigError, match=r"batch_size must be divisible by micro_batch_size \(5\), got 12"):
        PretrainConfig(batch_size=12, micro_batch_size=5)


def test_a_generator_that_is_still_learning_cannot_corrupt_ahead() -> None:
    assert PretrainConfig(corruption="offline").method == "fast_electra"
    for method in ("electra", "electra_decoupled", "electra_gdes"):
        message = f"corruption must be online with method {method}, got offline: its generator"
        with pytest.raises(ConfigError, match=message):
            PretrainConfig(corruption="offline", method=method)


@pytest.mark.parametrize("method", MODEL_FREE)
def test_what_costs_nothing_is_not_drawn_ahead(method: str) -> None:
    message = f"corruption must be online with method {method}, got offline: drawing takes next to no time"
    with pytest.raises(ConfigError, match=message):
        PretrainConfig(corruption="offline", method=method)


@pytest.mark.parametrize("name", ["soft_target_share", "consistency_weight"])
def test_what_is_not_drawn_ahead_cannot_be_in_the_loss(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"{name} must be 0 with corruption offline, got 0\.5: one id per position"):
        PretrainConfig(corruption="offline", **{name: 0.5})


OF_THE_AUXILIARY = (
    "auxiliary_dropout", "unigram_share", "top_k", "top_p", "ensemble_size", "soft_target_share",
)  # fmt: skip


@pytest.mark.parametrize("method", [method for method in METHODS if method != "fast_electra"])
@pytest.mark.parametrize("name", OF_THE_AUXILIARY)
def test_what_shapes_the_auxiliarys_output_is_refused_where_it_has_none(method: str, name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} has no effect with method {method}; .*read it: fast_electra. Leave"):
        PretrainConfig(method=method, auxiliary="a,b", **{name: PRETRAIN[name]})


@pytest.mark.parametrize("method", METHODS)
def test_consistency_is_for_what_replaces_tokens_without_learning(method: str) -> None:
    if method in FIXED:
        assert PretrainConfig(method=method, consistency_weight=1.0).consistency_weight == 1.0
    else:
        with pytest.raises(ConfigError, match=f"consistency_weight has no effect with method {method}; .*fast_electra"):
            PretrainConfig(method=method, consistency_weight=1.0)


@pytest.mark.parametrize("method", MODEL_FREE)
@pytest.mark.parametrize(
    ("name", "value"),
    [("schedule", "exponential"), ("temperature_start", 2.0), ("top_p", 1.0), ("max_auxiliary_fraction", 0.5)],
)
def test_without_a_model_a_given_curriculum_or_price_is_refused_also_at_its_default(
    method: str, name: str, value: Any
) -> None:
    with pytest.raises(ConfigError, match=f"{name} has no effect with method {method}; the methods that read it: fast"):
        resolve_pretrain({"preset": "tiny", "method": method, name: value})
    assert resolve_pretrain({"preset": "tiny", "method": method, name: None}).method == method


def test_masked_language_modelling_has_nothing_to_corrupt_ahead() -> None:
    with pytest.raises(
        ConfigError, match=r"corruption must be online with method mlm, got offline: no tokens are repl"
    ):
        PretrainConfig(corruption="offline", method="mlm")


@pytest.mark.parametrize(
    ("name", "value", "readers"),
    [
        ("schedule", "linear", {"fast_electra"}),
        ("temperature_start", 3.0, {"fast_electra"}),
        ("temperature_decay", 0.5, {"fast_electra"}),
        ("temperature_end", 1.0, {"fast_electra"}),
        ("rtd_weight", 50.0, {*FIXED, "electra", "electra_decoupled", "electra_gdes"}),
        ("generator_learning_rate", 1e-4, {"electra_decoupled", "electra_gdes"}),
        ("max_auxiliary_fraction", 0.5, {"fast_electra", "electra", "electra_decoupled", "electra_gdes"}),
    ],
)
def test_a_knob_that_the_method_does_not_read_is_refused_with_both_names(
    name: str, value: Any, readers: set[str]
) -> None:
    """Also one given as it is by default: whoever gives it thinks that it counts."""
    for method in METHODS:
        given = {"method": method, name: value}
        if method in readers:
            assert resolve_pretrain(given).to_dict()[name] == value
            continue
        with pytest.raises(
            ConfigError, match=rf"{name} has no effect with method {method}; .* Leave --{name} out, or g"
        ):
            resolve_pretrain(given)


def test_a_knob_that_no_value_stands_for_is_refused_by_the_config_itself() -> None:
    with pytest.raises(ConfigError, match="generator_learning_rate has no effect with method fast_electra"):
        PretrainConfig(generator_learning_rate=1e-4)


def test_a_whole_start_and_a_warm_one_exclude_each_other_and_a_presets_gives_way() -> None:
    with pytest.raises(
        ConfigError, match=r"initial_model and warm_start exclude each other: .* starts from folder\. Le"
    ):
        resolve_pretrain({"initial_model": "folder", "warm_start": "embeddings"})
    assert resolve_pretrain({}).warm_start == "layers"
    assert resolve_pretrain({"initial_model": "folder"}).warm_start == "none"


def test_the_heads_of_a_modernbert_have_an_even_width_as_its_rotation_pairs_them() -> None:
    shape = {"architecture": "modernbert", "hidden_size": 20, "embedding_size": 20}
    with pytest.raises(
        ConfigError, match=r"hidden_size must be an even multiple of num_heads \(4\) in a modernbert, got 20"
    ):
        AuxiliaryConfig(**shape, num_heads=4)
    assert AuxiliaryConfig(**shape, num_heads=5).num_heads == 5


def test_a_modernbert_has_embeddings_of_its_own_width() -> None:
    with pytest.raises(ConfigError, match=r"embedding_size must equal hidden_size \(256\) in a modernbert, got 128"):
        PretrainConfig(architecture="modernbert")


@pytest.mark.parametrize(
    ("name", "value", "nearest"),
    [
        ("schedule", "exponental", "exponential"),
        ("schedule", "cosinus", "cosine"),
        ("method", "fastelectra", "fast_electra"),
        ("method", "electra_gdse", "electra_gdes"),
        ("corruption", "ofline", "offline"),
        ("tasks", "sst2,colaa", "cola"),
        ("on_bad_text", "skp", "skip"),
        ("precision", "bf_16", "bf16"),
        ("architecture", "modern_bert", "modernbert"),
        ("warm_start", "layer", "layers"),
        ("masking", "wholewords", "whole_words"),
        ("attention", "documents", "document"),
    ],
)
def test_an_unknown_name_is_refused_and_the_nearest_offered(name: str, value: Any, nearest: str) -> None:
    wrong = value.rpartition(",")[2]
    with pytest.raises(ConfigError, match=rf"^{name} must be one of .*; got '{wrong}'\. Did you mean '{nearest}'\?$"):
        PretrainConfig(**{name: value})


@pytest.mark.parametrize("resolve", [resolve_pretrain, resolve_auxiliary])
def test_an_unknown_preset_is_refused_and_the_nearest_offered(resolve: Any) -> None:
    with pytest.raises(ConfigError, match=r"preset must be one of tiny, demo, .*; got 'smal'. Did you mean 'small'?"):
        resolve({"preset": "smal"})


def test_where_nothing_is_near_nothing_is_offered() -> None:
    with pytest.raises(ConfigError, match=r"^tasks must be one of cola, sst2; got 'zzz'.$"):
        check_choice("tasks", "zzz", ["cola", "sst2"])


def test_an_unknown_start_of_the_embeddings_is_refused_and_the_nearest_offered() -> None:
    with pytest.raises(ConfigError, match=r"^embedding_init must be one of random, cooccurrence; got 'cooc.* 'cooccur"):
        AuxiliaryConfig(embedding_init="coocurrence")


def test_a_users_errors_are_value_errors_of_one_family() -> None:
    assert issubclass(ConfigError, FastElectraError)
    assert issubclass(FastElectraError, ValueError)


def test_lists_lose_blanks_and_repetitions_but_not_their_order() -> None:
    config = PretrainConfig(auxiliary=" b, a,,b ", tasks="rte, cola ,rte")
    assert config.auxiliary_list() == ["b", "a"]
    assert config.task_list() == ["rte", "cola"]


def test_milestones_are_checkpoints() -> None:
    message = r"milestone_every_steps must be a multiple of checkpoint_every_steps \(40\), got 60"
    with pytest.raises(ConfigError, match=message):
        PretrainConfig(checkpoint_every_steps=40, milestone_every_steps=60)


@pytest.mark.parametrize("preset", AUXILIARY_PRESETS)
def test_every_auxiliary_preset_is_a_valid_config(preset: str) -> None:
    config = resolve_auxiliary({"preset": preset})
    assert config.preset == preset
    assert {name: getattr(config, name) for name in AUXILIARY_PRESETS[preset]} == AUXILIARY_PRESETS[preset]


@pytest.mark.parametrize("preset", PRETRAIN_PRESETS)
def test_every_pretrain_preset_is_a_valid_config(preset: str) -> None:
    config = resolve_pretrain({"preset": preset})
    assert config.preset == preset
    assert {name: getattr(config, name) for name in PRETRAIN_PRESETS[preset]} == PRETRAIN_PRESETS[preset]


def test_the_presets_of_one_name_fit_each_other() -> None:
    assert list(AUXILIARY_PRESETS) == list(PRETRAIN_PRESETS)
    for preset in PRETRAIN_PRESETS:
        main, auxiliary = resolve_pretrain({"preset": preset}), resolve_auxiliary({"preset": preset})
        assert main.hidden_size == auxiliary.hidden_size
        assert main.embedding_size == auxiliary.embedding_size
        assert main.sequence_length == auxiliary.sequence_length
        assert 2 * auxiliary.num_layers <= main.num_layers


@pytest.mark.parametrize(
    ("preset", "expected"),
    [
        ("small", (12, 256, 128, 4, 0.15, 128, 128, 5e-4, 1_000_000)),
        ("base", (12, 768, 768, 12, 0.15, 512, 256, 2e-4, 766_000)),
        ("large", (24, 1024, 1024, 16, 0.25, 512, 2048, 2e-4, 400_000)),
    ],
)
def test_the_large_presets_are_electras_recipes(preset: str, expected: tuple[float, ...]) -> None:
    """arXiv 2003.10555, table 6."""
    config = resolve_pretrain({"preset": preset})
    assert (
        config.num_layers, config.hidden_size, config.embedding_size, config.num_heads, config.mask_fraction,
        config.sequence_length, config.batch_size, config.learning_rate, config.num_steps,
    ) == expected  # fmt: skip
    assert (config.rtd_weight, config.weight_decay, config.dropout) == (50.0, 0.01, 0.1)
    assert round(config.warmup_fraction * config.num_steps) == pytest.approx(10_000, rel=0.01)
    assert config.intermediate_size == 4 * config.hidden_size


def test_modernbert_base_has_the_originals_shape_and_an_auxiliary_of_a_third_of_its_depth() -> None:
    """The original's: AnswerDotAI/ModernBERT, yamls/modernbert/modernbert-base-pretrain.yaml."""
    main, auxiliary = (resolve({"preset": "modernbert_base"}) for resolve in (resolve_pretrain, resolve_auxiliary))
    for config in (main, auxiliary):
        assert (config.architecture, config.hidden_size, config.num_heads) == ("modernbert", 768, 12)
        assert (config.intermediate_size, config.dropout, config.learning_rate) == (1152, 0.0, 8e-4)
    assert (main.num_layers, auxiliary.num_layers) == (22, round(22 / 3))
    assert auxiliary.vocab_size == 50_368
    assert main.finetune_recipe == resolve_evaluate({"preset": "modernbert_base"}).finetune_recipe == "modernbert"
    # Warm-up over 3e9 tokens.
    assert main.warmup_fraction * main.num_steps * main.batch_size * main.sequence_length == pytest.approx(
        3e9, rel=0.01
    )


def test_without_a_preset_it_is_demo() -> None:
    assert resolve_pretrain({}) == resolve_pretrain({"preset": "demo"}) == resolve_pretrain({"preset": None})


def test_a_given_value_wins_over_the_preset_and_none_means_not_given() -> None:
    config = resolve_pretrain({"preset": "small", "num_steps": 5, "learning_rate": None})
    assert (config.num_steps, config.learning_rate, config.num_layers) == (5, 5e-4, 12)


@pytest.mark.parametrize(
    ("name", "value"),
    [("dropout", 0.0), ("weight_decay", 0.0), ("warmup_fraction", 0.0), ("seed", 0), ("untrained_baseline", False)],
)
def test_an_explicit_zero_is_an_answer(name: str, value: Any) -> None:
    config = resolve_pretrain({"preset": "small", name: value})
    assert getattr(config, name) == value
    assert type(getattr(config, name)) is type(value)


def test_an_explicit_zero_that_is_not_allowed_is_not_taken_for_no_answer() -> None:
    with pytest.raises(ConfigError, match="num_steps must be >= 1, got 0"):
        resolve_pretrain({"num_steps": 0})
    with pytest.raises(ConfigError, match="micro_batch_size must be >= 1, got 0"):
        resolve_auxiliary({"micro_batch_size": 0})


@pytest.mark.parametrize("resolve", [resolve_pretrain, resolve_auxiliary])
def test_an_unknown_parameter_is_refused_with_the_list_of_known_ones(resolve: Any) -> None:
    with pytest.raises(ConfigError, match=r"unknown parameter 'num_step'; known are .*num_steps"):
        resolve({"num_step": 3})


def test_a_vocabulary_size_without_effect_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"vocab_size has no effect with the given tokenizer 'vocab.txt'; leave one"):
        resolve_auxiliary({"tokenizer": "vocab.txt", "vocab_size": 9000})
    assert resolve_auxiliary({"tokenizer": "train", "vocab_size": 9000}).vocab_size == 9000
    assert resolve_auxiliary({"tokenizer": None, "vocab_size": 9000}).vocab_size == 9000
    assert resolve_auxiliary({"tokenizer": "vocab.txt", "vocab_size": None}).tokenizer == "vocab.txt"


def test_a_presets_values_are_a_copy() -> None:
    preset_values("tiny", PRETRAIN_PRESETS)["num_steps"] = 3
    assert preset_values("tiny", PRETRAIN_PRESETS)["num_steps"] == 10


def test_a_tracking_address_whose_brackets_do_not_match_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"tracking_uri is no address: its brackets do not match"):
        PretrainConfig(tracking_uri="http://[::1:5000")


@pytest.mark.parametrize("uri", ["http://user:hush@mlflow:5000", "postgresql://mlflow:hush@db/mlflow"])
def test_a_password_in_the_tracking_address_is_refused_and_not_repeated(uri: str) -> None:
    with pytest.raises(ConfigError, match="tracking_uri holds a password") as refusal:
        PretrainConfig(tracking_uri=uri)
    assert "hush" not in str(refusal.value)
    assert PretrainConfig(tracking_uri=uri.replace(":hush", "")).tracking_uri == uri.replace(":hush", "")


@pytest.mark.parametrize("resolve", [resolve_pretrain, resolve_retrain])
def test_a_waiver_of_a_task_that_is_not_scored_is_refused(resolve: Callable[[dict[str, Any]], PretrainConfig]) -> None:
    message = "the task of majority in waive_gates must be one of cola, mine; got 'mien'. Did you mean 'mine'"
    with pytest.raises(ConfigError, match=re.escape(message)):
        resolve({"tasks": "cola,mine", "glue": "folder", "waive_gates": "licence,majority:cola,majority:mien"})
    given = {"tasks": "cola,mine", "glue": "folder", "waive_gates": "licence,majority:cola,majority:mine"}
    assert resolve(given).waived_gates() == ["licence", "majority:cola", "majority:mine"]
    assert resolve({"preset": "laptop", "tasks": "cola"}).waived_gates() == ["majority:rte"]  # the preset's own


def test_a_comparison_beside_arms_of_ones_own_is_refused_as_nothing_of_it_would_be_read() -> None:
    assert resolve_compare({"arms": "electra; mlm", "comparison": None}).arms == "electra; mlm"
    assert resolve_compare({"arms": "", "comparison": "stability"}).comparison == "stability"
    with pytest.raises(
        ConfigError, match="comparison has no effect beside arms, which stand in place of all arms of 'st"
    ):
        resolve_compare({"arms": "electra; mlm", "comparison": "stability"})


def test_a_comparison_has_one_auxiliary_which_may_be_given_its_price_whatever_the_arms_are() -> None:
    config = resolve_compare({"arms": "uniform; bigram", "max_auxiliary_fraction": 2.0})
    assert config.max_auxiliary_fraction == 2.0


def test_a_comparison_refuses_what_no_arm_reads() -> None:
    message = "schedule has no effect with the methods of the arms: electra, mlm. Leave --schedule out"
    with pytest.raises(ConfigError, match=message):
        resolve_compare({"arms": "electra; mlm", "schedule": "cosine"})
    with pytest.raises(ConfigError, match=r"method has no effect where every arm names its own\. Leave --method out"):
        resolve_compare({"arms": "electra; mlm", "method": "uniform"})
    assert resolve_compare({"arms": "electra; fast_electra", "schedule": "cosine"}).schedule == "cosine"
    assert resolve_compare({"arms": "a: num_layers=2; mlm", "method": "uniform"}).method == "uniform"
