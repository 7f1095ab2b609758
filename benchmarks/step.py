"""Time and memory of one optimiser step: Fast-ELECTRA beside its rivals.

    python benchmarks/step.py [--comparison base,small] [--rounds 5]

base: 12 × 768 with an auxiliary of 4 × 768, beside joint ELECTRA in our own trainer and the main model alone. small:
ELECTRA-small with its generator of a quarter of the width, beside what others have published.

One thread, process time; the arms take turns in every round, so that whatever else the machine does befalls all of
them; printed are medians, their ratio to the first arm, and as noise half the interquartile range. Peak memory is what
a process of its own, with two steps of the arm, keeps resident beyond its imports, where malloc gives back what is
freed.
Random tokens: what they say does not matter for time.
"""

import argparse
import functools
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import rivals
import torch
from torch import Tensor, nn

from fast_electra_core.config import PretrainConfig
from fast_electra_core.corruption import place
from fast_electra_core.corruption_store import StoredSamples, write_samples
from fast_electra_core.cost import METHOD_WORK, RunSize, plan_flops
from fast_electra_core.curriculum import Curriculum
from fast_electra_core.data import SpecialIds
from fast_electra_core.electra import Electra
from fast_electra_core.fast_electra import FastElectra
from fast_electra_core.last_layer import last_layer_at
from fast_electra_core.methods import Batch, Method, Totals
from fast_electra_core.model_cost import cost_of
from fast_electra_core.models import build_discriminator, build_masked_lm, encoder_config, freeze, vocabulary_logits
from fast_electra_core.optimizer import build_optimizer
from fast_electra_core.peak import gemm_flops_per_second
from fast_electra_core.proposals import FrozenMaskedLm
from steps.meter import MemoryMeter

SPECIAL = SpecialIds(cls=2, sep=3, mask=4, pad=0, all_special=(0, 1, 2, 3, 4))
VOCAB_SIZE, MASK_FRACTION = 30_522, 0.15
JOINT, JOINT_CUT, ONLINE, OFFLINE = "joint ELECTRA", "joint, last layer cut", "Fast-ELECTRA", "Fast-ELECTRA, offline"
ALONE, LOOP, PACKAGE = "main model alone", "transformers' modules", "electra-pytorch"
APART = "within documents"
MALLOC = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
Shape = dict[str, int]


class Comparison(NamedTuple):
    """Arms that take turns; the first is what the others are set beside."""

    main: Shape
    auxiliary: Shape
    batch_size: int
    sequence_length: int
    arms: tuple[str, ...]
    with_memory: tuple[str, ...]


def _shape(layers: int, width: int, embedding: int, heads: int) -> Shape:
    return {
        "num_layers": layers, "hidden_size": width, "embedding_size": embedding, "num_heads": heads,
        "intermediate_size": 4 * width,
    }  # fmt: skip


COMPARISONS = {
    "base": Comparison(
        _shape(12, 768, 768, 12), _shape(4, 768, 768, 12), 8, 128,
        (JOINT, JOINT_CUT, ONLINE, OFFLINE, ALONE), (JOINT, ONLINE, OFFLINE),
    ),
    "small": Comparison(
        _shape(12, 256, 128, 4), _shape(12, 64, 128, 1), 8, 128,
        (JOINT, ONLINE, APART, OFFLINE, LOOP, PACKAGE), (),
    ),
}  # fmt: skip


