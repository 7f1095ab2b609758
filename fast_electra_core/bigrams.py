"""Which token follows which: sparse counts of neighbours in the training text, and samples from them.

Shapes: N draws, V vocabulary, P pairs that occur.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from scipy.sparse import csr_matrix
from torch import Tensor

MAX_TOKENS = 1 << 25
"""Tokens that pairs are counted in, an equal share from the beginning of each shard. That takes seconds, and 16 bytes
per different pair: 23 MB for 14M tokens of Wikipedia at V = 8,192."""
DISCOUNT = 0.75
"""Taken from the count of every pair and given to the unigram distribution. A multiple of 1/4 below 1, so that sums of
discounted counts are exact."""
_CHUNK_TOKENS = 1 << 22


class BigramCounts(NamedTuple):
    """Pairs (left, right) of neighbours, sorted by left and then right."""

    starts: Tensor
    """(V + 2,) int64: the pairs of left token l are those from starts[l] to starts[l + 1]; V stands for no left
    neighbour, and has none."""
    right: Tensor
    """(P,) int64."""
    sums: Tensor
    """(P + 1,) float64: sums[i] is the sum of the discounted counts of the first i pairs."""

    def to(self, device: torch.device) -> "BigramCounts":
        """The counts on a device."""
        return BigramCounts(*(tensor.to(device) for tensor in self))


class Lookup(NamedTuple):
    """What became of N draws."""

    ids: Tensor
    """(N,) int64: the follower drawn; where is_unseen, anything."""
    is_unseen: Tensor
    """(N,) bool: the draw fell on what the discount has set aside, or nothing follows the left token."""
    uniforms: Tensor
    """(N,) float64 in [0, 1): fresh for those draws."""


def count_bigrams(
    streams: Sequence[npt.NDArray[np.uint16 | np.uint32]], *, vocab_size: int, never: Iterable[int]
) -> BigramCounts:
    """Count the neighbours within each stream; tokens in `never` may stand on the left, not on the right.

    A pure function of the arguments; pairs across two streams do not count.
    """
    counts = csr_matrix((vocab_size, vocab_size), dtype=np.int64)
    forbidden = np.fromiter(never, dtype=np.int64)
    share = MAX_TOKENS // max(1, len(streams))
    for stream in streams:
        for first in range(0, min(len(stream), share) - 1, _CHUNK_TOKENS):
            tokens = np.asarray(stream[first : min(first + _CHUNK_TOKENS + 1, share)], dtype=np.int64)
            left, right = tokens[:-1], tokens[1:]
            keep = ~np.isin(right, forbidden)
            ones = np.ones(int(keep.sum()), dtype=np.int64)
            counts = counts + csr_matrix((ones, (left[keep], right[keep])), shape=counts.shape)
    counts.sort_indices()
    return BigramCounts(
        starts=torch.from_numpy(np.append(counts.indptr, counts.nnz).astype(np.int64)),
        right=torch.from_numpy(counts.indices.astype(np.int64)),
        sums=torch.from_numpy(np.append(0.0, np.cumsum(counts.data - DISCOUNT))),
    )


def look_up(counts: BigramCounts, left: Tensor, uniforms: Tensor) -> Lookup:
    """Draw a follower of each left token (N,), in [0, V], V meaning none, by its uniform number (N,) in [0, 1).

    Absolute discounting (Ney, Essen & Kneser, 1994): right r has probability (c(l, r) - d) / c(l); what is left over,
    d times the number of different followers over c(l), is for a draw from the unigram distribution.
    """
    if not len(counts.right):
        return Lookup(torch.zeros_like(left), torch.ones_like(left, dtype=torch.bool), uniforms.double())
    first, end = counts.starts[left], counts.starts[left + 1]
    kept = counts.sums[end] - counts.sums[first]  # (N,) float64, of this row
    whole = kept + DISCOUNT * (end - first)
    mass = uniforms.double() * whole
    index = torch.searchsorted(counts.sums[1:], counts.sums[first] + mass, right=True)
    index = torch.minimum(index, end - 1).clamp(min=0)
    is_unseen = mass >= kept  # also where there is no follower: 0 >= 0
    fresh = torch.where(whole > 0, (mass - kept) / (whole - kept).clamp(min=DISCOUNT), uniforms.double())
    return Lookup(counts.right[index], is_unseen, fresh.clamp(0.0, 1.0 - 2.0**-53))
