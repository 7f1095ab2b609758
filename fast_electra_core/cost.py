"""What a run costs, before it has cost anything: operations in two accountings, and bytes of memory.

The backward pass counts as twice the forward. Per step, as the papers count, an auxiliary that was there already costs
its forward passes alone. Charged, its own training is added, divided by the runs that share it: a single run gains over
joint training only if the auxiliary was trained on less than two thirds of the run's number of tokens.

What a model costs is in model_cost.py; google-research/electra's way of counting in cost_conventions.py.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from fast_electra_core.model_cost import FLOAT_BYTES, ModelCost

_OPTIMIZER_NUMBERS = 2  # Adam's two moments


@dataclass(frozen=True, kw_only=True)
class MethodWork:
    """What a method does, as far as it costs something."""

    auxiliary: str = "none"
    """frozen: a masked language model draws the replacements, or teaches; trained: it learns alongside; none."""
    predicts_tokens: bool = False
    """The main model has a vocabulary head that runs on the selected tokens, not a detector that runs on all. A frozen
    auxiliary then is its teacher."""
    shares_embeddings: bool = False
    """A trained auxiliary and the main model have one token embedding table, where its shapes agree."""


METHOD_WORK: Mapping[str, MethodWork] = {
    "fast_electra": MethodWork(auxiliary="frozen"),
    "electra": MethodWork(auxiliary="trained", shares_embeddings=True),
    "electra_decoupled": MethodWork(auxiliary="trained"),
    "electra_gdes": MethodWork(auxiliary="trained"),  # the difference to the generator's table is as large as a table
    "mlm": MethodWork(predicts_tokens=True),
    "distilled": MethodWork(auxiliary="frozen", predicts_tokens=True),
    "uniform": MethodWork(),
    "unigram": MethodWork(),
    "bigram": MethodWork(),
}
"""By the name of the method; an auxiliary is made by `mlm`, or `distilled`."""


@dataclass(frozen=True, kw_only=True)
class RunSize:
    """How much of it there is."""

    num_tokens: int
    """In all steps."""
    tokens_per_pass: int
    """In one forward and backward pass of a process: a micro-batch."""
    num_corruptions: int = 1
    """Of every sequence, each seen in a pass of its own before the backward one. >= 1."""
    num_processes: int = 1
    """That train together, each on its rows. >= 1."""
    is_sharded: bool = False
    """They share the trained models (FSDP) instead of each holding them."""
    is_accumulated: bool = False
    """A step has several passes, so gradients are there while the next one runs."""
    is_drawn_ahead: bool = False
    """Replacements are drawn before training, which then holds no frozen auxiliary."""
    reused_fraction: float = 0.0
    """Share of the steps whose replacements an earlier run has drawn. [0, 1]."""
    auxiliary_training_flops: float | None = 0.0
    """What the training of the auxiliary's weights has cost; None: not known; 0: the run uses none of them."""
    auxiliary_shared_by: int = 1
    """Runs that use these weights, this one included. >= 1."""


class Flops(NamedTuple):
    """Floating-point operations of a run."""

    total: float
    """Per step's accounting: what this run computes."""
    main: float
    """Of which the main model's, forward and backward."""
    auxiliary: float
    """Of which the auxiliary's: forward, in training or ahead of it, and backward where it is trained alongside."""
    auxiliary_reused: float
    """The auxiliary's forward passes that an earlier run has done; not in total."""
    charged: float | None
    """total, and this run's share of the auxiliary's own training; None: what that has cost is not known."""
    joint_total: float | None
    """A run of the same models, the auxiliary's shape trained alongside; None where no detector or no auxiliary is."""
    main_head: float
    """Of main, what is above the encoder."""
    auxiliary_head: float
    """Of auxiliary, likewise."""

    @property
    def saving_fraction(self) -> float | None:
        """Share of the joint run's cost that this one saves, the auxiliary's own training not charged."""
        return None if self.joint_total is None else 1.0 - self.total / self.joint_total

    @property
    def charged_saving_fraction(self) -> float | None:
        """The same, with its share of the auxiliary's own training; below 0 where joint training is cheaper."""
        if self.joint_total is None or self.charged is None:
            return None
        return 1.0 - self.charged / self.joint_total