def main() -> None:
    """Measure and print the tables."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--comparison", default=",".join(COMPARISONS), help="which, separated by commas")
    arguments.add_argument("--rounds", type=int, default=5, help="measured rounds, after one to warm up")
    arguments.add_argument("--batch_size", type=int, help="instead of the comparison's own")
    arguments.add_argument("--sequence_length", type=int, help="likewise")
    given = arguments.parse_args()
    torch.set_num_threads(1)
    for name in given.comparison.split(","):
        comparison = COMPARISONS[name]._replace(
            **{key: value for key in ("batch_size", "sequence_length") if (value := getattr(given, key)) is not None}
        )
        _print_table(name, comparison, rounds=given.rounds)


def _print_table(name: str, comparison: Comparison, *, rounds: int) -> None:
    arms = [arm for arm in comparison.arms if arm != PACKAGE or rivals.HAS_ELECTRA_PYTORCH]
    config = _config(comparison.main, comparison)
    with tempfile.TemporaryDirectory() as folder:
        stored = _store(Path(folder), config, rounds=rounds + 1)
        steps = {arm: _build(arm, comparison, stored) for arm in arms}
        times: dict[str, list[float]] = {arm: [] for arm in arms}
        gemm = 0.0
        for number in range(rounds + 1):
            batch = _batch(config, seed=number)
            gemm = max(gemm, gemm_flops_per_second(torch.device("cpu"), clock=time.process_time))
            for arm, step in steps.items():
                start = time.process_time()
                step(batch, number)
                if number:
                    times[arm].append(time.process_time() - start)
    del steps
    planned = _planned(comparison)
    memory = {arm: _measured_memory(name, comparison, arm) for arm in comparison.with_memory}
    first = statistics.median(times[arms[0]])
    print(f"\n{name}: {comparison.main['num_layers']} x {comparison.main['hidden_size']}, auxiliary ", end="")
    print(f"{comparison.auxiliary['num_layers']} x {comparison.auxiliary['hidden_size']}, batch ", end="")
    print(f"{comparison.batch_size} x {comparison.sequence_length}; GEMM {gemm / 1e9:.1f} GFLOP/s")
    print(
        f"{'':<22}{'ms per step':>12}{'noise':>7}{'ratio':>7}{'by FLOPs':>10}{'of GEMM':>9}{'peak, MB':>10}{'ratio':>7}"
    )
    for arm in arms:
        low, median, high = statistics.quantiles(times[arm], n=4)
        row = f"{arm:<22}{1000 * median:>12.0f}{500 * (high - low):>7.0f}{median / first:>7.3f}"
        if arm in planned:
            flops = planned[arm] * comparison.batch_size * comparison.sequence_length
            row += f"{planned[arm] / planned[arms[0]]:>10.3f}{flops / median / gemm:>9.1%}"
        if arm in memory:
            row += f"{memory[arm] / 1e6:>10.0f}{memory[arm] / memory[arms[0]]:>7.3f}".rjust(
                17 if arm in planned else 36
            )
        print(row)
    if len(arms) < len(comparison.arms):
        print(f"{PACKAGE}: not installed; {rivals.HOW_TO_GET_IT}")


def _config(shape: Shape, comparison: Comparison) -> PretrainConfig:
    return PretrainConfig(
        **shape, dropout=0.0, sequence_length=comparison.sequence_length, batch_size=comparison.batch_size
    )


def _build(arm: str, comparison: Comparison, stored: StoredSamples | None) -> Callable[[Batch, int], None]:
    """A function that takes the step on a batch; its number picks what was stored for it."""
    config, small = _config(comparison.main, comparison), _config(comparison.auxiliary, comparison)
    shape, aux_shape = (encoder_config(each, vocab_size=VOCAB_SIZE, special_ids=SPECIAL) for each in (config, small))
    if arm in (LOOP, PACKAGE):
        make = rivals.transformers_loop
        if arm == PACKAGE:
            make = functools.partial(rivals.electra_pytorch, special_ids=SPECIAL.all_special)
        rival = make(shape, aux_shape, mask_token_id=SPECIAL.mask)
        return lambda batch, number: rival(batch)
    method = _method(arm, shape, aux_shape)
    optimizer = build_optimizer(method, config)

    def step(batch: Batch, number: int) -> None:
        if arm == OFFLINE:
            assert stored is not None
            samples = stored.at(number)
            batch = batch._replace(corrupted_ids=place(batch.input_ids, batch.selected(), samples).corrupted_ids)
        if arm == ALONE:
            batch = batch._replace(corrupted_ids=batch.input_ids)
        if arm == APART:  # two documents in each sequence
            second = torch.arange(comparison.sequence_length) >= comparison.sequence_length // 2
            batch = batch._replace(documents=second.long().expand_as(batch.input_ids))
        totals = Totals(batch.input_ids.numel(), int(batch.is_selected.sum()))
        method.loss(batch, totals, progress=0.5, stats={}).backward()
        torch.nn.utils.clip_grad_norm_(method.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


class _JointCut(Electra):
    """Joint ELECTRA with the one advantage of the frozen auxiliary that it could have, too."""

    def _generate(self, batch: Batch) -> Tensor:
        selection = batch.selected()
        with last_layer_at(self.generator, selection.columns):
            hidden = self.generator.base_model(input_ids=batch.masked_ids(SPECIAL.mask)).last_hidden_state
        return vocabulary_logits(self.generator, hidden.flatten(0, 1)[selection.places])


def _method(arm: str, shape: object, aux_shape: object) -> Method:
    discriminator = build_discriminator(shape, seed=0)
    if arm in (JOINT, JOINT_CUT):
        kind = Electra if arm == JOINT else _JointCut
        joint = kind(discriminator, build_masked_lm(aux_shape, seed=1), rtd_weight=50.0, mask_token_id=SPECIAL.mask)
        return joint.train()
    proposal = None
    if arm in (ONLINE, APART):
        auxiliary = build_masked_lm(aux_shape, seed=1)
        freeze(auxiliary)
        proposal = FrozenMaskedLm([auxiliary], mask_token_id=SPECIAL.mask)
    curriculum = Curriculum("exponential", 2.0, 0.1, 1.0)
    return FastElectra(discriminator, proposal, curriculum=curriculum, rtd_weight=50.0).train()


def _planned(comparison: Comparison) -> dict[str, float]:
    """FLOPs per token of our own arms, by the ledger."""
    shapes = (_config(each, comparison) for each in (comparison.main, comparison.auxiliary))
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


def _measured_memory(name: str, comparison: Comparison, arm: str) -> int:
    """Bytes resident at the peak of two steps, in a process of its own, beyond what a tiny step has loaded."""
    with mock.patch.dict(os.environ, MALLOC):
        context = multiprocessing.get_context("spawn")
        with context.Pool(1) as pool:
            return pool.apply(_peak_of_two_steps, (comparison, arm))


def _peak_of_two_steps(comparison: Comparison, arm: str) -> int:
    torch.set_num_threads(1)
    tiny = comparison._replace(main=_shape(2, 64, 64, 1), auxiliary=_shape(1, 64, 64, 1), batch_size=1)
    _two_steps(tiny, arm)
    meter = MemoryMeter("cpu")
    _two_steps(comparison, arm)
    return meter.peak_bytes()


def _two_steps(comparison: Comparison, arm: str) -> None:
    config = _config(comparison.main, comparison)
    with tempfile.TemporaryDirectory() as folder:
        step = _build(arm, comparison, _store(Path(folder), config, rounds=2))
        for number in range(2):
            step(_batch(config, seed=number), number)


def _store(folder: Path, config: PretrainConfig, *, rounds: int) -> StoredSamples:
    """Random ids for every round, on the disk as offline corruption leaves them."""
    rng = torch.Generator().manual_seed(0)
    counts = [int(_batch(config, seed=number).is_selected.sum()) for number in range(rounds)]
    samples = [torch.randint(5, VOCAB_SIZE, (count,), generator=rng) for count in counts]
    write_samples(folder, samples, first_step=0, vocab_size=VOCAB_SIZE, identity={}, made_by={})
    return StoredSamples(lambda step: folder, identity={})


def _batch(config: PretrainConfig, *, seed: int) -> Batch:
    rng = torch.Generator().manual_seed(seed)
    shape = (config.batch_size, config.sequence_length)
    input_ids = torch.randint(5, VOCAB_SIZE, shape, generator=rng)
    is_selected = torch.rand(shape, generator=rng).argsort(dim=1) < round(MASK_FRACTION * shape[1])
    return Batch(input_ids, is_selected, torch.rand(shape, generator=rng, dtype=torch.float64))


if __name__ == "__main__":
    main()
