"""The pre-training loop: one page for every method.

Every step is a pure function of (config, data, step): which sequences, which positions, which samples, which dropout.
So a run resumed from step k is the run that was never interrupted, bit for bit; and several processes, each with its
rows of every batch, compute what one does, up to the order of addition. Dropout alone depends on how many there are.
`Unverified:` the same bits on a GPU, where some backward passes, flash attention's among them, add in any order.
"""

from collections.abc import Callable
from contextlib import closing
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fast_electra_core.batches import batch_at
from fast_electra_core.checkpoint import (
    Checkpoint,
    load_latest,
    restore_training_tensors,
    restore_weights,
    training_tensors,
)
from fast_electra_core.checkpoint_writer import CheckpointWriter
from fast_electra_core.config import ScoringConfig, TrainingConfig
from fast_electra_core.data import TokenDataset
from fast_electra_core.errors import CheckpointError, Interrupted
from fast_electra_core.methods import Batch, Method, Stats, Totals
from fast_electra_core.optimizer import build_optimizer, clip_gradients
from fast_electra_core.parallel import ALONE, Group
from fast_electra_core.precision import autocast, uses_bf16
from fast_electra_core.prefetch import made_ahead
from fast_electra_core.schedules import learning_rate_at
from fast_electra_core.sharding import gathered, scattered, sharded
from fast_electra_core.skipping import Skipper
from fast_electra_core.stopwatch import Stopwatch

Row = dict[str, float]
WITHOUT_EFFECT_ON_TRAINING = frozenset(
    ({field.name for field in fields(ScoringConfig)} - {"on_bad_text"})
    | {"checkpoint_every_steps", "keep_checkpoints", "milestone_every_steps", "log_every_steps", "max_skipped_steps"}
    | {"num_nodes", "processes_per_node", "sharding", "group_timeout_seconds", "activation_checkpointing"}
    | {"price_per_hour", "auxiliary_shared_by", "max_auxiliary_fraction"}
    | {"corpus_licence", "promote", "promotion_margin", "waive_gates"}
    # Bit for bit the same on the same device; where a store was filled by another, it says so.
    | {"corruption"}
    # The same but for rounding, and for which values dropout drops: a run goes on where memory is smaller.
    | {"micro_batch_size"}
)
# Primes: dropout seeds of different runs, steps and processes do not fall together.
_STEP_SEED_STRIDE, _RANK_SEED_STRIDE = 1_000_003, 7_368_787


SKIPPED = "skipped.jsonl"
"""Beside the checkpoints: a line for each step that was left out, with its batch."""


class Hooks(NamedTuple):
    """What the outside wants to hear of, and its way to stop the run."""

    on_metrics: Callable[[Row], None] = lambda row: None
    """A row of metrics; its "step" counts the optimiser steps done."""
    on_checkpoint: Callable[[Path], None] = lambda folder: None
    """A complete checkpoint's folder, in the thread that has written it."""
    on_step: Callable[[int], None] = lambda step: None
    """After every step, with the number of steps done."""
    evaluate: Callable[[], Row] = dict
    """Held-out metrics, asked for when a checkpoint is due and at the end."""
    should_stop: Callable[[], bool] = lambda: False
    """Asked after every step; true writes a checkpoint and raises Interrupted."""


class Trained(NamedTuple):
    """How a call of `train` went."""

    first_step: int
    """The step it began with: 0, or that of the checkpoint it went on from."""
    num_steps: int
    seconds: float
    """Wall-clock time of all num_steps steps, with their scoring and checkpoints, over all attempts. Steps that a kill
    undid count once, as they were done again; the time between attempts does not count, nor does the writing of a
    checkpoint that a run went on from."""
    spent: dict[str, float]
    """Seconds of them that went to `starting` (restoring, what comes before the first step), `data` (waiting for
    batches), `scoring` and `checkpoints` (copying them, waiting for the one before and the last): the rest went to the
    steps."""


