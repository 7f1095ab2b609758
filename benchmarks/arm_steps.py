"""The step of every arm as a function of a batch: what the benchmarks of steps have in common.

Random tokens: what they say does not matter for time.
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import rivals
import torch
from torch import Tensor, nn
from transformers import PretrainedConfig

from fast_electra_core import corruption
from fast_electra_core.config import PretrainConfig
from fast_electra_core.corruption_store import StoredSamples, write_samples
from fast_electra_core.cost import METHOD_WORK, RunSize, plan_flops
from fast_electra_core.curriculum import Curriculum
from fast_electra_core.data import SpecialIds
from fast_electra_core.electra import Electra
from fast_electra_core.fast_electra import FastElectra
from fast_electra_core.last_layer import last_layer_at
from fast_electra_core.methods import Batch, Method, Totals
from fast_electra_core.model_cost import cost_of
from fast_electra_core.models import (
    build_discriminator,
    build_masked_lm,
    compile_layers,
    encoder_config,
    freeze,
    vocabulary_logits,
)
from fast_electra_core.optimizer import build_optimizer
from fast_electra_core.precision import autocast
from fast_electra_core.proposals import FrozenMaskedLm

SPECIAL = SpecialIds(cls=2, sep=3, mask=4, pad=0, all_special=(0, 1, 2, 3, 4))
VOCAB_SIZE, MASK_FRACTION = 30_522, 0.15
JOINT, JOINT_CUT, ONLINE, OFFLINE = "joint ELECTRA", "joint, last layer cut", "Fast-ELECTRA", "Fast-ELECTRA, offline"
ALONE, LOOP, PACKAGE = "main model alone", "transformers' modules", "electra-pytorch"
APART = "within documents"
Shape = dict[str, int]


class Comparison(NamedTuple):
    """Arms that take turns; the first is what the others are set beside."""

    main: Shape
    auxiliary: Shape
    batch_size: int
    sequence_length: int
    arms: tuple[str, ...]
    with_memory: tuple[str, ...]


def shape_of(layers: int, width: int, embedding: int, heads: int) -> Shape:
    """A model's knobs; its feed-forward part is four times as wide as it."""
    return {
        "num_layers": layers, "hidden_size": width, "embedding_size": embedding, "num_heads": heads,
        "intermediate_size": 4 * width,
    }  # fmt: skip


COMPARISONS = {
    "base": Comparison(
        shape_of(12, 768, 768, 12), shape_of(4, 768, 768, 12), 8, 128,
        (JOINT, JOINT_CUT, ONLINE, OFFLINE, ALONE), (JOINT, ONLINE, OFFLINE),
    ),
    "small": Comparison(
        shape_of(12, 256, 128, 4), shape_of(12, 64, 128, 1), 8, 128,
        (JOINT, ONLINE, APART, OFFLINE, LOOP, PACKAGE), (),
    ),
}  # fmt: skip
_RIVALS = {LOOP: rivals.transformers_loop, PACKAGE: rivals.electra_pytorch}


class Place(NamedTuple):
    """Where steps are taken, and how."""

    device: torch.device = torch.device("cpu")
    is_compiled: bool = False
    """Whether the layers of all that trains are compiled, the rivals' too."""


ON_CPU = Place()


def config_of(shape: Shape, comparison: Comparison) -> PretrainConfig:
    """A run's config with the shape of one of the comparison's models."""
    return PretrainConfig(
        **shape, dropout=0.0, sequence_length=comparison.sequence_length, batch_size=comparison.batch_size
    )


