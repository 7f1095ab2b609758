"""The two losses, as sums: the caller divides by the whole batch's count, so accumulation equals the full batch.

Shapes: B sequences, L tokens per sequence, N selected tokens, V vocabulary.
"""

import torch
from torch import Tensor
from torch.nn import functional


def rtd_loss_sum(logits: Tensor, is_replaced: Tensor) -> Tensor:
    """Binary cross-entropy of replaced token detection, in nats, summed over all tokens.

    logits (B, L) float: positive means "replaced"; is_replaced (B, L) bool. ELECTRA (arXiv 2003.10555), sec. 2; the
    loss runs over all real tokens, and packed sequences hold no other.
    """
    return functional.binary_cross_entropy_with_logits(logits.float(), is_replaced.float(), reduction="sum")


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
