"""The optimizer of pre-training: its groups, and the clipping of what it is given."""

from typing import Any

import torch
from torch.distributed.tensor import DTensor

from fast_electra_core.config import TrainingConfig
from fast_electra_core.methods import Method, Stats


def build_optimizer(method: Method, config: TrainingConfig) -> torch.optim.Optimizer:
    """AdamW, fused, as in ELECTRA (betas .9 and .999, eps 1e-6, no decay of biases and LayerNorm).

    Adam treats every parameter by itself, so a method's parameter sets, in groups of their own, train as with an
    optimizer each. Departs from ELECTRA: Adam's bias correction is on; with warm-up the difference fades within the
    first steps.
    """
    groups: list[dict[str, Any]] = []
    for each in method.parameter_sets():
        matrices = [p for p in each.parameters if p.ndim >= 2]
        others = [p for p in each.parameters if p.ndim < 2]
        for parameters, decay in ((matrices, config.weight_decay), (others, 0.0)):
            factor = each.learning_rate_factor
            groups.append({"params": parameters, "weight_decay": decay, "learning_rate_factor": factor})
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.999), eps=1e-6, fused=True)


def clip_gradients(method: Method, max_norm: float) -> Stats:
    """Scale each parameter set's gradients down to the norm allowed; the norms that they had, by the name to log."""
    norms = {
        f"{each.prefix}gradient_norm": torch.nn.utils.clip_grad_norm_(each.parameters, max_norm)
        for each in method.parameter_sets()
    }
    # Of shards it is the whole gradient's, the same in every process; as a plain tensor once it is asked for.
    return {name: norm.full_tensor() if isinstance(norm, DTensor) else norm for name, norm in norms.items()}
