"""Where the selected tokens are, as indices: found once on the CPU, so that a GPU is never asked how many there are.

Shapes: B sequences, L tokens per sequence, N selected tokens, K the most that a sequence has.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Selection(NamedTuple):
    """The selected positions of a batch, in row-major order."""

    flat: Tensor
    """(N,) int64: positions in the flattened (B × L)."""
    columns: Tensor
    """(B, K) int64: each sequence's positions, ascending; behind its last one stands 0."""
    places: Tensor
    """(N,) int64: where flat's positions are in the flattened (B × K) columns."""

    def pick(self, values: Tensor) -> Tensor:
        """The selected ones (N, ...) of values (B, L, ...)."""
        return values.flatten(0, 1)[self.flat]

    def put(self, values: Tensor, picked: Tensor) -> Tensor:
        """A copy of values (B, L) with picked (N,) in the selected places."""
        return values.flatten().index_copy(0, self.flat, picked.to(values.dtype)).view_as(values)


def find_selected(is_selected: Tensor) -> Selection:
    """The selection of bool (B, L). On a GPU it waits for the device."""
    flat = is_selected.flatten().nonzero().squeeze(1)
    counts = is_selected.sum(dim=1)
    most = int(counts.max()) if counts.numel() else 0
    is_place = torch.arange(most, device=flat.device) < counts[:, None]  # (B, K)
    columns = torch.zeros_like(is_place, dtype=torch.int64).masked_scatter_(is_place, flat % is_selected.shape[1])
    return Selection(flat, columns, is_place.flatten().nonzero().squeeze(1))
