"""Training sequences out of token shards: memory-mapped, seekable, in a reproducible order.

A corpus is a list of shards whose streams are read as one. A training sequence is [CLS] + L-2 tokens of the stream +
[SEP]: no padding anywhere, so there is nothing to leave out ("unpadded"). Documents in one sequence see each other,
unless they are kept apart.

Shapes: B sequences, L tokens per sequence.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fast_electra_core.errors import DataError
from fast_electra_core.randomness import shuffled_index
from fast_electra_core.token_shards import Ids, read_manifest


class SpecialIds(NamedTuple):
    """Ids of the tokenizer that training needs."""

    cls: int
    sep: int
    mask: int
    pad: int
    all_special: tuple[int, ...]


class TokenDataset:
    """Sequences of L tokens over the concatenated streams of shards; opening and seeking cost nothing."""

    def __init__(
        self,
        folders: Sequence[Path],
        part: str,
        *,
        sequence_length: int,
        special_ids: SpecialIds,
        continues_word: Tensor | None = None,
        attention: str = "sequence",
    ) -> None:
        """continues_word (V,) bool: entries of the vocabulary that go on with the word before them; masking by words
        needs it. attention: how far a token sees, `sequence`, or its own `document`."""
        self.sequence_length = sequence_length
        self.special_ids = special_ids
        self.continues_word = continues_word
        self.attention = attention
        self.streams: list[npt.NDArray[np.uint16 | np.uint32]] = []
        for folder in folders:
            manifest = read_manifest(folder)
            path = folder / f"{part}.bin"
            if manifest[f"num_{part}_tokens"]:  # an empty file cannot be mapped
                # A plain view: np.memmap makes an object of its own of every slice.
                self.streams.append(np.asarray(np.memmap(path, dtype=manifest["dtype"], mode="r")))
        lengths = [len(stream) for stream in self.streams]
        self._ends = np.cumsum(lengths) if lengths else np.zeros(0, dtype=np.int64)
        self.num_tokens = int(sum(lengths))
        self._body = sequence_length - 2

    def __len__(self) -> int:
        """Whole sequences; the last, incomplete one is left out."""
        return self.num_tokens // self._body

    def sequence(self, index: int) -> Ids:
        """Sequence `index` as int64 (L,)."""
        if not 0 <= index < len(self):
            raise IndexError(f"sequence {index} of {len(self)}")
        first = index * self._body
        result = np.empty(self.sequence_length, dtype=np.int64)
        result[0], result[-1] = self.special_ids.cls, self.special_ids.sep
        filled = 1
        stream = int(np.searchsorted(self._ends, first, side="right"))
        offset = first - (int(self._ends[stream - 1]) if stream else 0)
        while filled <= self._body:
            part = self.streams[stream][offset : offset + self._body + 1 - filled]
            result[filled : filled + len(part)] = part
            filled += len(part)
            stream, offset = stream + 1, 0
        return result

    def batch(self, indices: Iterable[int]) -> Tensor:
        """Sequences as int64 (B, L)."""
        return torch.from_numpy(np.stack([self.sequence(int(index)) for index in indices]))

    def index_at(self, step: int, *, batch_size: int, seed: int) -> "BatchIndex":
        """The sequences of optimiser step `step`; see batch_index_at."""
        return batch_index_at(step, batch_size=batch_size, num_sequences=len(self), seed=seed)


class BatchIndex(NamedTuple):
    """Which sequences an optimiser step trains on."""

    epoch: Tensor
    """(B,) int64: how often each sequence's position in the order has come round before."""
    sequence: Tensor
    """(B,) int64: index into the dataset."""


def batch_index_at(step: int, *, batch_size: int, num_sequences: int, seed: int) -> BatchIndex:
    """The sequences of optimiser step `step`: a seek, not a replay.

    Each epoch visits every sequence once in a fresh random order; a batch may straddle two epochs.

    Raises:
        DataError: there is no sequence.
    """
    if num_sequences < 1:
        raise DataError("the corpus is smaller than one sequence; give more text or a smaller sequence_length")
    position = torch.arange(step * batch_size, (step + 1) * batch_size)
    epoch = position // num_sequences
    return BatchIndex(epoch, shuffled_index(position % num_sequences, size=num_sequences, seed=seed, epoch=epoch))


def is_ordinary(input_ids: Tensor, special_ids: SpecialIds) -> Tensor:
    """(B, L) bool: neither special nor padding."""
    found = torch.ones_like(input_ids, dtype=torch.bool)
    for special in special_ids.all_special:  # few; torch.isin takes twice as long
        found &= input_ids != special
    return found
