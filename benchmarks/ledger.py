"""What runs of a preset cost by the ledger: operations in both accountings, memory; and, if asked, memory as measured.

    python benchmarks/ledger.py [--preset base] [--vocab_size 30522] [--micro_batch_size 8]
    python benchmarks/ledger.py --preset small --micro_batch_size 16 --measure

On paper it takes seconds and no memory. With --measure each arm takes two steps of real training on the CPU, in a
process of its own; dropout is off, as attention with dropout keeps more on a CPU than on the GPUs that presets are for.
"Charged" adds the auxiliary's own training, as its preset has it, for a single run.
"""

import argparse
import multiprocessing
from typing import Any

import torch
from transformers import PreTrainedModel

from fast_electra_core.config import AuxiliaryConfig, PretrainConfig
from fast_electra_core.cost import METHOD_WORK, MethodWork, RunSize, plan_flops, plan_memory
from fast_electra_core.curriculum import Curriculum
from fast_electra_core.data import SpecialIds
from fast_electra_core.electra import Electra
from fast_electra_core.fast_electra import FastElectra
from fast_electra_core.methods import Batch, MaskedLanguageModel, Method, Totals
from fast_electra_core.model_cost import ModelCost, cost_of
from fast_electra_core.models import build_discriminator, build_masked_lm, encoder_config
from fast_electra_core.optimizer import build_optimizer
from fast_electra_core.proposals import FrozenMaskedLm
from steps.config import resolve_auxiliary, resolve_pretrain
from steps.meter import MemoryMeter

SPECIAL = SpecialIds(cls=2, sep=3, mask=4, pad=0, all_special=(0, 1, 2, 3, 4))
ARMS: dict[str, tuple[MethodWork, bool]] = {  # what the method does, and whether replacements are there already
    "joint ELECTRA": (METHOD_WORK["electra"], False),
    "frozen, online": (METHOD_WORK["fast_electra"], False),
    "frozen, drawn by another run": (METHOD_WORK["fast_electra"], True),
    "masked language model": (METHOD_WORK["mlm"], False),
    "without a model (unigram)": (METHOD_WORK["unigram"], False),
}


def main() -> None:
    """Print the table."""
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--preset", default="base")
    arguments.add_argument("--vocab_size", type=int, default=30_522)
    arguments.add_argument("--micro_batch_size", type=int, help="sequences per pass; the whole batch if not given")
    arguments.add_argument("--measure", action="store_true", help="take two steps of each arm, without dropout")
    given = arguments.parse_args()
    off = {"dropout": 0.0} if given.measure else {}
    config = resolve_pretrain({"preset": given.preset, "micro_batch_size": given.micro_batch_size, **off})
    shallow = resolve_auxiliary({"preset": given.preset, **off})
    with torch.device("meta"):
        models = _models(config, shallow, given.vocab_size)
    detector, masked_lm, auxiliary = (
        cost_of(model, sequence_length=config.sequence_length, head_fraction=config.mask_fraction, drops=drops)
        for model, drops in zip(models, (config.dropout > 0, config.dropout > 0, False), strict=True)
    )
    sequences = config.micro_batch_size or config.batch_size
    print(f"{given.preset}: passes of {sequences} x {config.sequence_length} tokens, vocabulary {given.vocab_size}")
    measured = f"{'measured':>11}" if given.measure else ""
    print(f"{'':<30}{'MFLOP/token':>12}{'of joint':>10}{'charged':>10}{'memory, GB':>12}{measured}")
    for name, (work, is_drawn) in ARMS.items():
        size = _size(config, is_drawn=is_drawn, own_training=_own_training(auxiliary, shallow, work))
        main_model, auxiliaries = (
            masked_lm if work.predicts_tokens else detector,
            [] if work.auxiliary == "none" else [auxiliary],
        )
        joint = plan_flops(detector, [auxiliary], work=METHOD_WORK["electra"], size=size).total
        flops = plan_flops(main_model, auxiliaries, work=work, size=size)
        memory = plan_memory(main_model, auxiliaries, work=work, size=size).peak
        row = f"{name:<30}{flops.total / size.num_tokens / 1e6:>12.1f}{flops.total / joint:>10.3f}"
        row += f"{flops.charged / joint:>10.3f}{memory / 1e9:>12.3f}"
        peak = f"{_measured(name, config, shallow, given.vocab_size) / 1e9:>11.3f}" if given.measure else ""
        print(row + peak, flush=True)


