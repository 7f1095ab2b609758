"""What one model costs per token: floating-point operations, and the bytes that are kept for its backward pass.

Counted from the layers that a model really has, and from the shapes in its config; the model may be on the meta device.
A multiplication and an addition are two operations. Embedding look-ups, norms, activations, softmaxes and losses are
not counted: they move bytes.

Shapes: L tokens per sequence, D width, E embedding width, F feed-forward width, H heads, V vocabulary.
"""

from collections.abc import Iterable
from typing import NamedTuple

from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from fast_electra_core.last_layer import last_layer_flops
from fast_electra_core.models import layers_of

FLOAT_BYTES = 4
POST_NORM_TYPES = ("electra", "bert", "roberta", "distilbert")
"""`model_type`s whose layers are BERT's."""
_OF_POSITIONS = ("pos_proj", "pos_q_proj", "pos_key_proj", "pos_query_proj")
"""DeBERTa's linear layers that run on its relative positions, once for a whole micro-batch."""


class ModelCost(NamedTuple):
    """What a run must know of a model to price it; all per token of the sequence, unless said otherwise."""

    forward_flops: float
    skipped_flops: float
    """Of forward_flops, what a frozen model leaves out: most of its last layer, for tokens that are not selected."""
    recomputed_flops: float
    """What the backward pass computes a second time, where only the inputs of layers are kept; otherwise 0."""
    num_parameters: int
    """Of the model, shared ones once."""
    embedding_shape: tuple[int, int]
    """Of the token embeddings (V, E), which another model may share."""
    activation_bytes: float
    """Kept between forward and backward, where the model is trained."""
    passing_bytes: float
    """Held at the widest place of a forward pass that keeps nothing, where the model is frozen."""
    logit_bytes: float
    """Of the vocabulary head's output; 0 for a detector."""
    head_flops: float = 0.0
    """Of forward_flops, what is above the encoder."""
    rows: tuple[tuple[int, int], ...] = ()
    """Of each parameter, how many rows it has, and of how many numbers each: where processes share it, they share
    rows."""
    layer_parameters: int = 0
    """Of num_parameters, those of its largest layer."""
    outer_parameters: int = 0
    """Of num_parameters, those that are in no layer: the token embeddings above all."""

    def shard_parameters(self, num_processes: int) -> int:
        """Of num_parameters, those that the first of so many processes holds, if they share the model: of each
        parameter's rows its part, rounded up."""
        return sum(-(-num_rows // num_processes) * width for num_rows, width in self.rows)


def cost_of(
    model: PreTrainedModel,
    *,
    sequence_length: int,
    head_fraction: float,
    drops: bool = False,
    is_fused: bool = True,
    recomputes: bool = False,
) -> ModelCost:
    """The price of a masked language model, whose head runs on head_fraction of the tokens, or of a detector.

    drops: it is trained with its config's dropout (an electra or modernbert). is_fused: with dropout, too, attention
    keeps no probabilities, as on GPUs. recomputes: it is trained with activation checkpointing (likewise), and keeps
    what one layer keeps and the inputs of all. Numbers count as float32: under bf16 autocast fewer bytes are kept.
    """
    predicts_tokens = model.get_output_embeddings() is not None
    fraction = head_fraction if predicts_tokens else 1.0
    vocab_size, embedding_size = model.get_input_embeddings().weight.shape
    outside, layer, first = _kept_numbers(model.config, sequence_length, drops=drops, is_fused=is_fused)
    num_layers, width = int(model.config.num_hidden_layers), int(model.config.hidden_size)
    kept = outside + ((num_layers - 1) * width + layer if recomputes else (num_layers - 1) * layer + first)
    head = _kept_by_vocabulary_head(model.config, vocab_size) if predicts_tokens else _kept_by_detector(model.config)
    parameters = list(model.parameters())
    num_parameters, in_layers = _count(parameters), [_count(each.parameters()) for each in layers_of(model)]
    return ModelCost(
        forward_flops=forward_flops_per_token(model, sequence_length=sequence_length, head_fraction=fraction),
        skipped_flops=(1.0 - fraction) * last_layer_flops(model, sequence_length=sequence_length),
        recomputed_flops=_layer_flops(model, sequence_length=sequence_length) if recomputes else 0.0,
        num_parameters=num_parameters,
        embedding_shape=(vocab_size, embedding_size),
        activation_bytes=FLOAT_BYTES * (kept + fraction * head),
        passing_bytes=FLOAT_BYTES * _passing_numbers(model.config),
        logit_bytes=FLOAT_BYTES * fraction * vocab_size if predicts_tokens else 0.0,
        head_flops=fraction * _head_flops(model),
        rows=tuple((len(each), each.numel() // len(each)) for each in parameters),
        layer_parameters=max(in_layers),
        outer_parameters=num_parameters - sum(in_layers),
    )


def forward_flops_per_token(model: PreTrainedModel, *, sequence_length: int, head_fraction: float = 1.0) -> float:
    """Forward FLOPs per token of the sequence: 2·in·out for each linear layer, 4·L·D for each attention, and DeBERTa's
    products with relative positions, but not what it makes of those once in a micro-batch.

    head_fraction: share of the tokens that everything above the encoder runs on, e.g. the mask fraction for a masked
    language model's vocabulary head. A layer that attends to a window only counts as if it attended to all: without
    kernels of its own it computes, and then masks, all of it.
    """
    in_encoder = sum(_flops(layer) for layer in _linears(model.base_model))
    return in_encoder + _attention_flops(model, sequence_length) + head_fraction * _head_flops(model)


def _count(parameters: Iterable[nn.Parameter]) -> int:
    return sum(each.numel() for each in parameters)


def _head_flops(model: PreTrainedModel) -> float:
    """Per token that the head runs on."""
    encoder = {id(layer) for layer in _linears(model.base_model)}
    return sum(_flops(layer) for layer in _linears(model) if id(layer) not in encoder)


def _attention_flops(model: PreTrainedModel, sequence_length: int) -> float:
    config = model.config
    seen = 2 * sequence_length + _relative_positions(config, sequence_length)
    return 2.0 * seen * int(config.hidden_size) * int(config.num_hidden_layers)


def _relative_positions(config: PretrainedConfig, sequence_length: int) -> int:
    """Of DeBERTa how many positions a token is multiplied with, where its content meets positions and theirs its
    (arXiv 2006.03654, sec. 3.1, as transformers computes it: all positions there are, of which it then picks)."""
    if not getattr(config, "relative_attention", False):
        return 0
    reach = int(config.max_relative_positions)
    reach = int(config.max_position_embeddings) if reach < 1 else reach
    if config.model_type == "deberta":
        reach = min(sequence_length, reach)
    elif getattr(config, "position_buckets", -1) > 0:
        reach = int(config.position_buckets)
    return 2 * reach * sum(kind in (config.pos_att_type or []) for kind in ("c2p", "p2c"))


def _layer_flops(model: PreTrainedModel, *, sequence_length: int) -> float:
    """Of the forward pass, what activation checkpointing repeats: the layers, in ModernBERT without each one's last
    product, which nothing that is kept comes behind."""
    projected = getattr(model.base_model, "embeddings_project", None)  # ELECTRA's, where the widths differ
    linears = [layer for layer in _linears(model.base_model) if layer is not projected]
    if model.config.model_type not in POST_NORM_TYPES:
        last = [layer.mlp.Wo for layer in model.base_model.layers]
        linears = [layer for layer in linears if all(layer is not each for each in last)]
    return sum(map(_flops, linears)) + _attention_flops(model, sequence_length)


def _linears(module: nn.Module) -> list[nn.Linear]:
    """Those that run on every token."""
    named = ((name.rpartition(".")[2], layer) for name, layer in module.named_modules())
    return [layer for name, layer in named if isinstance(layer, nn.Linear) and name not in _OF_POSITIONS]


def _flops(layer: nn.Linear) -> float:
    return 2.0 * layer.in_features * layer.out_features


def _kept_numbers(config: PretrainedConfig, length: int, *, drops: bool, is_fused: bool) -> tuple[float, float, float]:
    """Numbers of FLOAT_BYTES per token that autograd keeps of the encoder: outside its layers, the ids of its input
    included, of a layer, and of the first layer.

    Every tensor counts once, however many operations keep it. A norm keeps its input and two numbers, a linear layer
    its input, GELU its input, dropout a mask: of bytes in fused kernels, of numbers elsewhere. Left out is what does
    not grow with the batch: positions and rotary tables.
    """
    width, heads = int(config.hidden_size), int(config.num_attention_heads)
    ids = 2.0
    dropout = _dropout_of(config) if drops else 0.0
    mask = (0.25 if is_fused else 1.0) if dropout else 0.0
    # Query, key, value, output and the log of the softmax's denominator; or the probabilities, thrice with dropout.
    attention = 4 * width + heads if is_fused or not dropout else 4 * width + 3 * heads * length
    if config.model_type in POST_NORM_TYPES:
        inner = _feed_forward_width(config)
        embedding = _embedding_width(config)
        # The layer's input, what each of its two norms sees, the first one's output, GELU's input and output.
        layer = attention + 4 * width + 4 + 2 * inner + 2 * mask * width
        projected = embedding if embedding != width else 0
        return ids + (1 + mask) * embedding + 2 + projected, layer, layer
    inner = int(config.intermediate_size)
    # Query and key also as they were before the rotation, in one block with the value.
    rotated = 2 * width if is_fused or not dropout else 0
    layer = attention + rotated + 4 * width + 4 + 4 * inner + mask * (width + inner)
    norm = width + 2  # after the embeddings, and after the layers; the first layer begins without one
    return ids + 2 * norm + mask * width, layer, layer - norm


def _passing_numbers(config: PretrainedConfig) -> float:
    """The feed-forward: its input and the layer's, and what is inside, in ModernBERT with gates and products."""
    inner = _feed_forward_width(config)
    return 2 * int(config.hidden_size) + (2 if config.model_type in POST_NORM_TYPES else 4) * inner


def _kept_by_detector(config: PretrainedConfig) -> float:
    """The encoder's output, dense and activation, and a norm in ModernBERT's; a logit and its label."""
    width = int(config.hidden_size)
    return 3 * width + 2 if config.model_type in POST_NORM_TYPES else 4 * width + 4


def _kept_by_vocabulary_head(config: PretrainedConfig, vocab_size: int) -> float:
    """Per row: which one it is, the encoder's output, dense, activation, norm, log-probabilities and the label."""
    width = int(config.hidden_size)
    inner = _embedding_width(config) if config.model_type == "electra" else width
    return 2 + width + 3 * inner + 2 + vocab_size + 2


def _embedding_width(config: PretrainedConfig) -> int:
    return int(getattr(config, "embedding_size", config.hidden_size))


def _feed_forward_width(config: PretrainedConfig) -> int:
    return int(getattr(config, "intermediate_size", None) or config.hidden_dim)  # DistilBERT's name


def _dropout_of(config: PretrainedConfig) -> float:
    names = ("hidden_dropout_prob", "mlp_dropout", "dropout")
    return next(float(getattr(config, name)) for name in names if hasattr(config, name))