class Memory(NamedTuple):
    """Bytes that a process needs at the same time in training; of several the first, which never holds less."""

    weights: float
    """Trained or frozen; of what is sharded, its share."""
    gradients: float
    optimizer_state: float
    activations: float
    """What a micro-batch keeps for its backward pass."""
    logits: float
    """The vocabulary head's output while it is used, and its gradient where it has one."""
    exchange: float
    """For what several processes exchange: with replicas, gradients once more, in the buckets that are summed; with
    shards, whole weights: those in no layer throughout a pass, and two layers at a time."""
    saved: float
    """The whole weights that the first process keeps beside its shards, to score and save them."""
    peak: float
    """At the worst moment: a gradient that takes an activation's place needs none of its own."""


def plan_flops(
    main: ModelCost, auxiliaries: Sequence[ModelCost], *, work: MethodWork, size: RunSize, backward: float = 2.0
) -> Flops:
    """The operations of a run; backward is the price of a backward pass in forward passes.

    auxiliaries: the models that draw replacements: one, several of an ensemble, or none.

    >>> main, auxiliary = (ModelCost(flops, 0.0, 0.0, 0, (0, 0), 0.0, 0.0, 0.0) for flops in (3.0, 1.0))
    >>> size = RunSize(num_tokens=10, tokens_per_pass=10, auxiliary_training_flops=60.0, auxiliary_shared_by=2)
    >>> plan = plan_flops(main, [auxiliary], work=METHOD_WORK["fast_electra"], size=size)
    >>> plan.total, plan.auxiliary, plan.charged, plan.joint_total
    (100.0, 10.0, 130.0, 120.0)
    """
    training = 1.0 + backward
    seen = size.num_tokens * size.num_corruptions
    main_flops = (training * main.forward_flops + main.recomputed_flops) * seen
    forward = sum(auxiliary.forward_flops for auxiliary in auxiliaries) * seen
    frozen = forward - sum(auxiliary.skipped_flops for auxiliary in auxiliaries) * seen
    reused = size.reused_fraction * frozen if work.auxiliary == "frozen" else 0.0
    ours = {"frozen": frozen, "trained": training * forward, "none": 0.0}[work.auxiliary] - reused
    own_training, has_joint = size.auxiliary_training_flops, bool(auxiliaries) and not work.predicts_tokens
    heads = sum(auxiliary.head_flops for auxiliary in auxiliaries) * seen
    drawn = 1.0 - size.reused_fraction
    generator = auxiliaries[0].forward_flops * seen if auxiliaries else 0.0  # a joint run has one, whatever an ensemble
    return Flops(
        total=main_flops + ours,
        main=main_flops,
        auxiliary=ours,
        auxiliary_reused=reused,
        charged=None if own_training is None else main_flops + ours + own_training / size.auxiliary_shared_by,
        joint_total=(main_flops + training * generator) / size.num_corruptions if has_joint else None,
        main_head=training * main.head_flops * seen,
        auxiliary_head={"frozen": drawn * heads, "trained": training * heads, "none": 0.0}[work.auxiliary],
    )


