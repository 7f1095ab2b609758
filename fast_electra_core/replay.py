"""New text mixed with a replayed share of old text, in an order that is a pure function of (seed, step, index).

Every window of the order holds the replayed share, exactly but for one sequence; new and old text are each gone through
once per epoch, in a fresh random order. Resume is a seek, and another batch size or world size gives the same order.

Shapes: B sequences, L tokens per sequence.
"""

import torch

from fast_electra_core.data import BatchIndex, TokenDataset
from fast_electra_core.errors import DataError
from fast_electra_core.randomness import shuffled_index
from fast_electra_core.retraining import REPLAY_PARTS
from fast_electra_core.token_shards import Ids


class MixedDataset(TokenDataset):
    """Sequences of new text, and after them, in their numbering, those of old text; none holds tokens of both."""

    def __init__(self, new: TokenDataset, old: TokenDataset, *, replay_fraction: float) -> None:
        """replay_fraction: the share of the sequences trained on that are old, (0, 1).

        Raises:
            DataError: the old text holds no sequence.
        """
        if not len(old):
            raise DataError(
                f"the old text ({old.num_tokens} tokens) is shorter than one sequence of {old.sequence_length}, so "
                "nothing of it can be replayed. Give --replay_fraction 0"
            )
        self.sequence_length, self.special_ids = new.sequence_length, new.special_ids
        self.continues_word, self.attention = new.continues_word, new.attention
        self.streams = [*new.streams, *old.streams]
        self.num_tokens = new.num_tokens + old.num_tokens
        self._new, self._old, self._replay_fraction = new, old, replay_fraction

    def __len__(self) -> int:
        return len(self._new) + len(self._old)

    def sequence(self, index: int) -> Ids:
        """Sequence `index` as int64 (L,): new text up to len(new), old text from there on."""
        num_new = len(self._new)
        return self._new.sequence(index) if index < num_new else self._old.sequence(index - num_new)

    def index_at(self, step: int, *, batch_size: int, seed: int) -> BatchIndex:
        """The sequences of optimiser step `step`, new and old."""
        return mixed_index_at(
            torch.arange(step * batch_size, (step + 1) * batch_size),
            num_new=len(self._new),
            num_old=len(self._old),
            replay_fraction=self._replay_fraction,
            seed=seed,
        )


def mixed_index_at(
    position: torch.Tensor, *, num_new: int, num_old: int, replay_fraction: float, seed: int
) -> BatchIndex:
    """The sequences at positions (B,) of the order of training; those of old text are counted from num_new on.

    Before position p, floor(p * replay_fraction) old sequences have come.

    >>> mixed_index_at(torch.arange(8), num_new=1, num_old=1, replay_fraction=0.25, seed=0).sequence.tolist()
    [0, 0, 0, 1, 0, 0, 0, 1]

    Raises:
        DataError: there is no new sequence.
    """
    if num_new < 1:
        raise DataError("the new text is smaller than one sequence; give more text or a smaller sequence_length")
    parts = round(replay_fraction * REPLAY_PARTS)
    num_old_before = position * parts // REPLAY_PARTS
    is_old = (position + 1) * parts // REPLAY_PARTS > num_old_before
    rank = torch.where(is_old, num_old_before, position - num_old_before)
    size = torch.where(is_old, num_old, num_new)
    epoch = rank // size
    sequence = torch.empty_like(position)
    for mask, count, first in ((~is_old, num_new, 0), (is_old, num_old, num_new)):
        at = rank[mask] % count
        sequence[mask] = first + shuffled_index(at, size=count, seed=seed, epoch=epoch[mask])
    return BatchIndex(epoch, sequence)
