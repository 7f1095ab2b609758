"""Preset and given parameters become one checked config. The only merge there is."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from fast_electra_core.config import AuxiliaryConfig, PretrainConfig
from fast_electra_core.errors import ConfigError
from fast_electra_core.presets import AUXILIARY_PRESETS, PRETRAIN_PRESETS, preset_values


def resolve_pretrain(given: Mapping[str, Any]) -> PretrainConfig:
    """The config of PretrainFlow: the named preset, overridden by each given value that is not None.

    Raises:
        ConfigError: an unknown preset or parameter, or a value outside its range.
    """
    return PretrainConfig(**_merge(given, PRETRAIN_PRESETS, PretrainConfig))


def resolve_auxiliary(given: Mapping[str, Any]) -> AuxiliaryConfig:
    """The config of AuxiliaryFlow, likewise."""
    if given.get("vocab_size") is not None and given.get("tokenizer") not in (None, "train"):
        raise ConfigError(
            f"vocab_size has no effect with the given tokenizer {given['tokenizer']!r}; leave one of the two out"
        )
    return AuxiliaryConfig(**_merge(given, AUXILIARY_PRESETS, AuxiliaryConfig))


def _merge(
    given: Mapping[str, Any],
    presets: Mapping[str, Mapping[str, Any]],
    config_class: type[AuxiliaryConfig] | type[PretrainConfig],
) -> dict[str, Any]:
    known = {field.name for field in fields(config_class)}
    unknown = sorted(set(given) - known)
    if unknown:
        raise ConfigError(f"unknown parameter {unknown[0]!r}; known are {', '.join(sorted(known))}")
    values = {name: value for name, value in given.items() if value is not None}
    preset = values.pop("preset", "demo")
    return {**preset_values(preset, presets), "preset": preset, **values}