def train(
    method: Method,
    dataset: TokenDataset,
    *,
    config: TrainingConfig,
    checkpoints: Path,
    hooks: Hooks,
    samples_at: Callable[[int], Tensor] | None = None,
    group: Group = ALONE,
) -> Trained:
    """Train `method` (mutated) for config.num_steps steps, going on from the newest checkpoint if there is one.

    samples_at gives a step's replacements where they were drawn ahead; see batch_at, which a thread calls. Every
    process of a group calls this alike; the first reads and writes the checkpoints, and it alone is asked for scores
    and has rows to tell.

    Raises:
        NonFiniteLossError: too many steps in a row were left out, their loss or gradient being NaN or infinite; the
            checkpoint before is kept.
        CheckpointError: the checkpoints belong to another run, are all damaged, or cannot be written.
        Interrupted: hooks.should_stop() was true.
    """
    device = next(method.parameters()).device
    uses_bf16(config.precision, device)  # refused here, before the first step
    watch = Stopwatch()
    with watch.part("starting"):
        if config.activation_checkpointing:
            method.checkpoint_activations()
        if config.compile_layers:
            method.compile_layers()
        config.check_processes(group.size)
        trained = sharded(method, group) if config.sharding == "fsdp" else method
        optimizer = build_optimizer(trained, config)
        first_step, sums, seconds_before, spent_before = _restore(
            method, trained, optimizer, config, checkpoints, group
        )
        watch.go_on_from(seconds_before, spent_before)
        replica = trained.train() if config.sharding == "fsdp" else group.replicate(trained.train())
    window_started, window_from = watch.seconds, first_step
    skipper = Skipper(
        config.max_skipped_steps,
        batch_of=lambda step: dataset.index_at(step, batch_size=config.batch_size, seed=config.seed),
        note=checkpoints / SKIPPED if group.is_first else None,
    )
    writer = CheckpointWriter(
        checkpoints,
        keep=config.keep_checkpoints,
        milestone_every=config.milestone_every_steps,
        on_written=hooks.on_checkpoint,
    )

    def batch_of(step: int) -> Batch:
        batch = batch_at(step, dataset, config, samples_at=samples_at, rows=group.rows(config.batch_size))
        return batch if device.type == "cpu" else batch.pinned()

    steps = range(first_step, config.num_steps)
    with writer, closing(made_ahead(batch_of, steps, device=device)) as batches:
        for step in steps:
            with watch.part("data"):
                batch = next(batches)
            for parameters in optimizer.param_groups:
                parameters["lr"] = _learning_rate(step, config) * parameters["learning_rate_factor"]
            torch.manual_seed(_dropout_seed(step, config, group))
            # Counted on the CPU: a tensor that is copied from there would wait for all steps before.
            num_selected = int(group.sum(batch.is_selected.sum()))
            totals = Totals(config.batch_size * config.sequence_length, num_selected)
            stats = _backward(replica, batch, totals, device=device, step=step, config=config, group=group)
            stats = group.sum_all(stats) | clip_gradients(trained, config.max_gradient_norm)
            for name, value in skipper.sift(step, optimizer, stats).items():
                sums[name] = sums[name] + value if name in sums else value
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

            done = step + 1
            hooks.on_step(done)
            is_last = done == config.num_steps
            stop = group.any(hooks.should_stop()) and not is_last
            row: Row = {}
            if done % config.log_every_steps == 0 or is_last:
                skipper.look()
                row = _row(method, sums, done, config)  # device sync
                num_tokens = (done - window_from) * config.batch_size * config.sequence_length
                row["tokens_per_second"] = num_tokens / (watch.seconds - window_started)
                sums = {}
            if done % config.checkpoint_every_steps == 0 or is_last or stop:
                tensors = training_tensors(trained, optimizer) | {f"sum.{name}": sums[name] for name in sums}
                tensors = gathered(tensors, group)
                skipper.look()
                skipper.check_weights(tensors)
                if group.is_first and trained is not method:
                    restore_weights(tensors, method)
            if group.is_first and (done % config.checkpoint_every_steps == 0 or is_last):
                with watch.part("scoring"):
                    row |= {"step": done, **hooks.evaluate()}
            if group.is_first and row:
                hooks.on_metrics(row)
            if group.is_first and (done % config.checkpoint_every_steps == 0 or is_last or stop):
                state = {"identity": training_identity(config), "seconds": watch.seconds, "spent": watch.parts}
                with watch.part("checkpoints"):
                    writer.write(Checkpoint(done, tensors, state))
            if row:
                window_started, window_from = watch.seconds, done
            if stop:
                writer.wait()
                raise Interrupted(f"stopped after step {done}; a checkpoint is written, resume goes on from there")
        with watch.part("checkpoints"):
            writer.wait()
    return Trained(first_step, config.num_steps, watch.seconds, watch.parts)


