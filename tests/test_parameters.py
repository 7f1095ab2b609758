"""Every knob is there once, does something, and is read by someone."""

import ast
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pytest
from flow_walker import load_flow

from fast_electra_core.arms import CompareConfig
from fast_electra_core.config import AuxiliaryConfig, EvaluateConfig, PretrainConfig
from fast_electra_core.errors import ConfigError
from fast_electra_core.fields import describe_fields
from fast_electra_core.method_knobs import METHODS
from fast_electra_core.retraining import RetrainConfig
from steps.config import (
    default_text,
    resolve_auxiliary,
    resolve_compare,
    resolve_evaluate,
    resolve_pretrain,
    resolve_retrain,
)

ROOT = Path(__file__).resolve().parent.parent
SHARED = {
    "preset": "laptop",
    "corpus": "text.txt",
    "corpus_licence": "CC0-1.0",
    "text_field": "body",
    "on_bad_text": "skip",
    "heldout_fraction": 0.25,
    "shard_megabytes": 3.5,
    "sequence_length": 40,
    "attention": "document",
    "architecture": "electra",
    "num_layers": 3,
    "hidden_size": 256,
    "embedding_size": 256,
    "num_heads": 8,
    "intermediate_size": 77,
    "dropout": 0.3,
    "mask_fraction": 0.4,
    "masking": "spans",
    "keep_fraction": 0.15,
    "num_steps": 7,
    "batch_size": 6,
    "micro_batch_size": 2,
    "activation_checkpointing": True,
    "compile_layers": True,
    "learning_rate": 1e-5,
    "warmup_fraction": 0.5,
    "weight_decay": 0.2,
    "max_gradient_norm": 3.0,
    "precision": "fp32",
    "seed": 9,
    "checkpoint_every_steps": 3,
    "log_every_steps": 4,
    "price_per_hour": 2.5,
    "processes_per_node": 2,
    "sharding": "fsdp",
    "group_timeout_seconds": 60.0,
    "max_skipped_steps": 1,
    "keep_checkpoints": 5,
    "milestone_every_steps": 9000,
    "store": "elsewhere",
    "tracking_uri": "sqlite:///other.db",
    "experiment": "other",
}
AUXILIARY = {
    **SHARED,
    "tokenizer": "vocab.txt",
    "vocab_size": 999,
    "embedding_init": "random",
    "distill_from": "folder",
    "distill_share": 0.9,
    "distill_temperature": 3.0,
}
SCORING = {
    "glue": "glue_data",
    "tasks": "cola",
    "seeds": 4,
    "untrained_baseline": False,
    "finetune_recipe": "modernbert",
    "finetune_learning_rate": 1e-6,
    "finetune_grid": "1e-4,3e-4",
    "finetune_batch_size": 5,
    "finetune_epochs": 0.5,
    "finetune_max_length": 33,
    "finetune_max_examples": 10,
    "layer_decay": 0.5,
    "best_epoch": True,
    "mnli_transfer": True,
    "test_predictions": False,
    "keep_task_models": False,
}
PRETRAIN = {
    **SHARED,
    **SCORING,
    "warm_start": "embeddings",
    "initial_model": "folder",
    "method": "electra",
    "corruption": "offline",
    "num_nodes": 2,
    "auxiliary": "folder",
    "max_auxiliary_fraction": 0.5,
    "auxiliary_shared_by": 3,
    "schedule": "linear",
    "temperature_start": 3.0,
    "temperature_decay": 0.7,
    "temperature_end": 0.5,
    "rtd_weight": 20.0,
    "generator_learning_rate": 1e-5,
    "ensemble_size": 2,
    "auxiliary_dropout": 0.2,
    "unigram_share": 0.3,
    "top_k": 9,
    "top_p": 0.5,
    "soft_target_share": 0.4,
    "consistency_weight": 5.0,
    "promote": "never",
    "promotion_margin": 0.02,
    "waive_gates": "majority:rte,replay",
}
WHERE = {name: SHARED[name] for name in ("on_bad_text", "store", "tracking_uri", "experiment")}
EVALUATE = {
    **SCORING,
    **WHERE,
    "preset": "laptop",
    "model": "folder",
    "untrained_baseline": True,
    "keep_task_models": True,
}
RETRAIN = {
    "min_new_tokens": 5,
    "continue_steps": 8,
    "replay_fraction": 0.5,
    "curriculum": "continued",
    "max_auxiliary_drift": 0.5,
    "lock_minutes": 5.0,
    "wait_for_lock_seconds": 9.0,
}
NEEDED_WITH: dict[str, dict[str, Any]] = {
    # A modernbert, which the demo preset is, wants both alike.
    "hidden_size": {"embedding_size": 256},
    "embedding_size": {"hidden_size": 256},
    "mnli_transfer": {"tasks": "mnli"},
    "distill_share": {"distill_from": "folder"},
    "distill_temperature": {"distill_from": "folder"},
    # What the preset would take over from the auxiliary gives way.
    "initial_model": {"warm_start": "none"},
    "generator_learning_rate": {"method": "electra_decoupled"},
    "ensemble_size": {"auxiliary": "a,b"},
    # What the preset says of these gives way to a recipe, or to a grid, that was asked for.
    "finetune_recipe": {"finetune_learning_rate": None, "finetune_epochs": None, "layer_decay": None},
    "finetune_grid": {"finetune_learning_rate": None},
}
Config = type[AuxiliaryConfig] | type[PretrainConfig] | type[EvaluateConfig]
Resolve = Callable[[dict[str, Any]], Any]


