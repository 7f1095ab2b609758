"""FLOPs as google-research/electra counts them, so that a run can be set beside the figures of ELECTRA's paper.

Three things differ from model_cost.py: the backward pass costs as much as the forward, embedding look-ups count as
multiplications by one-hot vectors, and all that is done to single numbers counts too (biases, norms, dropout, GELU,
softmax). Source: flops_computation.py of github.com/google-research/electra, read; its figures for electra_small,
electra_base and bert_base come out to the printed digit.

Shapes: L tokens per sequence, D width, E embedding width, F feed-forward width, H heads, V vocabulary.
"""

from transformers import PreTrainedModel

from fast_electra_core.model_cost import forward_flops_per_token

GOOGLE_BACKWARD = 1.0
"""Backward passes, in forward passes."""
GOOGLE_TYPES = ("electra", "bert")
"""`model_type`s that the conventions are defined for."""
_DROPOUT, _NORM, _GELU, _SOFTMAX = 4, 5, 8, 5  # operations per number


def google_flops_per_token(model: PreTrainedModel, *, sequence_length: int, head_fraction: float = 1.0) -> float:
    """Forward FLOPs per token, head_fraction as in model_cost.forward_flops_per_token.

    Raises:
        ValueError: a model that is none of GOOGLE_TYPES.
    """
    if model.config.model_type not in GOOGLE_TYPES:
        raise ValueError(
            f"ELECTRA's conventions are for {' and '.join(GOOGLE_TYPES)}, got model type {model.config.model_type!r}"
        )
    predicts_tokens = model.get_output_embeddings() is not None
    fraction = head_fraction if predicts_tokens else 1.0
    width, (vocab_size, embedding) = int(model.config.hidden_size), model.get_input_embeddings().weight.shape
    head = _vocabulary_head(embedding, vocab_size) if predicts_tokens else width + _GELU * width
    return (
        forward_flops_per_token(model, sequence_length=sequence_length, head_fraction=fraction)
        + int(model.config.num_hidden_layers) * _layer(model, sequence_length)
        + _embeddings(embedding, vocab_size, width=width, sequence_length=sequence_length)
        + fraction * head
    )


def _layer(model: PreTrainedModel, sequence_length: int) -> float:
    width, inner = int(model.config.hidden_size), int(model.config.intermediate_size)
    scores = (_SOFTMAX + _DROPOUT + 1) * sequence_length * int(model.config.num_attention_heads)
    # The source counts the first norm's operations once per token instead of once per number; so does this.
    attention = 3 * width + scores + width + _DROPOUT * width + width + _NORM
    feed_forward = (_GELU + 1) * inner + width + _DROPOUT * width + width + _NORM * width
    return attention + feed_forward


def _embeddings(embedding: int, vocab_size: int, *, width: int, sequence_length: int) -> float:
    looked_up = 2 * embedding * vocab_size + 2 * embedding * (sequence_length + 2)  # tokens; positions and two types
    projection_bias = width if embedding != width else 0
    return looked_up + (2 + _NORM + _DROPOUT) * embedding + projection_bias


def _vocabulary_head(embedding: int, vocab_size: int) -> float:
    return (1 + _GELU + _NORM) * embedding + (_SOFTMAX + 2) * vocab_size