def progress_at(step: int, config: TrainingConfig) -> float:
    """Share of the run done before step `step`, in [0, 1): what the temperature depends on."""
    return step / config.num_steps


def training_identity(config: TrainingConfig) -> dict[str, Any]:
    """The values of a config that decide what training computes: a checkpoint is good for these and no others."""
    return {name: value for name, value in config.to_dict().items() if name not in WITHOUT_EFFECT_ON_TRAINING}


def _backward(
    replica: nn.Module,
    batch: Batch,
    totals: Totals,
    *,
    device: torch.device,
    step: int,
    config: TrainingConfig,
    group: Group,
) -> Stats:
    """The batch's gradients are those of all processes' batches; returns this one's sums."""
    stats: Stats = {}
    micro_batches = batch.split(config.micro_batch_size or config.batch_size)
    for index, micro_batch in enumerate(micro_batches, start=1):
        with group.accumulating(replica, is_last=index == len(micro_batches)):
            with autocast(config.precision, device):
                loss, sums = replica(micro_batch.to(device), totals, progress=progress_at(step, config))
            stats = {name: stats[name] + value for name, value in sums.items()} if stats else sums
            (loss * group.size).backward()  # gradients are averaged, and to be summed
    return stats


def _dropout_seed(step: int, config: TrainingConfig, group: Group) -> int:
    return ((config.seed + 1) * _STEP_SEED_STRIDE + step + group.rank * _RANK_SEED_STRIDE) % 2**63


def _learning_rate(step: int, config: TrainingConfig) -> float:
    return learning_rate_at(
        step, peak=config.learning_rate, num_steps=config.num_steps, warmup_fraction=config.warmup_fraction
    )


def _row(method: Method, sums: Stats, done: int, config: TrainingConfig) -> Row:
    values = {name: float(value) for name, value in sums.items()}
    num_steps, num_skipped = values["num_steps"], values["num_skipped"]
    metrics = {"skipped_steps": num_skipped} if num_skipped else {}
    if not num_steps:
        return {"step": done, **metrics}
    metrics |= method.summarise(values, progress=progress_at(done - 1, config))
    for each in method.parameter_sets():
        norm = f"{each.prefix}gradient_norm"
        metrics[norm] = values[norm] / num_steps
        metrics[f"{each.prefix}learning_rate"] = _learning_rate(done - 1, config) * each.learning_rate_factor
    return {"step": done, **metrics}


class _Restored(NamedTuple):
    step: int
    sums: Stats
    seconds: float
    spent: dict[str, float]


def _restore(
    method: Method, trained: Method, optimizer: Optimizer, config: TrainingConfig, checkpoints: Path, group: Group
) -> _Restored:
    device = next(trained.parameters()).device
    checkpoint = group.from_first(load_latest(checkpoints) if group.is_first else None, device)
    if checkpoint is None:
        return _Restored(0, {}, 0.0, {})
    expected = training_identity(config)
    found = checkpoint.state["identity"]
    if found != expected:
        differing = sorted(key for key in expected | found if expected.get(key) != found.get(key))
        raise CheckpointError(
            f"the checkpoint in {checkpoints} is of another run: {', '.join(differing)} differ. Start a new run, or "
            "give the values it was begun with"
        )
    restore_training_tensors(scattered(checkpoint.tensors, trained, optimizer), trained, optimizer)
    if group.is_first and trained is not method:
        restore_weights(checkpoint.tensors, method)
    sums = {
        name.removeprefix("sum."): value.to(device)
        for name, value in checkpoint.tensors.items()
        if name.startswith("sum.")
    }
    # Checkpoints of earlier versions do not say how long they took, or with what.
    return _Restored(checkpoint.step, sums, checkpoint.state.get("seconds", 0.0), checkpoint.state.get("spent", {}))
