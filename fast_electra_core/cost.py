"""What a model and a run cost: floating-point operations, counted from the layers a model really has.

A multiplication and an addition count as two. Backward costs twice the forward. Embedding look-ups, norms, activations
and softmaxes are not counted: they move bytes, and are under a percent of the operations.
"""

from typing import NamedTuple

from torch import nn
from transformers import PreTrainedModel


def forward_flops_per_token(model: PreTrainedModel, *, sequence_length: int, head_fraction: float = 1.0) -> float:
    """Forward FLOPs per token of the sequence: 2·in·out for each linear layer, 4·L·D for each attention.

    head_fraction: share of the tokens that everything above the encoder runs on, e.g. the mask fraction for a masked
    language model's vocabulary head.
    """
    encoder = {id(layer) for layer in _linears(model.base_model)}
    in_encoder = sum(_flops(layer) for layer in _linears(model) if id(layer) in encoder)
    in_head = sum(_flops(layer) for layer in _linears(model) if id(layer) not in encoder)
    attention = 4.0 * sequence_length * int(model.config.hidden_size) * int(model.config.num_hidden_layers)
    return in_encoder + attention + head_fraction * in_head


def _linears(module: nn.Module) -> list[nn.Linear]:
    return [layer for layer in module.modules() if isinstance(layer, nn.Linear)]


def _flops(layer: nn.Linear) -> float:
    return 2.0 * layer.in_features * layer.out_features


class Plan(NamedTuple):
    """What a pre-training run will cost, in FLOPs."""

    total: float
    auxiliary: float
    """Of which the frozen auxiliary's forward passes, in training or ahead of it; 0 where a generator is trained
    instead."""
    joint_total: float
    """The same run with the auxiliary's shape trained alongside, as ELECTRA does."""
    auxiliary_reused: float
    """The auxiliary's forward passes that an earlier run has done; not in total."""

    @property
    def saving_fraction(self) -> float:
        """Share of the joint run's cost that freezing saves, the auxiliary's own training not charged."""
        return 1.0 - self.total / self.joint_total


def plan_run(
    discriminator_flops: float,
    auxiliary_flops: float,
    *,
    num_tokens: int,
    is_frozen: bool,
    reused_fraction: float = 0.0,
) -> Plan:
    """The cost of num_tokens of training; the flops are forward, per token.

    reused_fraction: share of the steps whose corruption is there already, from an earlier run. [0, 1].

    >>> plan = plan_run(3.0, 1.0, num_tokens=10, is_frozen=True)
    >>> plan.total, plan.auxiliary, plan.joint_total
    (100.0, 10.0, 120.0)
    """
    joint = 3.0 * (discriminator_flops + auxiliary_flops) * num_tokens
    drawn = auxiliary_flops * num_tokens if is_frozen else 0.0
    reused = reused_fraction * drawn
    return Plan(
        total=3.0 * discriminator_flops * num_tokens + drawn - reused if is_frozen else joint,
        auxiliary=drawn - reused,
        joint_total=joint,
        auxiliary_reused=reused,
    )
