"""Where replacements are drawn from: a frozen masked language model, or several, or nothing but counted text.

A proposal has one method, `sample`. All randomness is the batch's one uniform number per position, turned into an id by
the inverse of the cumulative distribution; so a draw is a pure function of batch and smoothing.

Shapes: B sequences, L tokens per sequence, N selected tokens, V vocabulary.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers import PreTrainedModel

from fast_electra_core.bigrams import BigramCounts, look_up
from fast_electra_core.curriculum import Smoothing
from fast_electra_core.dropout import dropout_on
from fast_electra_core.errors import DataError
from fast_electra_core.methods import Batch
from fast_electra_core.models import freeze, masked_logits
from fast_electra_core.smoothing import mean_probability, sample_smoothed


class Proposal(ABC):
    """Something that replacements can be drawn from."""

    @abstractmethod
    def sample(self, batch: Batch, smoothing: Smoothing) -> Tensor:
        """Ids (N,) int64 for the selected positions, row-major."""


class Draw(NamedTuple):
    """Replacements, and what the auxiliary thinks of them."""

    ids: Tensor
    """(N,) int64."""
    doubt: Tensor
    """(N,) float32 in [0, 1]: probability, under the auxiliary's own distribution at temperature 1, that the original
    is another token than the one drawn."""


class FrozenMaskedLm(Proposal):
    """One masked language model, frozen here, or several whose probabilities are averaged."""

    def __init__(self, models: Sequence[PreTrainedModel], *, mask_token_id: int, unigram: Tensor | None = None) -> None:
        """unigram (V,), summing to 1, is needed where a smoothing has a unigram_share."""
        for model in models:
            freeze(model)
        self.models = tuple(models)
        self._mask_token_id = mask_token_id
        self._unigram = unigram if unigram is None else unigram.to(self.device)

    @property
    def device(self) -> torch.device:
        """Where the models are, and the ids will be."""
        device: torch.device = self.models[0].device
        return device

    @torch.no_grad()
    def sample(self, batch: Batch, smoothing: Smoothing) -> Tensor:
        return self._pick(self._logits(batch, smoothing), batch, smoothing)

    @torch.no_grad()
    def draw(self, batch: Batch, smoothing: Smoothing) -> Draw:
        """The same ids with the auxiliary's doubt about each, out of the same forward pass."""
        logits = self._logits(batch, smoothing)
        ids = self._pick(logits, batch, smoothing)
        return Draw(ids, 1.0 - mean_probability(logits, ids))

    def _logits(self, batch: Batch, smoothing: Smoothing) -> list[Tensor]:
        masked_ids = batch.masked_ids(self._mask_token_id)
        if not smoothing.dropout:
            return [masked_logits(model, masked_ids, batch.selected(), batch.documents) for model in self.models]
        logits, seed = [], batch.dropout_seed()
        for index, model in enumerate(self.models):
            with dropout_on(model, smoothing.dropout, seed=seed + index):
                logits.append(masked_logits(model, masked_ids, batch.selected(), batch.documents))
        return logits

    def _pick(self, logits: list[Tensor], batch: Batch, smoothing: Smoothing) -> Tensor:
        uniforms = batch.selected().pick(batch.sample_uniforms)
        return sample_smoothed(logits, uniforms, smoothing, unigram=self._unigram)


class UniformProposal(Proposal):
    """Every ordinary token of the vocabulary alike."""

    def __init__(self, *, vocab_size: int, never: Iterable[int]) -> None:
        """never: the special ids, which are not drawn.

        Raises:
            DataError: no ordinary token is left.
        """
        is_ordinary = torch.ones(vocab_size, dtype=torch.bool)
        is_ordinary[list(never)] = False
        self._ordinary = is_ordinary.nonzero().squeeze(1)
        if not len(self._ordinary):
            raise DataError(f"all {vocab_size} tokens of the vocabulary are special: nothing can be drawn")

    def sample(self, batch: Batch, smoothing: Smoothing) -> Tensor:
        uniforms = batch.selected().pick(batch.sample_uniforms).double()
        index = (uniforms * len(self._ordinary)).long()  # below their number: no float64 below 1 rounds up to it
        self._ordinary = self._ordinary.to(index.device)  # moved once
        return self._ordinary[index]


class UnigramProposal(Proposal):
    """Each token as often as it stands in the training text, whatever stands around it."""

    def __init__(self, counts: npt.NDArray[np.int64], *, never: Iterable[int]) -> None:
        """counts (V,) of the training text; never: the special ids, which are not drawn.

        Raises:
            DataError: no ordinary token occurs.
        """
        self._cumulative = torch.from_numpy(np.cumsum(_ordinary(counts, never)))

    def sample(self, batch: Batch, smoothing: Smoothing) -> Tensor:
        return self.pick(batch.selected().pick(batch.sample_uniforms))

    def pick(self, uniforms: Tensor) -> Tensor:
        """Ids (N,) int64 for uniform numbers (N,) in [0, 1)."""
        self._cumulative = self._cumulative.to(uniforms.device)  # moved once
        # Counts are whole, so this is exact; and no float64 below 1 rounds the product up to their sum.
        target = (uniforms.double() * self._cumulative[-1]).long()
        return torch.searchsorted(self._cumulative, target, right=True)


class BigramProposal(Proposal):
    """What followed the left neighbour in the training text, backing off to the unigram distribution.

    The left neighbour is the original token, also where it is itself replaced. See bigrams.look_up.
    """

    def __init__(self, counts: BigramCounts, unigram: UnigramProposal) -> None:
        self._counts, self._unigram = counts, unigram

    def sample(self, batch: Batch, smoothing: Smoothing) -> Tensor:
        ids = batch.input_ids
        none = torch.full_like(ids[:, :1], len(self._counts.starts) - 2)
        left = torch.cat([none, ids[:, :-1]], dim=1)
        self._counts = self._counts.to(ids.device)  # moved once
        found = look_up(self._counts, batch.selected().pick(left), batch.selected().pick(batch.sample_uniforms))
        return torch.where(found.is_unseen, self._unigram.pick(found.uniforms), found.ids)


def unigram_distribution(counts: npt.NDArray[np.int64], *, never: Iterable[int]) -> Tensor:
    """Shares (V,) float32 of the ordinary tokens in the counts (V,); those in `never` have none.

    Raises:
        DataError: no ordinary token occurs.
    """
    ordinary = _ordinary(counts, never)
    return torch.from_numpy((ordinary / ordinary.sum()).astype(np.float32))


def _ordinary(counts: npt.NDArray[np.int64], never: Iterable[int]) -> npt.NDArray[np.int64]:
    ordinary = counts.copy()
    ordinary[list(never)] = 0
    if not ordinary.any():
        raise DataError("the training text holds no ordinary token: nothing can be drawn from its counts")
    return ordinary