def parameters_of(flow: type) -> dict[str, Any]:
    found = dict(flow._get_parameters())  # type: ignore[attr-defined]
    return {name: each for name, each in found.items() if not each.IS_CONFIG_PARAMETER}  # the profile is no knob


def given_to(parameter: Any) -> dict[str, Any]:
    """What the flow's source gives to Parameter(...)."""
    return dict(parameter._override_kwargs)


FLOWS = [
    pytest.param("pretrain_flow", "PretrainFlow", PretrainConfig, id="pretrain"),
    pytest.param("auxiliary_flow", "AuxiliaryFlow", AuxiliaryConfig, id="auxiliary"),
    pytest.param("evaluate_flow", "EvaluateFlow", EvaluateConfig, id="evaluate"),
    pytest.param("retrain_flow", "RetrainFlow", RetrainConfig, id="retrain"),
]


@pytest.mark.parametrize("file, name, config", FLOWS)
def test_a_parameter_has_its_fields_type_and_words_and_no_default(file: str, name: str, config: Config) -> None:
    given = {key: given_to(value) for key, value in parameters_of(getattr(load_flow(file), name)).items()}
    written = {
        each.name: each.type.__name__ if isinstance(each.type, type) else str(each.type) for each in fields(config)
    }
    types = {name: kind.removesuffix(" | None") for name, kind in written.items()}
    assert {key: each["type"].__name__ for key, each in given.items()} == types
    assert [key for key, each in given.items() if each["default"] is not None] == []
    files = (ROOT / "fast_electra_core" / name for name in ("config.py", "retraining.py"))
    source = "".join("".join(file.read_text(encoding="utf-8").split()) for file in files)
    for key, each in given.items():
        assert len(each["help"]) > 10, key
        words = each["help"].removesuffix(default_text(key, config))
        assert f'"""{"".join(words.split())}"""' in source, key


@pytest.mark.parametrize(
    ("name", "config", "text"),
    [
        ("temperature_start", PretrainConfig, "[2]"),
        ("keep_task_models", PretrainConfig, "[false for tiny, base, large, modernbert_base; else true]"),
        ("micro_batch_size", PretrainConfig, "[64 for modernbert_base; else none]"),
        ("generator_learning_rate", PretrainConfig, ""),
        ("finetune_grid", EvaluateConfig, ""),
        ("seeds", EvaluateConfig, "[2 for tiny, demo; 3 for laptop; else 5]"),
        ("embedding_init", AuxiliaryConfig, "[cooccurrence for demo, laptop; else random]"),
        ("preset", EvaluateConfig, "[small]"),
    ],
)
def test_help_says_what_a_parameter_is_where_it_is_not_given(name: str, config: Config, text: str) -> None:
    assert default_text(name, config) == text
    kind = {PretrainConfig: "pretrain", AuxiliaryConfig: "auxiliary", EvaluateConfig: "evaluate"}[config]
    flow = getattr(load_flow(f"{kind}_flow"), f"{kind.title()}Flow")
    told = given_to(parameters_of(flow)[name])["help"]
    assert told.endswith(f" {text}" if text else ".")


@pytest.mark.parametrize("file, name, config", FLOWS)
def test_what_help_says_is_what_holds(file: str, name: str, config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing but the preset is given."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    resolve = {
        PretrainConfig: resolve_pretrain, AuxiliaryConfig: resolve_auxiliary, EvaluateConfig: resolve_evaluate,
        RetrainConfig: resolve_retrain,
    }[config]  # fmt: skip
    for preset in ("tiny", "demo", "laptop", "small", "base", "large", "modernbert_base"):
        values = resolve({"preset": preset}).to_dict()
        for key in describe_fields(config):
            if key == "preset" or (said := default_text(key, config)) == "":
                continue
            told = {}
            for value, _, presets in (part.partition(" for ") for part in said[1:-1].split("; ")):
                told |= dict.fromkeys(presets.split(", ") if presets else ["else"], value)
            expected = told.get(preset, told.get("else", "").removeprefix("else "))
            actual = values[key]
            if actual in (None, ""):
                assert expected == "none", (key, preset)
            elif isinstance(actual, bool | str):
                assert expected == (actual if isinstance(actual, str) else str(actual).lower()), (key, preset)
            else:
                assert float(expected) == actual, (key, preset)


