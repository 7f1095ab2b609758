"""A masked language model's last layer on the selected positions only: what it says of others, nobody reads.

Keys and values are still those of all positions; queries, attention's output and the feed-forward part, ten twelfths of
the layer where the feed-forward part is four times as wide, are computed for the selected positions. The result is that
of the whole layer, up to rounding.

Shapes: B sequences, L tokens per sequence, K selected positions of each, D width, H heads.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, scaled_dot_product_attention
from transformers import PretrainedConfig, PreTrainedModel

from fast_electra_core.documents import visible_within


@contextlib.contextmanager
def last_layer_at(model: PreTrainedModel, columns: Tensor, documents: Tensor | None = None) -> Iterator[None]:
    """Inside, the model's encoder gives (B, K, D) for columns (B, K), the positions asked for in each sequence.

    documents (B, L): each position sees its own document of them alone; None: the whole sequence.

    Only for models that `can_skip`, in evaluation mode, on sequences without padding.
    """
    layer, forward = _last_layer(model)
    visible = None if documents is None else visible_within(documents, columns)
    layer.forward = functools.partial(forward, layer, columns, visible)  # visible (B, 1, K, L)
    compiled, layer._compiled_call_impl = layer._compiled_call_impl, None  # which would be called instead of it
    try:
        yield
    finally:
        layer._compiled_call_impl = compiled
        del layer.forward  # the class's own is there again


def can_skip(model: PreTrainedModel) -> bool:
    """Whether the model's last layer can be computed for some positions only: those of ELECTRA, BERT and RoBERTa, and
    of ModernBERT where it attends to the whole sequence. Not while dropout is on."""
    return _is_known(model.config) and not _last_layer(model)[0].training


def _is_known(config: PretrainedConfig) -> bool:
    if config.model_type == "modernbert" and config.layer_types[-1] != "full_attention":
        return False
    return config.model_type in _LAYERS and config.num_hidden_layers > 0 and not getattr(config, "is_decoder", False)


def last_layer_flops(model: PreTrainedModel, *, sequence_length: int) -> float:
    """Per token, what of the last layer's forward FLOPs is left out where a token is not selected; 0 where nothing is.
    All but keys and values: counted as model_cost counts."""
    if not _is_known(model.config):
        return 0.0
    layer, _ = _last_layer(model)
    width = int(model.config.hidden_size)
    linears = sum(2 * each.in_features * each.out_features for each in layer.modules() if isinstance(each, nn.Linear))
    return float(linears - 2 * 2 * width * width + 4 * sequence_length * width)


def _last_layer(model: PreTrainedModel) -> tuple[Any, Callable[..., Tensor]]:
    find, forward = _LAYERS[model.config.model_type]
    return find(model.base_model)[-1], forward


def _bert_layer(layer: Any, columns: Tensor, visible: Tensor | None, hidden: Tensor, *_: Any, **__: Any) -> Tensor:
    attention = layer.attention.self
    rows = _at(hidden, columns)  # (B, K, D)
    heads = attention.num_attention_heads
    mixed = scaled_dot_product_attention(
        _split_heads(attention.query(rows), heads),
        _split_heads(attention.key(hidden), heads),
        _split_heads(attention.value(hidden), heads),
        attn_mask=visible,
    )
    attended = layer.attention.output(_join_heads(mixed), rows)
    return layer.feed_forward_chunk(attended)  # type: ignore[no-any-return]


def _modernbert_layer(
    layer: Any,
    columns: Tensor,
    visible: Tensor | None,
    hidden: Tensor,
    *,
    position_embeddings: tuple[Tensor, Tensor],
    **_: Any,
) -> Tensor:
    attention, normed = layer.attn, layer.attn_norm(hidden)
    width = hidden.shape[-1]
    weight, bias = attention.Wqkv.weight, attention.Wqkv.bias
    heads = width // attention.head_dim
    cos, sin = position_embeddings  # (1, L, D / H)
    query = linear(_at(normed, columns), weight[:width], None if bias is None else bias[:width])
    both = linear(normed, weight[width:], None if bias is None else bias[width:])
    key, value = both[..., :width], both[..., width:]
    mixed = scaled_dot_product_attention(
        _rotate(_split_heads(query, heads), cos[0][columns], sin[0][columns]),
        _rotate(_split_heads(key, heads), cos, sin),
        _split_heads(value, heads),
        attn_mask=visible,
    )
    rows = _at(hidden, columns) + attention.Wo(_join_heads(mixed))
    return rows + layer.mlp(layer.mlp_norm(rows))  # type: ignore[no-any-return]


def _at(hidden: Tensor, columns: Tensor) -> Tensor:
    """(B, K, D): each sequence's vectors at its columns."""
    return hidden.gather(1, columns[..., None].expand(-1, -1, hidden.shape[-1]))


def _split_heads(values: Tensor, heads: int) -> Tensor:
    return values.view(*values.shape[:2], heads, values.shape[2] // heads).transpose(1, 2)  # (B, H, ., D / H)


def _join_heads(values: Tensor) -> Tensor:
    return values.transpose(1, 2).flatten(2)  # (B, ., D)


def _rotate(values: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions, in float32 as ModernBERT has them; cos and sin (B or 1, ., D / H)."""
    first, second = values.float().chunk(2, dim=-1)
    turned = values.float() * cos[:, None] + torch.cat((-second, first), dim=-1) * sin[:, None]
    return turned.to(values.dtype)


def _encoder_layers(encoder: Any) -> nn.ModuleList:
    return encoder.encoder.layer  # type: ignore[no-any-return]


def _modernbert_layers(encoder: Any) -> nn.ModuleList:
    return encoder.layers  # type: ignore[no-any-return]


_LAYERS: dict[str, tuple[Callable[[Any], nn.ModuleList], Callable[..., Tensor]]] = {
    "electra": (_encoder_layers, _bert_layer),
    "bert": (_encoder_layers, _bert_layer),
    "roberta": (_encoder_layers, _bert_layer),
    "modernbert": (_modernbert_layers, _modernbert_layer),
}
"""By transformers' `model_type`: the encoder's layers, and such a layer for some positions."""
