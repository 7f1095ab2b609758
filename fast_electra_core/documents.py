"""Attention that does not cross documents: several of them stand in one packed sequence, and each sees itself alone.

Positions count on from one document to the next, so that all of a model's positions are trained.

Shapes: B sequences, L tokens per sequence.
"""

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from fast_electra_core.errors import ConfigError


def number_documents(input_ids: Tensor, *, separator_id: int) -> Tensor:
    """(B, L) int64: of which of its sequence's documents each token is, counted from 0. A separator belongs to the
    document that it ends.

    >>> number_documents(torch.tensor([[2, 7, 8, 3, 9, 3, 3]]), separator_id=3)
    tensor([[0, 0, 0, 0, 1, 1, 2]])
    """
    is_end = input_ids == separator_id
    return is_end.cumsum(dim=1) - is_end.long()


def visible_within(documents: Tensor, columns: Tensor | None = None) -> Tensor:
    """(B, 1, L, L) bool: whether the first of two tokens attends to the second, for documents (B, L); of the tokens at
    columns (B, K) alone it is (B, 1, K, L).

    >>> visible_within(torch.tensor([[0, 0, 1]])).int()
    tensor([[[[1, 1, 0],
              [1, 1, 0],
              [0, 0, 1]]]], dtype=torch.int32)
    """
    rows = documents if columns is None else documents.gather(1, columns)
    return rows[:, None, :, None] == documents[:, None, None, :]


def attention_mask(config: PretrainedConfig, documents: Tensor | None) -> Tensor | dict[str, Tensor] | None:
    """What a model of that config wants as its attention_mask, for documents (B, L); None where attention is to cross
    them.

    transformers takes a mask with four dimensions as it is, so a ModernBERT's local layers get theirs here.
    """
    if documents is None:
        return None
    visible = visible_within(documents)
    if config.model_type != "modernbert":
        return visible
    position = torch.arange(documents.shape[1], device=documents.device)
    is_near = (position[:, None] - position).abs() <= config.sliding_window
    return {"full_attention": visible, "sliding_attention": visible & is_near}


def check_attention(model: PreTrainedModel, attention: str) -> None:
    """The model can attend as asked.

    Raises:
        ConfigError: attention is `document`, and the model's own kind of attention, DeBERTa's, takes no such mask.
    """
    if attention == "document" and model.config._attn_implementation != "sdpa":
        raise ConfigError(
            f"attention document does not fit: a {model.config.model_type} does not run on torch's "
            "scaled_dot_product_attention. Give --attention sequence, or another model"
        )
