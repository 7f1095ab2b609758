"""Choosing the positions to be replaced or masked: an exact count per row, no position more likely than another.

Three schemes. `tokens`: every token for itself. `whole_words`: a word's pieces together. `spans`: runs of whole words,
their lengths geometric, as in SpanBERT (arXiv 1907.10529), sec. 3.1. All are pure functions of the numbers given.

Shapes: B sequences, L tokens per sequence.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fast_electra_core.randomness import Stream

_SPAN_STOP, _LONGEST_SPAN = 0.2, 10
# SpanBERT draws a length l from 1 to 10 words with a chance proportional to 0.2 × 0.8 ** (l - 1): 3.8 words on average.
_SPAN_LENGTH_ENDS = [
    (1 - (1 - _SPAN_STOP) ** length) / (1 - (1 - _SPAN_STOP) ** _LONGEST_SPAN) for length in range(1, _LONGEST_SPAN)
]


class Masking(NamedTuple):
    """How positions are chosen, and how many of them the masked language model sees unmasked."""

    scheme: str
    """tokens, whole_words or spans."""
    keep_fraction: float
    """Chance of a chosen position to be shown as it is instead of as [MASK]. [0, 1)."""


PLAIN = Masking("tokens", 0.0)
"""Held-out text is always masked like this, so that scores compare."""


def choose_positions(
    is_ordinary: Tensor,
    continues_word: Tensor | None,
    *,
    scheme: str,
    mask_fraction: float,
    draw: Callable[[Stream, int], Tensor],
) -> Tensor:
    """Choose positions (B, L) bool by the scheme; the count is that of select_positions.

    continues_word is as word_starts has it, None where the scheme is tokens. draw(stream, n) gives each row's first n
    numbers of a stream, (B, n) in [0, 1).

    Raises:
        ValueError: the scheme needs continues_word.
    """
    length = is_ordinary.shape[1]
    uniform = draw(Stream.SELECT, length)
    if scheme == "tokens":
        return select_positions(is_ordinary, uniform, mask_fraction)
    if continues_word is None:
        raise ValueError(f"masking {scheme} needs to be told which tokens continue a word")
    starts = word_starts(is_ordinary, continues_word)
    if scheme == "spans":
        starts = span_starts(is_ordinary, starts, uniform=draw(Stream.SPAN, length))
    offset = draw(Stream.RING, 1)
    return select_groups(is_ordinary, starts, uniform=uniform, offset=offset, mask_fraction=mask_fraction)


def count_selected(is_ordinary: Tensor, mask_fraction: float) -> Tensor:
    """(B,) int64: how many positions every scheme chooses in each row of is_ordinary (B, L)."""
    return _count(is_ordinary.sum(dim=1), mask_fraction)


def select_positions(is_ordinary: Tensor, uniform: Tensor, mask_fraction: float) -> Tensor:
    """Choose positions (B, L) bool: in each row exactly round(mask_fraction × ordinary tokens), at least 1 if there is
    any, uniformly and without replacement.

    is_ordinary is bool (B, L), true where the token is neither special nor padding; uniform is (B, L) in [0, 1).
    Halves round up. The row's smallest numbers win; equal ones in order of position.
    """
    count = _count(is_ordinary.sum(dim=1, keepdim=True), mask_fraction)
    numbers = uniform.masked_fill(~is_ordinary, 2.0)
    # Only the values are sorted, by NumPy: choosing takes a quarter of the time that torch's stable argsort took.
    ordered = torch.from_numpy(np.sort(numbers.numpy(), axis=1))
    last = ordered.gather(1, (count - 1).clamp(min=0))
    below, ties = numbers < last, numbers == last
    among_ties = count - below.sum(dim=1, keepdim=True)
    return (below | (ties & (ties.cumsum(dim=1) <= among_ties))) & is_ordinary


def select_groups(
    is_ordinary: Tensor, starts: Tensor, *, uniform: Tensor, offset: Tensor, mask_fraction: float
) -> Tensor:
    """Choose positions (B, L) bool, whole groups as far as the count allows; the count is that of select_positions.

    starts is bool (B, L), true at each group's first token; uniform (B, L) orders the groups of a row, its k-th number
    being the k-th group's; offset (B, 1) is in [0, 1).

    The groups of a row, in the order of their numbers, form a ring of its ordinary tokens, and the count's worth of
    neighbours on the ring is taken, from a random token on. So every position has exactly the same chance, count over
    ordinary tokens, and only the first and the last group taken may be cut: the one loses its beginning, the other its
    end. To begin with a whole group instead would favour the beginnings of groups, and with them that of the row.
    """
    num_ordinary = is_ordinary.sum(dim=1, keepdim=True)
    group = (starts.cumsum(dim=1) - 1).clamp(min=0)
    rank = _rank(is_ordinary, uniform.gather(1, group))  # a group's tokens stay together: equal numbers go by position
    first = (offset * num_ordinary).long()
    return ((rank - first) % num_ordinary.clamp(min=1) < _count(num_ordinary, mask_fraction)) & is_ordinary


def word_starts(is_ordinary: Tensor, continues_word: Tensor) -> Tensor:
    """(B, L) bool: an ordinary token that begins a word; what follows a special token always does.

    continues_word (B, L) bool: tokens that, by the tokenizer, go on with the word before them.
    """
    return is_ordinary & ~(continues_word & _follows_ordinary(is_ordinary))


def span_starts(is_ordinary: Tensor, starts: Tensor, *, uniform: Tensor) -> Tensor:
    """(B, L) bool: word starts at which a span begins; the k-th span of a row is as many words long as uniform's k-th
    number says, and falls apart where it meets a special token. starts are word_starts, uniform is (B, L) in [0, 1).

    Departs from SpanBERT, which draws span after span, each anywhere, until there are enough: here the row is cut into
    spans and select_groups takes some, so none overlaps another and no draw is thrown away. What the count cuts off are
    tokens, not words, as in SpanBERT's code.
    """
    ends = torch.tensor(_SPAN_LENGTH_ENDS, dtype=uniform.dtype, device=uniform.device)
    lengths = torch.bucketize(uniform, ends, right=True) + 1
    num_words = starts.shape[1]
    begins = torch.zeros(len(starts), num_words + 1, dtype=torch.bool, device=starts.device)
    begins[:, 0] = True
    begins.scatter_(1, lengths.cumsum(dim=1).clamp(max=num_words), True)
    word = (starts.cumsum(dim=1) - 1).clamp(min=0)
    return starts & (begins.gather(1, word) | ~_follows_ordinary(is_ordinary))


def _follows_ordinary(is_ordinary: Tensor) -> Tensor:
    return torch.nn.functional.pad(is_ordinary[:, :-1], (1, 0))


def _count(num_ordinary: Tensor, mask_fraction: float) -> Tensor:
    count = torch.floor(num_ordinary.double() * mask_fraction + 0.5).long()  # in float32, 50 × .53 is below 26.5
    return torch.minimum(count.clamp(min=1), num_ordinary)


def _rank(is_ordinary: Tensor, uniform: Tensor) -> Tensor:
    """(B, L) int64: each ordinary token's place, from 0, in the order of the row's numbers."""
    order = torch.argsort(uniform.masked_fill(~is_ordinary, 2.0), dim=1, stable=True)
    rank = torch.empty_like(order)
    return rank.scatter_(1, order, torch.arange(order.shape[1], device=order.device).expand_as(order))