def build_step(
    arm: str, comparison: Comparison, stored: StoredSamples | None = None, *, place: Place = ON_CPU
) -> Callable[[Batch, int], None]:
    """A function that takes the step on a batch of the CPU's; its number picks what was `stored` for it, which the arm
    OFFLINE needs. In bf16 where the hardware has it."""
    config, small = config_of(comparison.main, comparison), config_of(comparison.auxiliary, comparison)
    shapes = [encoder_config(each, vocab_size=VOCAB_SIZE, special_ids=SPECIAL) for each in (config, small)]
    if arm in _RIVALS:
        module, loss_of = _RIVALS[arm](*shapes, special_ids=SPECIAL)
    else:
        module = _method(arm, *shapes, device=place.device)
        loss_of = functools.partial(_ours, module)
    module.to(place.device).train()
    if place.is_compiled:
        compile_layers(module)
    if isinstance(module, Method):
        optimizer: torch.optim.Optimizer = build_optimizer(module, config)
    else:  # torch's AdamW as it is, which its users would take
        optimizer = torch.optim.AdamW(module.parameters(), lr=5e-4)

    def step(batch: Batch, number: int) -> None:
        batch = _prepared(arm, batch, number, stored).to(place.device)
        with autocast("auto", place.device):
            loss = loss_of(batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def _prepared(arm: str, batch: Batch, number: int, stored: StoredSamples | None) -> Batch:
    if arm == OFFLINE:
        assert stored is not None
        samples = stored.at(number)
        return batch._replace(corrupted_ids=corruption.place(batch.input_ids, batch.selected(), samples).corrupted_ids)
    if arm == ALONE:
        return batch._replace(corrupted_ids=batch.input_ids)
    if arm == APART:  # two documents in each sequence
        length = batch.input_ids.shape[1]
        return batch._replace(documents=(torch.arange(length) >= length // 2).long().repeat(len(batch.input_ids), 1))
    return batch


def _ours(method: Method, batch: Batch) -> Tensor:
    totals = Totals(batch.input_ids.numel(), len(batch.selected().places))
    return method.loss(batch, totals, progress=0.5, stats={})


class _JointCut(Electra):
    """Joint ELECTRA with the one advantage of the frozen auxiliary that it could have, too."""

    def _generate(self, batch: Batch) -> Tensor:
        selection = batch.selected()
        with last_layer_at(self.generator, selection.columns):
            hidden = self.generator.base_model(input_ids=batch.masked_ids(SPECIAL.mask)).last_hidden_state
        return vocabulary_logits(self.generator, hidden.flatten(0, 1)[selection.places])


def _method(arm: str, shape: PretrainedConfig, aux_shape: PretrainedConfig, *, device: torch.device) -> Method:
    discriminator = build_discriminator(shape, seed=0)
    if arm in (JOINT, JOINT_CUT):
        kind = Electra if arm == JOINT else _JointCut
        return kind(discriminator, build_masked_lm(aux_shape, seed=1), rtd_weight=50.0, mask_token_id=SPECIAL.mask)
    proposal = None
    if arm in (ONLINE, APART):
        auxiliary = build_masked_lm(aux_shape, seed=1).to(device)
        freeze(auxiliary)
        proposal = FrozenMaskedLm([auxiliary], mask_token_id=SPECIAL.mask)
    curriculum = Curriculum("exponential", 2.0, 0.1, 1.0)
    return FastElectra(discriminator, proposal, curriculum=curriculum, rtd_weight=50.0)


def planned_flops(comparison: Comparison) -> dict[str, float]:
    """FLOPs per token of our own arms, by the ledger."""
    shapes = (config_of(each, comparison) for each in (comparison.main, comparison.auxiliary))
    with torch.device("meta"):
        models: list[nn.Module] = [
            build(encoder_config(each, vocab_size=VOCAB_SIZE, special_ids=SPECIAL), seed=0)
            for build, each in zip((build_discriminator, build_masked_lm), shapes, strict=True)
        ]
    main_cost, auxiliary = (
        cost_of(model, sequence_length=comparison.sequence_length, head_fraction=MASK_FRACTION) for model in models
    )
    plan = plan_flops(
        main_cost, [auxiliary], work=METHOD_WORK["fast_electra"], size=RunSize(num_tokens=1, tokens_per_pass=1)
    )
    assert plan.joint_total is not None
    return {
        JOINT: plan.joint_total, JOINT_CUT: plan.joint_total - 3 * auxiliary.skipped_flops, ONLINE: plan.total,
        OFFLINE: plan.main, ALONE: plan.main, APART: plan.total,
    }  # fmt: skip


def store_samples(folder: Path, config: PretrainConfig, *, rounds: int) -> StoredSamples:
    """Random ids for every round, on the disk as offline corruption leaves them."""
    rng = torch.Generator().manual_seed(0)
    counts = [int(batch_of(config, seed=number).is_selected.sum()) for number in range(rounds)]
    samples = [torch.randint(5, VOCAB_SIZE, (count,), generator=rng) for count in counts]
    write_samples(folder, samples, first_step=0, vocab_size=VOCAB_SIZE, identity={}, made_by={})
    return StoredSamples(lambda step: folder, identity={})


def batch_of(config: PretrainConfig, *, seed: int) -> Batch:
    """Random tokens and uniforms; every sequence has as many selected tokens as the next."""
    rng = torch.Generator().manual_seed(seed)
    shape = (config.batch_size, config.sequence_length)
    input_ids = torch.randint(5, VOCAB_SIZE, shape, generator=rng)
    is_selected = torch.rand(shape, generator=rng).argsort(dim=1) < round(MASK_FRACTION * shape[1])
    return Batch(input_ids, is_selected, torch.rand(shape, generator=rng, dtype=torch.float64))