def _own_training(auxiliary: ModelCost, shallow: AuxiliaryConfig, work: MethodWork) -> float:
    num_tokens = shallow.num_steps * shallow.batch_size * shallow.sequence_length
    return 3 * auxiliary.forward_flops * num_tokens if work.auxiliary == "frozen" else 0.0


def _size(config: PretrainConfig, *, is_drawn: bool, own_training: float) -> RunSize:
    sequences = config.micro_batch_size or config.batch_size
    return RunSize(
        num_tokens=config.num_steps * config.batch_size * config.sequence_length,
        tokens_per_pass=sequences * config.sequence_length,
        is_accumulated=sequences < config.batch_size,
        is_drawn_ahead=is_drawn,
        reused_fraction=float(is_drawn),
        auxiliary_training_flops=own_training,
    )


def _models(config: PretrainConfig, shallow: AuxiliaryConfig, vocab_size: int) -> list[PreTrainedModel]:
    """A detector, a masked language model of its size, and the auxiliary."""
    shape = encoder_config(config, vocab_size=vocab_size, special_ids=SPECIAL)
    auxiliary = encoder_config(shallow, vocab_size=vocab_size, special_ids=SPECIAL)
    return [build_discriminator(shape, seed=0), build_masked_lm(shape, seed=0), build_masked_lm(auxiliary, seed=1)]


def _measured(name: str, *given: Any) -> int:
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(_peak_of_two_steps, (name, *given))


def _peak_of_two_steps(name: str, config: PretrainConfig, shallow: AuxiliaryConfig, vocab_size: int) -> int:
    """Bytes, of random text, beyond what a step of tiny models has loaded."""
    torch.set_num_threads(1)
    tiny = resolve_pretrain({"preset": "tiny", "micro_batch_size": None if config.micro_batch_size is None else 4})
    _two_steps(name, tiny, resolve_auxiliary({"preset": "tiny"}), 500)
    meter = MemoryMeter("cpu")
    _two_steps(name, config, shallow, vocab_size)
    return meter.peak_bytes()


def _two_steps(name: str, config: PretrainConfig, shallow: AuxiliaryConfig, vocab_size: int) -> None:
    work, is_drawn = ARMS[name]
    needs_model = work.auxiliary != "none" and not is_drawn
    method = _method(work, config, shallow if needs_model else None, vocab_size).train()
    optimizer = build_optimizer(method, config)
    for step in range(2):
        batch = _batch(config, vocab_size, seed=step, is_drawn=not needs_model)
        passes = 1 if config.micro_batch_size is None else 2
        totals = Totals(passes * batch.input_ids.numel(), passes * int(batch.is_selected.sum()))
        for _ in range(passes):
            method.loss(batch, totals, progress=0.5, stats={}).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def _method(work: MethodWork, config: PretrainConfig, shallow: AuxiliaryConfig | None, vocab_size: int) -> Method:
    shape = encoder_config(config, vocab_size=vocab_size, special_ids=SPECIAL)
    if work.predicts_tokens:
        return MaskedLanguageModel(build_masked_lm(shape, seed=0), mask_token_id=SPECIAL.mask)
    discriminator, auxiliary = build_discriminator(shape, seed=0), None
    if shallow is not None:
        auxiliary = build_masked_lm(encoder_config(shallow, vocab_size=vocab_size, special_ids=SPECIAL), seed=1)
    if work.auxiliary == "trained":
        return Electra(discriminator, auxiliary, rtd_weight=50.0, mask_token_id=SPECIAL.mask)
    proposal = None if auxiliary is None else FrozenMaskedLm([auxiliary], mask_token_id=SPECIAL.mask)
    return FastElectra(discriminator, proposal, curriculum=Curriculum("exponential", 2.0, 0.1, 1.0), rtd_weight=50.0)


def _batch(config: PretrainConfig, vocab_size: int, *, seed: int, is_drawn: bool) -> Batch:
    rng = torch.Generator().manual_seed(seed)
    shape = (config.micro_batch_size or config.batch_size, config.sequence_length)
    input_ids = torch.randint(5, vocab_size, shape, generator=rng)
    is_selected = torch.rand(shape, generator=rng).argsort(dim=1) < round(config.mask_fraction * shape[1])
    uniforms = torch.rand(shape, generator=rng, dtype=torch.float64)
    return Batch(input_ids, is_selected, uniforms, input_ids.clone() if is_drawn else None)


if __name__ == "__main__":
    main()
