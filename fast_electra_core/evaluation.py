"""Scores on held-out text: how good a masked language model is, and how well replaced tokens are detected.

Masks and samples are the same for every model and every call: they come from a seed of their own, and positions are
always chosen by tokens, all of them masked, however the model was trained.

Shapes: B sequences, L tokens per sequence, N selected tokens, V vocabulary.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from transformers import PreTrainedModel

from fast_electra_core.batches import make_batch
from fast_electra_core.corruption import Corruption
from fast_electra_core.data import TokenDataset
from fast_electra_core.electra import Electra
from fast_electra_core.errors import DataError, NonFiniteLossError
from fast_electra_core.fast_electra import FastElectra
from fast_electra_core.losses import majority_rtd_loss, masked_lm_loss_sum, rtd_loss_sum
from fast_electra_core.methods import (
    Batch,
    MaskedLanguageModel,
    Stats,
    add_detection_stats,
    detection_metrics,
)
from fast_electra_core.models import detector_logits, masked_logits
from fast_electra_core.smoothing import mean_log_probability

_EVALUATION_SEED = 20_231_011
_BATCH_SEQUENCES = 32
_COUNTED_AT_ONCE = 1 << 20
"""Tokens, of which NumPy makes 8 bytes each to count them; a compressed file is one shard, and may hold billions."""


class MaskedScores(NamedTuple):
    """How well a masked language model fills in held-out text."""

    masked_loss: float
    """Cross-entropy per masked token, nats."""
    masked_accuracy: float
    unigram_loss: float
    """The same for a model that knows the training text's word frequencies and nothing else."""
    unigram_accuracy: float
    num_masked: int
    seconds_per_1k_tokens: float


def unigram_counts(dataset: TokenDataset, vocab_size: int) -> npt.NDArray[np.int64]:
    """How often each id stands in the dataset's stream, (V,)."""
    counts = np.zeros(vocab_size, dtype=np.int64)
    for stream in dataset.streams:
        for first in range(0, len(stream), _COUNTED_AT_ONCE):
            counts += np.bincount(stream[first : first + _COUNTED_AT_ONCE], minlength=vocab_size)
    return counts


def score_masked_lm(
    model: PreTrainedModel,
    heldout: TokenDataset,
    *,
    counts: npt.NDArray[np.int64],
    mask_fraction: float = 0.15,
    max_sequences: int = 256,
) -> MaskedScores:
    """Score the model on the first held-out sequences; leaves it in evaluation mode.

    counts are the training text's unigram counts (V,); one is added to each, so that no token is impossible.
    """
    return score_masked_lms([model], heldout, counts=counts, mask_fraction=mask_fraction, max_sequences=max_sequences)


@torch.no_grad()
def score_masked_lms(
    models: Sequence[PreTrainedModel],
    heldout: TokenDataset,
    *,
    counts: npt.NDArray[np.int64],
    mask_fraction: float = 0.15,
    max_sequences: int = 256,
) -> MaskedScores:
    """The same of several models whose probabilities are averaged."""
    for model in models:
        model.eval()
    device = models[0].device
    log_unigram = np.log(counts + 1.0)
    log_unigram[list(heldout.special_ids.all_special)] = -math.inf
    log_unigram -= np.log(np.exp(log_unigram).sum())  # special tokens are never masked
    most_frequent = int(log_unigram.argmax())
    loss = unigram_loss = seconds = 0.0
    correct = unigram_correct = num_masked = num_tokens = 0
    for batch in _heldout_batches(heldout, mask_fraction, max_sequences):
        start = time.perf_counter()
        there = batch.to(device)
        masked_ids = there.masked_ids(heldout.special_ids.mask)
        logits = mean_log_probability(
            [masked_logits(model, masked_ids, there.selected(), there.documents) for model in models]
        )
        logits.flatten()[:1].cpu()  # device sync: the time is the models' alone
        seconds += time.perf_counter() - start
        expected = there.selected().pick(there.input_ids)
        loss += float(masked_lm_loss_sum(logits, expected))
        correct += int((logits.argmax(dim=1) == expected).sum())
        original_ids = batch.selected().pick(batch.input_ids)
        unigram_loss -= float(log_unigram[original_ids.numpy()].sum())
        unigram_correct += int((original_ids == most_frequent).sum())
        num_masked += len(original_ids)
        num_tokens += batch.input_ids.numel()
    return MaskedScores(
        masked_loss=loss / num_masked,
        masked_accuracy=correct / num_masked,
        unigram_loss=unigram_loss / num_masked,
        unigram_accuracy=unigram_correct / num_masked,
        num_masked=num_masked,
        seconds_per_1k_tokens=1000 * seconds / num_tokens,
    )


