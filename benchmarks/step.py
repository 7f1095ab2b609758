"""Time of one optimiser step: Fast-ELECTRA, its corruption online and offline, beside joint ELECTRA.

    python benchmarks/step.py [--rounds 15] [--size small]

One thread, process time, the variants take turns in every round; printed are medians, their ratio to joint ELECTRA, and
the noise as half the interquartile range. Random tokens: what they say does not matter for time.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch

from fast_electra_core.config import PretrainConfig
from fast_electra_core.corruption import place
from fast_electra_core.corruption_store import StoredSamples, write_samples
from fast_electra_core.cost import METHOD_WORK, RunSize, plan_flops
from fast_electra_core.curriculum import Curriculum
from fast_electra_core.data import SpecialIds
from fast_electra_core.electra import Electra
from fast_electra_core.fast_electra import FastElectra
from fast_electra_core.methods import Batch, Method, Totals
from fast_electra_core.model_cost import cost_of
from fast_electra_core.models import build_discriminator, build_masked_lm, encoder_config
from fast_electra_core.proposals import FrozenMaskedLm
from fast_electra_core.trainer import build_optimizer

SIZES = {
    "small": {"num_layers": 12, "hidden_size": 256, "embedding_size": 128, "num_heads": 4, "intermediate_size": 1024},
    "base": {"num_layers": 12, "hidden_size": 768, "embedding_size": 768, "num_heads": 12, "intermediate_size": 3072},
}
AUXILIARY_LAYERS = 4
OFFLINE = "Fast-ELECTRA, offline"
SPECIAL = SpecialIds(cls=2, sep=3, mask=4, pad=0, all_special=(0, 1, 2, 3, 4))


def main() -> None:
    """Measure and print the table."""
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--rounds", type=int, default=15, help="measured rounds, after one to warm up")
    arguments.add_argument("--size", choices=SIZES, default="small")
    arguments.add_argument("--batch_size", type=int, default=8)
    arguments.add_argument("--sequence_length", type=int, default=128)
    arguments.add_argument("--vocab_size", type=int, default=30_522)
    given = arguments.parse_args()
    torch.set_num_threads(1)
    config = PretrainConfig(
        **SIZES[given.size], dropout=0.0, sequence_length=given.sequence_length, batch_size=given.batch_size
    )
    methods = _build(config, given.vocab_size)
    optimizers = {name: build_optimizer(method, config) for name, method in methods.items()}
    times: dict[str, list[float]] = {name: [] for name in methods}
    with tempfile.TemporaryDirectory() as folder:
        stored = _store(Path(folder), config, given.vocab_size, rounds=given.rounds + 1)
        for round_number in range(given.rounds + 1):
            batch = _batch(config, given.vocab_size, seed=round_number)
            for name, method in methods.items():
                samples = stored if name == OFFLINE else None
                seconds = _step(method, optimizers[name], batch, step=round_number, samples=samples)
                if round_number:
                    times[name].append(seconds)
    joint = statistics.median(times["joint ELECTRA"])
    shape = f"batch {given.batch_size} x {given.sequence_length}"
    print(f"ELECTRA-{given.size}, auxiliary of {AUXILIARY_LAYERS} layers, {shape}")
    print(f"{'':<22}{'ms per step':>12}{'noise':>8}{'of joint':>10}")
    for name, values in times.items():
        low, median, high = statistics.quantiles(values, n=4)
        print(f"{name:<22}{1000 * median:>12.1f}{500 * (high - low):>8.1f}{median / joint:>10.3f}")
    fast = methods["Fast-ELECTRA"]
    main_cost, auxiliary_cost = (
        cost_of(model, sequence_length=given.sequence_length, head_fraction=0.15)
        for model in (fast.discriminator, fast.proposal.models[0])
    )
    size = RunSize(num_tokens=1, tokens_per_pass=1)
    plan = plan_flops(main_cost, [auxiliary_cost], work=METHOD_WORK["fast_electra"], size=size)
    print(f"by FLOPs, Fast-ELECTRA is {plan.total / plan.joint_total:.3f} of joint ELECTRA, ", end="")
    print(f"offline {plan.main / plan.joint_total:.3f}")


def _build(config: PretrainConfig, vocab_size: int) -> dict[str, Method]:
    shape = encoder_config(config, vocab_size=vocab_size, special_ids=SPECIAL)
    shallow = encoder_config(
        PretrainConfig(**{**config.to_dict(), "num_layers": AUXILIARY_LAYERS}),
        vocab_size=vocab_size,
        special_ids=SPECIAL,
    )
    fast, offline = (
        FastElectra(
            build_discriminator(shape, seed=0),
            proposal,
            curriculum=Curriculum("exponential", 2.0, 0.1, 1.0),
            rtd_weight=50.0,
        )
        for proposal in (FrozenMaskedLm([build_masked_lm(shallow, seed=1)], mask_token_id=SPECIAL.mask), None)
    )
    joint = Electra(
        build_discriminator(shape, seed=0),
        build_masked_lm(shallow, seed=1),
        rtd_weight=50.0,
        mask_token_id=SPECIAL.mask,
    )
    return {"joint ELECTRA": joint, "Fast-ELECTRA": fast, OFFLINE: offline}


def _store(folder: Path, config: PretrainConfig, vocab_size: int, *, rounds: int) -> StoredSamples:
    """Random ids for every round, on the disk as offline corruption leaves them."""
    rng = torch.Generator().manual_seed(0)
    counts = [int(_batch(config, vocab_size, seed=round_number).is_selected.sum()) for round_number in range(rounds)]
    samples = [torch.randint(5, vocab_size, (count,), generator=rng) for count in counts]
    write_samples(folder, samples, first_step=0, vocab_size=vocab_size, identity={}, made_by={})
    return StoredSamples(lambda step: folder, identity={})


def _batch(config: PretrainConfig, vocab_size: int, *, seed: int) -> Batch:
    rng = torch.Generator().manual_seed(seed)
    shape = (config.batch_size, config.sequence_length)
    input_ids = torch.randint(5, vocab_size, shape, generator=rng)
    is_selected = torch.rand(shape, generator=rng).argsort(dim=1) < round(0.15 * shape[1])
    return Batch(input_ids, is_selected, torch.rand(shape, generator=rng, dtype=torch.float64))


def _step(
    method: Method, optimizer: torch.optim.Optimizer, batch: Batch, *, step: int, samples: StoredSamples | None
) -> float:
    start = time.process_time()
    if samples is not None:
        corruption = place(batch.input_ids, batch.selected(), samples.at(step))
        batch = batch._replace(corrupted_ids=corruption.corrupted_ids)
    totals = Totals(batch.input_ids.numel(), batch.is_selected.sum().float())
    method.loss(batch, totals, progress=0.5, stats={}).backward()
    torch.nn.utils.clip_grad_norm_(method.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return time.process_time() - start


if __name__ == "__main__":
    main()
