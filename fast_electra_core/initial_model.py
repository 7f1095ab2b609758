"""A main model that starts from another model's weights, whole: continual pre-training, domain transfer.

What of it is a knob of ours must be as the config says; everything else (activation, positions, local attention) is the
other model's own, so that it goes on as the model that it was.
"""

from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel

from fast_electra_core.config import ARCHITECTURES, PretrainConfig
from fast_electra_core.errors import CheckpointError, ConfigError
from fast_electra_core.models import build_discriminator, dropouts
from fast_electra_core.quiet import quiet

_SHAPE = {
    "num_layers": "num_hidden_layers",
    "hidden_size": "hidden_size",
    "embedding_size": "embedding_size",
    "num_heads": "num_attention_heads",
    "intermediate_size": "intermediate_size",
}
"""Our names of sizes, and transformers'."""


class Start(NamedTuple):
    """A main model before its first step."""

    model: PreTrainedModel
    has_head: bool
    """Whether the head is the other model's too; otherwise it is fresh."""


def initial_shape(folder: Path, config: PretrainConfig) -> PretrainedConfig:
    """The config of a main model that continues the one in the folder; its dropout is ours, and it has one output.

    Raises:
        ConfigError: it is of another architecture or size than config says, or has too few positions; names the
            parameters that would fit.
    """
    try:
        shape = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"its config cannot be read: {error}") from error
    if shape.model_type not in ARCHITECTURES:
        raise ConfigError(f"it is of type {shape.model_type!r}; a main model is one of {', '.join(ARCHITECTURES)}")
    found: dict[str, Any] = {"architecture": shape.model_type}
    found |= {name: getattr(shape, theirs, shape.hidden_size) for name, theirs in _SHAPE.items()}
    differing = [name for name, value in found.items() if value != getattr(config, name)]
    if differing:
        said = ", ".join(f"{name} is {found[name]} in it and {getattr(config, name)} here" for name in differing)
        raise ConfigError(f"{said}. Give {' '.join(f'--{name} {found[name]}' for name in differing)}")
    for name in ("sequence_length", "finetune_max_length"):
        if shape.max_position_embeddings < getattr(config, name):
            raise ConfigError(
                f"it has {shape.max_position_embeddings} positions, {name} is {getattr(config, name)}. "
                f"Give --{name} {shape.max_position_embeddings} or less"
            )
    shape.update(dropouts(shape.model_type, config.dropout))
    shape.num_labels = 1
    if shape.model_type == "modernbert":
        shape.classifier_pooling = "mean"  # as in models.encoder_config
    return shape


def start_from(folder: Path, shape: PretrainedConfig, *, seed: int) -> Start:
    """A main model of the shape with the encoder in the folder, and with its head if that is a whole RTD head; a fresh
    head is a function of the seed alone. Only safetensors are read, no code of the folder's is run.

    Raises:
        CheckpointError: weights of the encoder are missing, of other shapes, or unreadable.
    """
    model = build_discriminator(shape, seed=seed)
    loaded, report = _load(type(model), folder, shape)
    prefix = f"{model.base_model_prefix}."
    mismatched = [key if isinstance(key, str) else key[0] for key in report["mismatched_keys"]]  # or with its shapes
    unusable = sorted({*report["missing_keys"], *mismatched})
    of_encoder = [name for name in unusable if name.startswith(prefix)]
    if of_encoder:
        raise CheckpointError(
            f"weights of its encoder are missing or of another shape: {', '.join(of_encoder[:4])} ({len(of_encoder)})"
        )
    if unusable:  # of a head in pieces, or of a masked-LM head that happens to fit, nothing is taken
        model.base_model.load_state_dict(loaded.base_model.state_dict())
    else:
        model.load_state_dict(loaded.state_dict())
    return Start(model, has_head=not unusable)


def _load(
    model_class: type[PreTrainedModel], folder: Path, shape: PretrainedConfig
) -> tuple[PreTrainedModel, dict[str, Any]]:
    try:
        with torch.random.fork_rng(devices=[]), quiet():
            return model_class.from_pretrained(  # type: ignore[no-any-return]
                folder,
                config=shape,
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
                dtype=torch.float32,
                ignore_mismatched_sizes=True,  # a head of another width is left behind
            )
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        raise CheckpointError(f"it cannot be loaded: {error}") from error
