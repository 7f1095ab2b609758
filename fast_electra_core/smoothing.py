"""The distribution that an auxiliary's replacements are drawn from: averaged, tempered, truncated, mixed.

    p = (1 - s) · truncate(mean over members of softmax(logits / T)) + s · unigram

truncate keeps the top_k likeliest tokens and then, of what is left, the likeliest that together have the probability
top_p, and rescales. Tokens exactly as likely as the last one kept are kept too: the order of ids does not matter.

Shapes: N selected tokens, V vocabulary.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fast_electra_core.corruption import chunks, sample_replacements, sample_weighted
from fast_electra_core.curriculum import Smoothing


def sample_smoothed(
    logits: Sequence[Tensor], uniforms: Tensor, smoothing: Smoothing, *, unigram: Tensor | None = None
) -> Tensor:
    """Ids (N,) int64: exact inverse-CDF samples of the smoothed distribution.

    logits has one (N, V) tensor per member, uniforms (N,) in [0, 1), unigram (V,) sums to 1. smoothing.dropout is the
    business of whoever computes the logits. A token of probability 0 is never drawn.

    Raises:
        ValueError: temperature is not > 0; a share of unigram without its distribution.
    """
    if not smoothing.temperature > 0:
        raise ValueError(f"temperature must be > 0, got {smoothing.temperature}")
    if smoothing.unigram_share and unigram is None:
        raise ValueError(f"unigram_share is {smoothing.unigram_share:g}, but the unigram distribution is not given")
    if len(logits) == 1 and smoothing == Smoothing(smoothing.temperature, smoothing.dropout):
        return sample_replacements(logits[0], uniforms, smoothing.temperature)
    ids = torch.empty(len(uniforms), dtype=torch.int64, device=uniforms.device)
    for rows in chunks(len(uniforms), uniforms.device):
        weights = _probabilities([each[rows] for each in logits], smoothing, unigram)
        ids[rows] = sample_weighted(weights, uniforms[rows])
    return ids


def mean_probability(logits: Sequence[Tensor], ids: Tensor) -> Tensor:
    """Probability (N,) float32 of ids (N,) under the members' mean, at temperature 1; logits as in sample_smoothed."""
    probability = torch.zeros(len(ids), device=ids.device)
    for rows in chunks(len(ids), ids.device):
        for each in logits:
            scores = each[rows].float()
            probability[rows] += (scores.gather(1, ids[rows, None]).squeeze(1) - scores.logsumexp(dim=1)).exp()
    return probability / len(logits)


def mean_log_probability(logits: Sequence[Tensor]) -> Tensor:
    """Logits (N, V) whose softmax is the mean of the members', at temperature 1; of a single member its own."""
    if len(logits) == 1:
        return logits[0]
    together = torch.stack([each.float().log_softmax(dim=1) for each in logits])  # (members, N, V)
    return together.logsumexp(dim=0) - math.log(len(logits))


def _probabilities(logits: Sequence[Tensor], smoothing: Smoothing, unigram: Tensor | None) -> Tensor:
    probabilities = torch.softmax(logits[0].float() / smoothing.temperature, dim=1)  # (rows, V)
    for each in logits[1:]:
        probabilities += torch.softmax(each.float() / smoothing.temperature, dim=1)
    if smoothing.top_k is not None:
        probabilities = _truncate_to_k(probabilities, smoothing.top_k)
    if smoothing.top_p < 1.0:
        probabilities = _truncate_to_mass(probabilities, smoothing.top_p)
    if unigram is not None and smoothing.unigram_share:
        share = smoothing.unigram_share
        probabilities = (1.0 - share) * probabilities / probabilities.sum(dim=1, keepdim=True) + share * unigram
    return probabilities


def _truncate_to_k(probabilities: Tensor, k: int) -> Tensor:
    num_left_out = probabilities.shape[1] - k
    if num_left_out <= 0:
        return probabilities
    if k <= num_left_out:  # selecting from the shorter end is up to eight times faster than kthvalue
        least = probabilities.topk(k, dim=1, sorted=False).values.amin(dim=1, keepdim=True)
    else:
        least = probabilities.topk(num_left_out + 1, dim=1, largest=False, sorted=False).values.amax(
            dim=1, keepdim=True
        )
    return probabilities.masked_fill(probabilities < least, 0.0)


def _truncate_to_mass(probabilities: Tensor, mass: float) -> Tensor:
    falling = probabilities.sort(dim=1, descending=True).values
    cumulative = falling.cumsum(dim=1, dtype=torch.float64)
    last = (cumulative < mass * cumulative[:, -1:]).sum(dim=1, keepdim=True)  # the first token that reaches the mass
    return probabilities.masked_fill(probabilities < falling.gather(1, last), 0.0)