def heldout_masked_scores(
    method: MaskedLanguageModel, heldout: TokenDataset, *, counts: npt.NDArray[np.int64]
) -> dict[str, float]:
    """score_masked_lm's, each name with `heldout_` before it, as a row of metrics; the mode of `method` is kept."""
    was_training = method.training
    scores = score_masked_lm(method.model, heldout, counts=counts)
    method.train(was_training)
    return {f"heldout_{name}": float(value) for name, value in scores._asdict().items()}


@torch.no_grad()
def score_detector(
    method: FastElectra | Electra,
    heldout: TokenDataset,
    *,
    corrupt: Callable[[Batch], Corruption],
    mask_fraction: float,
    max_sequences: int = 256,
) -> dict[str, float]:
    """Held-out RTD loss beside the majority baseline's, AUC, recall and precision; the mode of `method` is kept.

    corrupt replaces a batch's selected tokens.

    Raises:
        NonFiniteLossError: the detector's output is not finite.
    """
    was_training = method.training
    method.eval()
    device = method.discriminator.device
    stats: Stats = {}
    loss, scores, truth = 0.0, [], []
    for batch in _heldout_batches(heldout, mask_fraction, max_sequences):
        batch = batch.to(device)
        corruption = corrupt(batch)
        logits = detector_logits(method.discriminator, corruption.corrupted_ids, batch.documents)
        loss += float(rtd_loss_sum(logits, corruption.is_replaced))  # device sync
        if not math.isfinite(loss):
            raise NonFiniteLossError(
                f"the loss on held-out text is {loss}. The checkpoint before is kept. Start a new run with a lower "
                "--learning_rate or a longer --warmup_fraction"
            )
        add_detection_stats(stats, logits, corruption.is_replaced, batch.is_selected)
        scores.append(logits.float().flatten().cpu())
        truth.append(corruption.is_replaced.flatten().cpu())
    method.train(was_training)
    sums = {name: float(value) for name, value in stats.items()}
    is_replaced = torch.cat(truth).numpy()
    metrics = detection_metrics(sums)
    return {
        "heldout_rtd_loss": loss / sums["num_tokens"],
        "heldout_majority_loss": majority_rtd_loss(metrics["replaced_fraction"]),
        "heldout_auc": area_under_roc(torch.cat(scores).numpy(), is_replaced),
        **{f"heldout_{name}": value for name, value in metrics.items()},
    }


def area_under_roc(scores: npt.NDArray[np.floating[Any]], is_positive: npt.NDArray[np.bool_]) -> float:
    """How often a positive scores above a negative, a tie counting half: 0 .. 1; .5 of one class alone, where there is
    nothing to rank. Both are of one length. scikit-learn's is the same, and costs every training two seconds to import.

    Example: scores .1, .4, .4, of which the last is positive: it is above one negative and ties with one, so .75.
    """
    num_positive = int(is_positive.sum())
    num_negative = len(is_positive) - num_positive
    if not num_positive or not num_negative:
        return 0.5
    _, place, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[place]  # from 1; those that tie share the middle of theirs
    num_above = ranks[is_positive].sum() - num_positive * (num_positive + 1) / 2
    return float(num_above / (num_positive * num_negative))


def _heldout_batches(dataset: TokenDataset, mask_fraction: float, max_sequences: int) -> Iterator[Batch]:
    count = min(len(dataset), max_sequences)
    if not count:
        raise DataError(
            f"the held-out text ({dataset.num_tokens} tokens) is shorter than one sequence of "
            f"{dataset.sequence_length}; give more text, a larger heldout_fraction or a smaller sequence_length"
        )
    for first in range(0, count, _BATCH_SEQUENCES):
        sequence = torch.arange(first, min(first + _BATCH_SEQUENCES, count))
        yield make_batch(
            dataset, sequence, torch.zeros_like(sequence), mask_fraction=mask_fraction, seed=_EVALUATION_SEED
        )
