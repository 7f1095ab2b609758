"""Building the models, and running a masked language model's head on the selected positions only.

Shapes: B sequences, L tokens per sequence, N selected tokens, V vocabulary, D width.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from transformers import (
    ElectraConfig,
    ElectraForMaskedLM,
    ElectraForPreTraining,
    ModernBertConfig,
    ModernBertForMaskedLM,
    ModernBertForTokenClassification,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_layers import GradientCheckpointingLayer

from fast_electra_core.config import TrainingConfig
from fast_electra_core.data import SpecialIds
from fast_electra_core.documents import attention_mask
from fast_electra_core.errors import AuxiliaryError, ConfigError
from fast_electra_core.last_layer import can_skip, last_layer_at
from fast_electra_core.selection import Selection

_EMBEDDING_SPREAD = 0.1


_KINDS_OF_LAYERS = 64
"""All layers of an architecture share what is compiled, once for each width, batch and mode; torch stops at 8."""


def layers_of(module: nn.Module) -> list[nn.Module]:
    """The layers of all encoders in the module, in order."""
    return [each for each in module.modules() if isinstance(each, GradientCheckpointingLayer)]  # of all transformers'


def compile_layers(module: nn.Module, *, backend: str = "inductor") -> None:
    """From now on each layer of the module's encoders runs as torch.compile's backend makes it, whole or not at all.

    Layer by layer, since those of a model share what is compiled: a deep one takes no longer than a flat one.
    """
    # Else torch cuts what is compiled within DDP at the ends of its buckets, of 25 MB: a layer of width 1024 in three.
    # The gradients come layer by layer anyway, so there is as much to exchange meanwhile.
    torch._dynamo.config.optimize_ddp = False
    for layer in layers_of(module):
        layer.compile(backend=backend, fullgraph=True, dynamic=False, recompile_limit=_KINDS_OF_LAYERS)


def encoder_config(config: TrainingConfig, *, vocab_size: int, special_ids: SpecialIds) -> PretrainedConfig:
    """transformers' config of the encoder that `config` describes.

    There are at least 512 positions, so that fine-tuning may use longer sequences than pre-training did.
    """
    sizes = {
        "vocab_size": vocab_size,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "intermediate_size": config.intermediate_size,
        "max_position_embeddings": max(512, config.sequence_length),
        "pad_token_id": special_ids.pad,
    }
    if config.architecture == "electra":
        return ElectraConfig(
            **sizes, **dropouts(config.architecture, config.dropout), embedding_size=config.embedding_size
        )
    return ModernBertConfig(
        **sizes,
        **dropouts(config.architecture, config.dropout),
        cls_token_id=special_ids.cls,
        sep_token_id=special_ids.sep,
        bos_token_id=special_ids.cls,
        eos_token_id=special_ids.sep,
        # Sequences are short enough for every layer to attend to all of them.
        global_attn_every_n_layers=1,
        # Nothing in replaced token detection asks the first position for a summary of the sequence.
        classifier_pooling="mean",
        num_labels=1,
    )


def dropouts(architecture: str, dropout: float) -> dict[str, float]:
    """transformers' names of an architecture's dropouts, hidden and attention, each with this value."""
    names = ["hidden_dropout_prob", "attention_probs_dropout_prob"]
    if architecture == "modernbert":
        names = ["embedding_dropout", "mlp_dropout", "attention_dropout"]
    return dict.fromkeys(names, dropout)


def build_discriminator(config: PretrainedConfig, *, seed: int) -> PreTrainedModel:
    """A main model with an RTD head (dense, activation, dense to 1), its weights a function of the seed alone.

    transformers has no class for ModernBERT with this head; its token classifier with one label is the same thing.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if config.model_type == "electra":
            return ElectraForPreTraining(config)
        return ModernBertForTokenClassification(config)