@dataclass
class Base:
    size: int = 1
    """Of the base."""
    rate: float | None = None
    """One
    rate."""


@dataclass
class Derived(Base):
    size: int = 2
    name: str = ""
    """A name."""
    rate: float | None = 0.5
    """Another rate."""


@dataclass
class Untold(Base):
    colour: str = "red"


def test_a_field_is_told_by_its_own_docstring_or_by_that_of_the_field_it_overrides() -> None:
    assert describe_fields(Derived) == {
        "size": (int, "Of the base."),
        "rate": (float, "Another rate."),
        "name": (str, "A name."),
    }
    assert describe_fields(Base)["rate"] == (float, "One rate.")


def test_a_field_without_a_docstring_is_refused() -> None:
    with pytest.raises(LookupError, match="fields without a docstring in Untold: colour"):
        describe_fields(Untold)


@pytest.mark.parametrize(
    "resolve, values, name",
    [
        *(pytest.param(resolve_pretrain, PRETRAIN, name, id=f"pretrain-{name}") for name in PRETRAIN),
        *(pytest.param(resolve_auxiliary, AUXILIARY, name, id=f"auxiliary-{name}") for name in AUXILIARY),
        *(pytest.param(resolve_evaluate, EVALUATE, name, id=f"evaluate-{name}") for name in EVALUATE),
        *(pytest.param(resolve_retrain, RETRAIN, name, id=f"retrain-{name}") for name in RETRAIN),
    ],
)
def test_every_parameter_changes_the_config(resolve: Resolve, values: dict[str, Any], name: str) -> None:
    others = NEEDED_WITH.get(name, {})
    before = resolve(dict.fromkeys(values)).to_dict()
    after = resolve({**dict.fromkeys(values), **others, name: values[name]}).to_dict()
    assert after[name] == values[name] != before[name]
    if name != "preset":
        changed = {key for key in after if after[key] != before[key]}
        assert name in changed
        assert changed <= {name, *others}


@pytest.mark.parametrize(
    "config, values", [(PretrainConfig, PRETRAIN), (AuxiliaryConfig, AUXILIARY), (EvaluateConfig, EVALUATE)]
)
def test_the_values_above_cover_every_field(config: Config, values: dict[str, Any]) -> None:
    assert set(values) == {field.name for field in fields(config)}
    assert {*PRETRAIN, *RETRAIN} == {field.name for field in fields(RetrainConfig)}


def fields_read() -> Iterator[str]:
    """The field of each `config.field`, `settings.field` and `config["field"]` outside the config itself."""
    for path in [*(ROOT / "steps").rglob("*.py"), *(ROOT / "fast_electra_core").rglob("*.py")]:
        if path.name in ("config.py", "presets.py"):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) in ("config", "settings"):
                yield node.attr
            if (
                isinstance(node, ast.Subscript)
                and ast.unparse(node.value) in ("config", "plan['config']")
                and isinstance(node.slice, ast.Constant)
            ):
                yield node.slice.value


@pytest.mark.parametrize("config", [PretrainConfig, AuxiliaryConfig, EvaluateConfig, RetrainConfig])
def test_every_field_of_a_config_is_read_somewhere(config: Config) -> None:
    read = set(fields_read())
    through_a_method = {"auxiliary", "tasks", "finetune_grid", "corpus_licence", "continue_steps", "curriculum"}
    assert {"auxiliary_list", "task_list", "grid", "licence", "continued"} <= read
    label = {"preset"}  # its effect is in the other fields
    unread = {field.name for field in fields(config)} - read - through_a_method - label
    assert unread == set(), unread


@pytest.mark.parametrize("config", [RetrainConfig, CompareConfig])
@pytest.mark.parametrize("name", ["corruption", "num_nodes"])
def test_help_says_where_alone_a_value_is_taken_that_this_flow_refuses(name: str, config: Config) -> None:
    assert "in PretrainFlow" in describe_fields(config)[name].text


def test_help_of_a_retraining_names_the_methods_that_it_takes() -> None:
    def is_taken(method: str) -> bool:
        try:
            return resolve_retrain({"preset": "tiny", "method": method}).method == method
        except ConfigError:
            return False

    taken = {method for method in METHODS if is_taken(method)}
    assert taken == {"fast_electra", "uniform", "unigram", "bigram"}
    assert taken == set(METHODS) & set(re.findall(r"\w+", describe_fields(RetrainConfig)["method"].text))


def test_what_a_comparison_would_not_read_is_no_parameter_of_it() -> None:
    """It registers nothing, so nothing is promoted, gated or kept to be registered."""
    unread = {"keep_task_models", "promote", "promotion_margin", "waive_gates"}
    assert unread == set(describe_fields(PretrainConfig)) - set(describe_fields(CompareConfig))
    with pytest.raises(ConfigError, match="unknown parameter 'promote'"):
        resolve_compare({"promote": "never"})
    assert resolve_compare({"preset": "demo"}).keep_task_models is False
