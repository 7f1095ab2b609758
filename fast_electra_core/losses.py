"""The losses, as sums: the caller divides by the whole batch's count, so accumulation equals the full batch.

Shapes: B sequences, L tokens per sequence, N selected tokens, V vocabulary.
"""

import torch
from torch import Tensor
from torch.nn import functional

from fast_electra_core.selection import Selection


def rtd_loss_sum(logits: Tensor, targets: Tensor) -> Tensor:
    """Binary cross-entropy of replaced token detection, in nats, summed over all tokens.

    logits (B, L) float: positive means "replaced"; targets (B, L): whether replaced (bool), or soft_rtd_targets.
    ELECTRA (arXiv 2003.10555), sec. 2; the loss runs over all real tokens, and packed sequences hold no other.
    """
    return functional.binary_cross_entropy_with_logits(logits.float(), targets.float(), reduction="sum")


def soft_rtd_targets(is_replaced: Tensor, selection: Selection, doubt: Tensor, *, share: float) -> Tensor:
    """Targets (B, L) float32 of replaced token detection, softened where tokens were selected:

        (1 - share) · [replaced] + share · doubt,    doubt = 1 - p(token that stands there now | masked text)

    p is the auxiliary's own, at temperature 1: the more plausible a token is in its place, the less sure the target is
    that it was replaced, also of a token that was drawn as it was. Where nothing was selected the target stays 0.

    is_replaced bool (B, L), doubt (N,) in [0, 1] in row-major order of the selected positions, share in [0, 1].
    `Unverified:` that soft targets from the auxiliary help is hearsay; the formula is this project's.
    """
    hard = is_replaced.float()
    soft = selection.put(hard, doubt)
    return hard + share * (soft - hard)


def consistency_loss_sum(logits: Tensor, others: Tensor, is_compared: Tensor) -> Tensor:
    """Disagreement of a detector with itself over two corruptions of the same text, in nats, summed where compared.

    Per token (KL(p || q) + KL(q || p)) / 2 of the two Bernoulli distributions, which is (p - q)(z_p - z_q) / 2 for the
    logits z; 0 where they agree. logits, others (B, L) float; is_compared bool (B, L). `Unverified:` the symmetric form
    is remembered from R-Drop (arXiv 2106.14448).
    """
    logits, others = logits.float(), others.float()
    return ((logits.sigmoid() - others.sigmoid()) * (logits - others) * is_compared).sum() / 2


def masked_lm_loss_sum(logits: Tensor, original_ids: Tensor) -> Tensor:
    """Cross-entropy of the original tokens, in nats, summed over the selected positions.

    logits (N, V), original_ids (N,) int64.
    """
    return functional.cross_entropy(logits.float(), original_ids, reduction="sum")


def majority_rtd_loss(replaced_fraction: float) -> float:
    """RTD loss per token, in nats, of a detector that knows the share of replaced tokens and nothing else: its entropy.

    >>> round(majority_rtd_loss(0.5), 4)
    0.6931
    >>> majority_rtd_loss(0.0)
    0.0
    """
    share = torch.tensor(replaced_fraction, dtype=torch.float64)
    return float(torch.special.entr(share) + torch.special.entr(1 - share))