def detector_logits(discriminator: PreTrainedModel, input_ids: Tensor, documents: Tensor | None = None) -> Tensor:
    """Logits (B, L), positive for "replaced", of unpadded input_ids (B, L), whose tokens see their own document of
    documents (B, L) alone, or the whole sequence."""
    mask = attention_mask(discriminator.config, documents)
    logits: Tensor = discriminator(input_ids=input_ids, attention_mask=mask).logits
    return logits.squeeze(-1) if logits.ndim == 3 else logits  # ModernBERT's are (B, L, 1)


def build_masked_lm(config: PretrainedConfig, *, seed: int) -> PreTrainedModel:
    """A masked language model, its output matrix tied to its embeddings, its weights a function of the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ElectraForMaskedLM(config) if config.model_type == "electra" else ModernBertForMaskedLM(config)


@torch.no_grad()
def set_embeddings(model: PreTrainedModel, embeddings: Tensor) -> None:
    """Overwrite the token embeddings with embeddings (V, D), centred and scaled to a standard deviation of 0.1."""
    centred = embeddings - embeddings.mean(dim=0)
    model.get_input_embeddings().weight.copy_(centred * (_EMBEDDING_SPREAD / centred.std()))


@torch.no_grad()
def warm_start(discriminator: PreTrainedModel, auxiliary: PreTrainedModel, *, with_layers: bool) -> None:
    """Copy the auxiliary's embeddings and, if asked for, its layers into the lowest layers of the main model.

    Raises: as check_warm_start.
    """
    check_warm_start(discriminator, auxiliary, with_layers=with_layers)
    ours = discriminator.base_model.state_dict()
    for name, weight in _shared_weights(auxiliary, with_layers):
        ours[name].copy_(weight)


def check_warm_start(discriminator: PreTrainedModel, auxiliary: PreTrainedModel, *, with_layers: bool) -> None:
    """Every weight that warm_start would copy has its place; the models may be on the meta device.

    Raises:
        ConfigError: the two are of different architectures or widths, or the auxiliary has more layers.
    """
    heads = auxiliary.config.num_attention_heads
    if with_layers and discriminator.config.num_attention_heads != heads:
        raise ConfigError(
            f"warm_start does not fit: the auxiliary has {heads} attention heads, the main model "
            f"{discriminator.config.num_attention_heads}. Give --num_heads {heads}, or --warm_start embeddings"
        )
    ours = discriminator.base_model.state_dict()
    for name, weight in _shared_weights(auxiliary, with_layers):
        if name not in ours or ours[name].shape != weight.shape:
            found = tuple(ours[name].shape) if name in ours else "missing"
            raise ConfigError(
                f"warm_start does not fit: {name} is {tuple(weight.shape)} in the auxiliary and {found} in the main "
                f"model. Give {_fitting_shape(auxiliary, with_layers)}, or --warm_start none"
            )


def _fitting_shape(auxiliary: PreTrainedModel, with_layers: bool) -> str:
    """The parameters of a main model that can take over the auxiliary's weights."""
    config = auxiliary.config
    is_modernbert = config.model_type == "modernbert"
    flags = ["--architecture modernbert" if is_modernbert else "--architecture electra"]
    if not is_modernbert:
        flags.append(f"--embedding_size {getattr(config, 'embedding_size', config.hidden_size)}")
    if with_layers or is_modernbert:  # ModernBERT's embeddings are as wide as its layers
        flags.append(f"--hidden_size {config.hidden_size}")
    if with_layers:
        intermediate_size = getattr(config, "intermediate_size", None) or config.hidden_dim  # DistilBERT's name
        flags += [f"--intermediate_size {intermediate_size}", f"--num_layers {config.num_hidden_layers} or more"]
    return " ".join(flags)


def _shared_weights(auxiliary: PreTrainedModel, with_layers: bool) -> list[tuple[str, Tensor]]:
    weights = auxiliary.base_model.state_dict().items()
    return [(n, w) for n, w in weights if n.startswith("embeddings") or (with_layers and "layer" in n)]


@torch.no_grad()
def set_output_bias(model: PreTrainedModel, counts: npt.NDArray[np.int64]) -> None:
    """Set the masked language model's output bias to the log of the unigram frequencies (V,), one added to each count:
    it starts as the unigram model instead of having to learn to be it. A head that has no bias stays as it is."""
    frequencies = (counts + 1) / (counts + 1).sum()
    bias = model.get_output_embeddings().bias
    if bias is not None:
        bias.copy_(torch.from_numpy(np.log(frequencies)))


