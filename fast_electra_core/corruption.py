"""Replacing the tokens of chosen positions: exact, and the same wherever it is computed.

Shapes: B sequences, L tokens per sequence, N selected tokens, V vocabulary.
"""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from fast_electra_core.selection import Selection

# Rows of logits turned into cumulative probabilities at a time: no (N, V) tensor of float64 ever exists. On a CPU they
# stay in its caches, which is four times as fast as 512 are; a GPU wants fewer and larger pieces of work.
_CHUNK_ROWS = {"cpu": 16, "cuda": 512}


class Corruption(NamedTuple):
    """What became of a batch."""

    corrupted_ids: Tensor
    """(B, L) int64: input_ids with the selected tokens replaced by samples."""
    is_replaced: Tensor
    """(B, L) bool: selected and really different. A sample equal to the original is not replaced."""


def sample_replacements(logits: Tensor, uniforms: Tensor, temperature: float) -> Tensor:
    """Ids (N,) int64: exact inverse-CDF samples of softmax(logits / temperature).

    logits (N, V) of any float type, uniforms (N,) in [0, 1), temperature > 0. Row i's sample is the first id whose
    cumulative probability exceeds uniforms[i], so a token of probability 0 is never drawn. Cumulative sums are in
    float64: in float32 the tail of a large vocabulary would be lost to rounding.

    Raises:
        ValueError: temperature is not > 0, or the shapes do not fit.
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be > 0, got {temperature}")
    if logits.ndim != 2 or uniforms.shape != logits.shape[:1]:
        raise ValueError(f"logits must be (N, V) and uniforms (N,), got {tuple(logits.shape)}, {tuple(uniforms.shape)}")
    ids = torch.empty(len(logits), dtype=torch.int64, device=logits.device)
    for rows in chunks(len(logits), logits.device):
        scaled = logits[rows].float()
        scaled = (scaled - scaled.amax(dim=1, keepdim=True)) / temperature
        ids[rows] = sample_weighted(scaled.exp_(), uniforms[rows])
    return ids


def chunks(num_rows: int, device: torch.device, sizes: Mapping[str, int] = _CHUNK_ROWS) -> Iterator[slice]:
    """Slices that cover the rows, of the size for that type of device; by default each is small enough for a (rows, V)
    tensor of float64 there."""
    size = sizes.get(device.type, max(sizes.values()))
    for first in range(0, num_rows, size):
        yield slice(first, first + size)


def sample_weighted(weights: Tensor, uniforms: Tensor) -> Tensor:
    """Ids (N,) int64: exact inverse-CDF samples of weights (N, V), for uniforms (N,) in [0, 1).

    Weights are >= 0, each row's sum is > 0, not necessarily 1. A token of weight 0 is never drawn.
    """
    cumulative = weights.cumsum(dim=1, dtype=torch.float64)  # (N, V)
    total = cumulative[:, -1:]
    # A product that rounds up to the total would point past the last token of positive weight.
    below_total = torch.nextafter(total, torch.zeros_like(total))
    target = torch.minimum(uniforms[:, None].double() * total, below_total)
    return torch.searchsorted(cumulative, target, right=True).squeeze(1)


def place(input_ids: Tensor, selection: Selection, samples: Tensor) -> Corruption:
    """Put samples (N,), in row-major order of the selected positions, into a copy of input_ids (B, L)."""
    corrupted_ids = selection.put(input_ids, samples)
    return Corruption(corrupted_ids, corrupted_ids != input_ids)
