"""Preset and given parameters become one checked config. The only merge there is.

What is given comes first, then MLFLOW_TRACKING_URI, then the preset, then the fields' defaults.
"""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from fast_electra_core.arms import CompareConfig, list_arms
from fast_electra_core.config import AuxiliaryConfig, EvaluateConfig, PretrainConfig, RunConfig
from fast_electra_core.errors import ConfigError, check_choice
from fast_electra_core.method_knobs import check_is_read, is_read
from fast_electra_core.presets import AUXILIARY_PRESETS, EVALUATE_PRESETS, PRETRAIN_PRESETS, preset_values
from fast_electra_core.retraining import RetrainConfig
from steps.metaflow_settings import setting

_PRESETS: Mapping[type[RunConfig], Mapping[str, Mapping[str, Any]]] = {
    AuxiliaryConfig: AUXILIARY_PRESETS,
    PretrainConfig: PRETRAIN_PRESETS,
    CompareConfig: PRETRAIN_PRESETS,
    RetrainConfig: PRETRAIN_PRESETS,
    EvaluateConfig: EVALUATE_PRESETS,
}
_OF_A_RECIPE = ("finetune_learning_rate", "finetune_epochs", "layer_decay")


def resolve_pretrain(given: Mapping[str, Any]) -> PretrainConfig:
    """The config of PretrainFlow: the named preset, overridden by each given value that is not None.

    Raises:
        ConfigError: an unknown preset or parameter, a value outside its range, or one that the method does not read.
    """
    config = PretrainConfig(**_merge(given, PretrainConfig))
    _check_all_read(given, config)
    return config


def resolve_auxiliary(given: Mapping[str, Any]) -> AuxiliaryConfig:
    """The config of AuxiliaryFlow, likewise."""
    named = {name for name, value in given.items() if value is not None}
    for name in ("distill_share", "distill_temperature"):
        if name in named and not given.get("distill_from"):
            raise ConfigError(f"{name} has no effect without distill_from; name a model there, or leave --{name} out")
    for name in ("tokenizer", "vocab_size"):
        if name in named and given.get("distill_from"):
            raise ConfigError(
                f"{name} has no effect with distill_from: the tokenizer is that of {given['distill_from']}. "
                f"Leave --{name} out"
            )
    if given.get("vocab_size") is not None and given.get("tokenizer") not in (None, "train"):
        raise ConfigError(
            f"vocab_size has no effect with the given tokenizer {given['tokenizer']!r}; leave one of the two out"
        )
    return AuxiliaryConfig(**_merge(given, AuxiliaryConfig))


def resolve_compare(given: Mapping[str, Any]) -> CompareConfig:
    """The config of CompareFlow, likewise; the presets are PretrainFlow's."""
    if given.get("comparison") is not None and given.get("arms"):
        raise ConfigError(
            f"comparison has no effect beside arms, which stand in place of all arms of {given['comparison']!r} and of "
            "its grid; leave one of the two out. --arm_grid multiplies arms of your own"
        )
    config = CompareConfig(**_merge(given, CompareConfig))
    arms = list_arms(config)
    if given.get("method") is not None and all("method" in arm.values for arm in arms):
        raise ConfigError("method has no effect where every arm names its own. Leave --method out")
    methods = dict.fromkeys(config.of_arm(arm).method for arm in arms)
    for name, value in given.items():
        if name == "max_auxiliary_fraction":  # one auxiliary is chosen for all arms, whatever their methods
            continue
        if value is not None and not any(is_read(name, method) for method in methods):
            raise ConfigError(
                f"{name} has no effect with the methods of the arms: {', '.join(methods)}. Leave --{name} out"
            )
    return config


def resolve_retrain(given: Mapping[str, Any]) -> RetrainConfig:
    """The config of RetrainFlow, likewise; the presets are PretrainFlow's."""
    config = RetrainConfig(**_merge(given, RetrainConfig))
    _check_all_read(given, config)
    return config


def resolve_evaluate(given: Mapping[str, Any]) -> EvaluateConfig:
    """The config of EvaluateFlow, likewise."""
    return EvaluateConfig(**_merge(given, EvaluateConfig))


def default_text(name: str, config_class: type[RunConfig]) -> str:
    """What a parameter is where it is not given, as --help says it: `[0.1]`, or by preset `[2 for tiny; else 5]`; empty
    where that is nothing in every preset."""
    (default,) = [field.default for field in fields(config_class) if field.name == name]
    presets: dict[str, list[str]] = {}
    for preset, values in _PRESETS[config_class].items():
        presets.setdefault(_as_given(values.get(name, default)), []).append(preset)
    usual = presets.pop(_as_given(default), [])
    told = [f"{value or 'none'} for {', '.join(names)}" for value, names in presets.items()]
    if usual:
        told.append(f"else {_as_given(default) or 'none'}" if told else _as_given(default))
    return f"[{'; '.join(told)}]" if any(told) else ""


def _as_given(value: Any) -> str:
    """As one would write it on the command line."""
    if value is None:
        return ""
    return str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)


def _check_all_read(given: Mapping[str, Any], config: PretrainConfig) -> None:
    for name, value in given.items():
        if value is not None:
            check_is_read(name, config.method)
    if given.get("waive_gates"):  # a preset waives rte whatever the tasks are
        for task in [each.partition(":")[2] for each in config.waived_gates() if ":" in each]:
            check_choice("the task of majority in waive_gates", task, config.scored_tasks())


def _merge(given: Mapping[str, Any], config_class: type[RunConfig]) -> dict[str, Any]:
    known = {field.name for field in fields(config_class)} - config_class.LEFT_OUT
    unknown = sorted(set(given) - known)
    if unknown:
        raise ConfigError(f"unknown parameter {unknown[0]!r}; known are {', '.join(sorted(known))}")
    values = {name: value for name, value in given.items() if value is not None}
    if server := setting("MLFLOW_TRACKING_URI"):
        values.setdefault("tracking_uri", server)
    preset = values.pop("preset", config_class.preset)
    base = preset_values(preset, _PRESETS[config_class])
    if "finetune_recipe" in values:  # a recipe that was asked for is not to be overridden by the preset
        base = {name: value for name, value in base.items() if name not in _OF_A_RECIPE}
    if values.get("finetune_grid"):
        base.pop("finetune_learning_rate", None)
    if values.get("initial_model"):  # what the preset would take over from the auxiliary gives way
        base.pop("warm_start", None)
    return {**base, "preset": preset, **values}