def _electra_head(model: Any, hidden: Tensor) -> Tensor:
    return model.generator_lm_head(model.generator_predictions(hidden))  # type: ignore[no-any-return]


def _bert_head(model: Any, hidden: Tensor) -> Tensor:
    return model.cls(hidden)  # type: ignore[no-any-return]


def _roberta_head(model: Any, hidden: Tensor) -> Tensor:
    return model.lm_head(hidden)  # type: ignore[no-any-return]


def _distilbert_head(model: Any, hidden: Tensor) -> Tensor:
    transformed = model.vocab_layer_norm(model.activation(model.vocab_transform(hidden)))
    return model.vocab_projector(transformed)  # type: ignore[no-any-return]


def _modernbert_head(model: Any, hidden: Tensor) -> Tensor:
    return model.decoder(model.head(hidden))  # type: ignore[no-any-return]


def _deberta_head(model: Any, hidden: Tensor) -> Tensor:
    if model.legacy:
        return model.cls(hidden)  # type: ignore[no-any-return]
    return model.lm_predictions(hidden, model.get_input_embeddings())  # type: ignore[no-any-return]


MASKED_LM_HEADS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "electra": _electra_head,
    "bert": _bert_head,
    "roberta": _roberta_head,
    "distilbert": _distilbert_head,
    "modernbert": _modernbert_head,
    "deberta": _deberta_head,
    "deberta-v2": _deberta_head,
}
"""Head of each family of masked language models, by transformers' `model_type`: (N, D) -> (N, V)."""


def masked_logits(
    model: PreTrainedModel, input_ids: Tensor, selection: Selection, documents: Tensor | None = None
) -> Tensor:
    """Logits (N, V) of the selected positions, row-major: equal to `model(input_ids).logits[is_selected]`, but the
    vocabulary head, most of a small model's cost, runs on the N selected rows alone, and so does, without gradients and
    up to rounding, most of the last layer.

    input_ids (B, L) without padding; documents (B, L) as detector_logits has them.

    Raises:
        AuxiliaryError: a model type whose head is not known.
    """
    return vocabulary_logits(model, masked_hidden(model, input_ids, selection, documents))


def masked_hidden(
    model: PreTrainedModel, input_ids: Tensor, selection: Selection, documents: Tensor | None = None
) -> Tensor:
    """The encoder's output (N, D) at the selected positions; arguments as masked_logits has them."""
    # With gradients too it would be exact; joint ELECTRA stays as its authors have it, so that what is compared with it
    # is what others have.
    mask = attention_mask(model.config, documents)
    if torch.is_grad_enabled() or not can_skip(model):
        return selection.pick(model.base_model(input_ids=input_ids, attention_mask=mask).last_hidden_state)
    with last_layer_at(model, selection.columns, documents):
        hidden: Tensor = model.base_model(input_ids=input_ids, attention_mask=mask).last_hidden_state  # (B, K, D)
    return hidden.flatten(0, 1)[selection.places]


def vocabulary_logits(model: PreTrainedModel, hidden: Tensor) -> Tensor:
    """Logits (N, V) of the masked language model's head on rows (N, D) of its encoder's output.

    Raises: as masked_logits.
    """
    model_type = model.config.model_type
    if model_type not in MASKED_LM_HEADS:
        raise AuxiliaryError(
            f"model type {model_type!r} cannot serve as auxiliary; known are {', '.join(MASKED_LM_HEADS)}"
        )
    return MASKED_LM_HEADS[model_type](model, hidden)


def freeze(model: nn.Module) -> None:
    """Put the model in evaluation mode and switch off its gradients, for good."""
    model.eval()
    model.requires_grad_(False)


def count_parameters(model: nn.Module) -> int:
    """Parameters, shared ones once."""
    return sum(parameter.numel() for parameter in model.parameters())