def plan_memory(main: ModelCost, auxiliaries: Sequence[ModelCost], *, work: MethodWork, size: RunSize) -> Memory:
    """The bytes of a training, all numbers in float32; what a layer's own backward pass needs is left out.

    A frozen auxiliary costs its weights and, before the main model has kept anything, its logits; one that is trained
    keeps all that the main model keeps, and its logits throughout. A teacher's pass comes when the main model's is
    kept; of its logits a few rows at a time are there, and the gradient that they give is kept. A frozen model is
    whole in every process.
    """
    is_trained = work.auxiliary == "trained"
    is_away = work.auxiliary == "none" or (work.auxiliary == "frozen" and size.is_drawn_ahead)
    in_memory = [] if is_away else list(auxiliaries)
    trained = [main, *(in_memory if is_trained else [])]
    frozen = float(FLOAT_BYTES * sum(each.num_parameters for each in in_memory if not is_trained))
    share = _share(trained, work=work, size=size)
    kept = sum(each.activation_bytes for each in trained) * size.tokens_per_pass * size.num_corruptions
    logits, drawn = (sum(each.logit_bytes for each in models) * size.tokens_per_pass for models in ([main], in_memory))
    passing = max((each.passing_bytes for each in in_memory), default=0.0) * size.tokens_per_pass
    if work.predicts_tokens:  # in the backward pass the gradients of probabilities and logits; of a teacher's once more
        drawn, own = 0.0, (3 if in_memory else 2) * logits
        during = kept + max(own, logits + passing)
    else:
        own = 0.0
        during = kept + drawn if is_trained else max(kept, drawn, passing)
    fixed = frozen + (1 + _OPTIMIZER_NUMBERS) * share.held + share.buckets + share.saved
    in_pass = (share.held if size.is_accumulated else 0.0) + during + share.gathered
    at_its_end = share.held + 2 * share.outer + share.parts  # outer: gathered and its gradient, then that and a copy
    return Memory(
        weights=frozen + share.held,
        gradients=share.held,
        optimizer_state=_OPTIMIZER_NUMBERS * share.held,
        activations=kept,
        logits=own + drawn,
        exchange=share.buckets + share.gathered,
        saved=share.saved,
        peak=max(fixed + max(in_pass, at_its_end), frozen + 2 * share.saved),  # before they are shared, both are whole
    )


def own_parameters(main: ModelCost, auxiliaries: Sequence[ModelCost], *, work: MethodWork) -> int:
    """Parameters of the auxiliaries, without those that they share with the main model."""
    return sum(each.num_parameters for each in auxiliaries) - sum(map(_table, _sharing(main, auxiliaries, work)))


def _sharing(main: ModelCost, others: Sequence[ModelCost], work: MethodWork) -> list[ModelCost]:
    """Those of the others whose token embeddings are the main model's."""
    return [each for each in others if work.shares_embeddings and each.embedding_shape == main.embedding_shape]


class _Share(NamedTuple):
    """What a process holds because of the trained weights, in bytes."""

    held: float
    """Of the weights, and so of gradients and of each moment."""
    parts: float
    """Gradients of a token embedding that is a head's output matrix too, before they are added up."""
    buckets: float = 0.0
    """Gradients once more, where replicas sum them."""
    saved: float = 0.0
    """Memory.saved."""
    outer: float = 0.0
    """Weights in no layer, where they are gathered."""
    gathered: float = 0.0
    """At most at a time while activations are kept: those, a layer, and the next one on its way."""


def _share(trained: Sequence[ModelCost], *, work: MethodWork, size: RunSize) -> _Share:
    shared = _sharing(trained[0], trained[1:], work)
    whole = FLOAT_BYTES * float(sum(each.num_parameters for each in trained) - sum(map(_table, shared)))
    # Two and their sum; but what comes from a detector is there first, and is added to in place.
    tables = FLOAT_BYTES * float(sum(_table(each) for each in trained if each.logit_bytes))
    parts = tables if shared else 2 * tables
    if not size.is_sharded:
        parts += tables if size.is_accumulated else 0.0
        return _Share(whole, parts, buckets=whole if size.num_processes > 1 else 0.0)
    number = size.num_processes
    held = sum(each.shard_parameters(number) for each in trained) - sum(_table(each, number) for each in shared)
    outer = FLOAT_BYTES * float(sum(each.outer_parameters for each in trained) - sum(map(_table, shared)))
    layer = FLOAT_BYTES * float(max(each.layer_parameters for each in trained))
    return _Share(float(FLOAT_BYTES * held), parts, saved=whole, outer=outer, gathered=outer + 2 * layer)


def _table(model: ModelCost, num_processes: int = 1) -> int:
    """Numbers in the token embeddings, or in the first process's rows of them."""
    rows, width = model.embedding_shape
    return -(-rows // num_processes) * width
