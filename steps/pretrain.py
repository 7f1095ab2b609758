"""Pre-training as a step of a flow: data and models out of the store, checkpoints into it, metrics to MLflow."""

import contextlib
import functools
import logging
import resource
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import PreTrainedModel

from fast_electra_core.auxiliary_building import auxiliary_method, build_auxiliary
from fast_electra_core.checkpoint import load_latest
from fast_electra_core.config import AuxiliaryConfig, PretrainConfig, TrainingConfig
from fast_electra_core.corruption_store import StoredSamples, maker
from fast_electra_core.data import SpecialIds, TokenDataset
from fast_electra_core.evaluation import heldout_masked_scores, score_detector, score_masked_lm, unigram_counts
from fast_electra_core.method_building import (
    AnyMethod,
    build_frozen,
    build_generator,
    build_main_model,
    build_method,
    build_model_free,
    corrupt_for_scoring,
)
from fast_electra_core.method_knobs import MODEL_FREE
from fast_electra_core.methods import MaskedLanguageModel, Method
from fast_electra_core.models import (
    count_parameters,
    set_output_bias,
    warm_start,
)
from fast_electra_core.parallel import ALONE, Group
from fast_electra_core.peak import gemm_flops_per_second
from fast_electra_core.proposals import Proposal
from fast_electra_core.replay import MixedDataset
from fast_electra_core.tokenizer import load_tokenizer
from fast_electra_core.trainer import Hooks, Row, train
from steps import tracking
from steps.checkpoints import Curve, fetch_checkpoints, keep_checkpoint
from steps.console import ProgressBar
from steps.corruption_plan import identity_of, range_key, range_of
from steps.cost_words import expected_price
from steps.dataset import open_dataset
from steps.distill import load_teacher
from steps.frozen import load_members
from steps.initial_model import load_initial_model
from steps.model_source import weights_digest
from steps.store import Store
from steps.trace import Plain, connect

_logger = logging.getLogger(__name__)
_SHOWN = {
    "loss": "loss",
    "temperature": "T",
    "masked_accuracy": "acc",
    "recall_replaced": "recall",
    "tokens_per_second": "tok/s",
}


@dataclass(frozen=True, kw_only=True)
class TrainingRun:
    """Where one training reads and writes: the same for every attempt at it."""

    store: Store
    run_key: str
    """Folder of the flow run in the store; a resumed run keeps its origin's."""
    mlflow_run_id: str
    shard_keys: Sequence[str]
    tokenizer_key: str
    old_shard_keys: Sequence[str] = ()
    """Text that the main model has seen before this training; replayed, where replay_fraction says so."""
    replay_fraction: float = 0.0
    """Share of the sequences trained on that are drawn from it."""
    samples: StoredSamples | None = None
    """Replacements drawn ahead of training."""
    group: Group = ALONE
    """The processes that train together. Only the first scores, saves and has a result."""
    began: float = field(default_factory=time.perf_counter)
    """When the work of this attempt began, on the clock of time.perf_counter."""

    @property
    def checkpoint_prefix(self) -> str:
        """Key below which the checkpoints lie."""
        return f"{self.run_key}/checkpoints"

    def dataset(self, part: str, config: TrainingConfig) -> TokenDataset:
        """The `train` or `heldout` sequences; those to train on with the replayed ones among them."""
        new = self._open(part, config, self.shard_keys)
        if part == "heldout" or not self.replay_fraction:
            return new
        return MixedDataset(new, self.old_dataset(part, config), replay_fraction=self.replay_fraction)

    def old_dataset(self, part: str, config: TrainingConfig) -> TokenDataset:
        """The same of the text that was seen before."""
        return self._open(part, config, self.old_shard_keys)

    def _open(self, part: str, config: TrainingConfig, shard_keys: Sequence[str]) -> TokenDataset:
        return open_dataset(part, config, shard_keys=shard_keys, tokenizer_key=self.tokenizer_key, store=self.store)


def training_run(plan: Plain, text: Plain, mlflow_run_id: str, *, group: Group | None = None) -> TrainingRun:
    """Where the training of a flow's plan reads and writes; a group's first process talks to its tracking server."""
    group = group or ALONE
    return TrainingRun(
        store=connect(plan) if group.is_first else Store(plan["config"]["store"]),
        group=group,
        run_key=plan["run_key"],
        mlflow_run_id=mlflow_run_id,
        shard_keys=text["shard_keys"],
        tokenizer_key=plan["tokenizer_key"],
        old_shard_keys=plan.get("old_shard_keys", ()),
        replay_fraction=plan.get("replay_fraction", 0.0),
    )


def train_auxiliary(
    config: AuxiliaryConfig, run: TrainingRun, *, teacher: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Train a masked language model; returns its key in the store, digest, curves and scores.

    teacher is fetch_teacher's; the model gets its vocabulary.

    Raises:
        CheckpointError: the newest checkpoint is of another run, for instance of one with another teacher.
    """
    dataset, heldout = run.dataset("train", config), run.dataset("heldout", config)
    larger = None
    vocab_size = len(load_tokenizer(run.store.get_folder(run.tokenizer_key)))
    if teacher:  # the weights, not their address, are what a checkpoint must agree with
        config = replace(config, distill_from=teacher["digest"])
        larger = load_teacher(teacher, run.store).to(device())
        vocab_size = larger.config.vocab_size  # it may have more logits than its tokenizer has tokens
    counts = unigram_counts(dataset, vocab_size)
    model = build_auxiliary(config, dataset, counts).to(device())
    method = auxiliary_method(config, model, larger, mask_token_id=dataset.special_ids.mask)

    def evaluate() -> Row:
        return heldout_masked_scores(method, heldout, counts=counts)

    result = _train(method, dataset, config, run, evaluate=evaluate, label="auxiliary")
    return result and {
        **result,
        **_save(model, run, "auxiliary"),
        "scores": score_masked_lm(model, heldout, counts=counts)._asdict(),
        "num_tokens": config.num_steps * config.batch_size * config.sequence_length,
    }


def train_discriminator(
    config: PretrainConfig,
    run: TrainingRun,
    *,
    auxiliary: dict[str, Any],
    corruption: dict[str, Any],
    initial_model: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Train the main model by config.method; returns its key in the store, digest, curves and scores.

    corruption is corruption_plan.summarise's. Where it was drawn ahead, the auxiliary is in memory while the main model
    is set up and while held-out text is scored, not while it trains. initial_model is fetch_initial_model's.

    Raises:
        CheckpointError: the newest checkpoint is of another run, for instance of one that started from other weights.
    """
    if initial_model:  # the weights, not their address, are what a checkpoint must agree with
        config = replace(config, initial_model=initial_model["digest"])
    dataset, heldout = run.dataset("train", config), run.dataset("heldout", config)

    def method_on(drawn_from: Proposal | PreTrainedModel | None) -> AnyMethod:
        return build_method(config, main_model, drawn_from, mask_token_id=dataset.special_ids.mask).to(device())

    is_offline = config.corruption == "offline"
    if is_offline:
        run = replace(run, samples=_stored_samples(config, run, auxiliary))
        _mention_other_devices(corruption["devices"])
    counts = functools.cache(functools.partial(unigram_counts, dataset))  # for some methods only: reads all the text
    initial = load_initial_model(initial_model, config, run.store).model if initial_model else None
    members = load_members(auxiliary, run.store)
    main_model = _start_main_model(config, members[0], dataset.special_ids, counts=counts, initial_model=initial)
    partner = functools.partial(partner_of, config, run, dataset=dataset, counts=counts)
    method = method_on(None if is_offline else partner(members=members))
    del members

    def evaluate() -> Row:
        scored = method_on(partner(members=load_members(auxiliary, run.store))) if is_offline else method
        if isinstance(scored, MaskedLanguageModel):
            return heldout_masked_scores(scored, heldout, counts=counts(main_model.config.vocab_size))
        corrupt = corrupt_for_scoring(scored)
        return score_detector(scored, heldout, corrupt=corrupt, mask_fraction=config.mask_fraction)

    result = _train(method, dataset, config, run, evaluate=evaluate, label="pre-training")
    method.finish()
    return result and {
        **result,
        **_save(main_model, run, "masked_lm" if config.method == "mlm" else "discriminator"),
        "scores": evaluate(),
    }


def _start_main_model(
    config: PretrainConfig,
    auxiliary: PreTrainedModel,
    special_ids: SpecialIds,
    *,
    counts: Callable[[int], npt.NDArray[np.int64]],
    initial_model: PreTrainedModel | None,
) -> PreTrainedModel:
    """The main model at its start; counts: the training text's unigram counts, by vocabulary size; initial_model: the
    main model, where it is given."""
    vocab_size = auxiliary.config.vocab_size
    main_model = initial_model or build_main_model(config, vocab_size=vocab_size, special_ids=special_ids)
    if config.warm_start != "none":
        warm_start(main_model, auxiliary, with_layers=config.warm_start == "layers")
    if config.method == "mlm":
        set_output_bias(main_model, counts(vocab_size))
    return main_model


def partner_of(
    config: PretrainConfig,
    run: TrainingRun,
    *,
    members: Sequence[PreTrainedModel],
    dataset: TokenDataset,
    counts: Callable[[int], npt.NDArray[np.int64]],
) -> Proposal | PreTrainedModel | None:
    """What replaces tokens for the main model in training, if anything does: members are the auxiliary's."""
    if config.method == "mlm":
        return None
    if config.method == "fast_electra":
        return build_frozen(config, [model.to(device()) for model in members], dataset, counts=counts)
    if config.method in MODEL_FREE:
        tokenizer = load_tokenizer(run.store.get_folder(run.tokenizer_key))
        return build_model_free(config, dataset, num_ids=len(tokenizer), counts=counts)
    return build_generator(members[0], counts(members[0].config.vocab_size), seed=config.seed + 1)


def corruption_identity(config: PretrainConfig, run: TrainingRun, auxiliary: dict[str, Any]) -> dict[str, Any]:
    """What the replacements of the run's steps are a function of."""
    return identity_of(
        config, shard_keys=run.shard_keys, tokenizer_key=run.tokenizer_key, auxiliary_digest=auxiliary["digest"]
    )


def _stored_samples(config: PretrainConfig, run: TrainingRun, auxiliary: dict[str, Any]) -> StoredSamples:
    identity = corruption_identity(config, run, auxiliary)
    return StoredSamples(
        lambda step: run.store.get_folder(range_key(identity, range_of(step, config))), identity=identity
    )


def _mention_other_devices(devices: Sequence[str]) -> None:
    ours = maker(device())["device"]
    others = [name for name in devices if name != ours]
    if others:
        _logger.info(
            "corruption was drawn on %s, training is on %s: a few of the samples may not be those of online corruption",
            ", ".join(others), ours,
        )  # fmt: skip


def _train(
    method: Method,
    dataset: TokenDataset,
    config: TrainingConfig,
    run: TrainingRun,
    *,
    evaluate: Any,
    label: str,
) -> dict[str, Any]:
    """Train to the end, from the newest checkpoint on; curves, seconds and speed are those of all attempts together.

    What counts as seconds is said in trainer.Trained; loading comes on top, and it and the peaks are this attempt's.
    Only a group's first process has a result.
    """
    samples_at = run.samples.at if run.samples else None
    if not run.group.is_first:
        with _stop_on_signal() as stopped:
            hooks = Hooks(should_stop=stopped.is_set)
            checkpoints = run.store.path(run.checkpoint_prefix)
            train(
                method, dataset, config=config, checkpoints=checkpoints, hooks=hooks, samples_at=samples_at,
                group=run.group,
            )  # fmt: skip
        return {}
    checkpoints = fetch_checkpoints(run.store, run.checkpoint_prefix)
    first_step = newest.step if (newest := load_latest(checkpoints)) else 0
    if first_step:
        _logger.info("%s goes on from its checkpoint at step %d", label, first_step)
    curve = Curve(checkpoints.parent / "curve.jsonl", first_step=first_step)
    spill = run.store.path(f"{run.run_key}/unsent_metrics.jsonl")
    with (
        tracking.MetricsLogger(run.mlflow_run_id, spill=spill) as logger,
        ProgressBar(config.num_steps, label=label, initial=first_step) as bar,
        _stop_on_signal() as stopped,
    ):
        for row in curve.rows:  # those that a kill kept from the server; it gets the others once only
            logger.log(row)

        def on_metrics(row: Row) -> None:
            if config.price_per_hour is not None and _is_first_speed(row, curve.rows):
                _logger.info("%s: %s", label, expected_price(config, row["tokens_per_second"]))
            curve.append(row)
            logger.log(row)
            bar.show(**{short: row[name] for name, short in _SHOWN.items() if name in row})

        def on_checkpoint(folder: Path) -> None:
            # Without a word to the tracker: rows that it lacks are sent from the curve.
            keep_checkpoint(folder, run.store, run.checkpoint_prefix, config)

        # Before training: a GPU that has no room left for it then would otherwise lose the run's result.
        peak = gemm_flops_per_second(device(), config.precision)
        loading_seconds = time.perf_counter() - run.began
        trained = train(
            method,
            dataset,
            config=config,
            checkpoints=checkpoints,
            hooks=Hooks(on_metrics, on_checkpoint, bar.update, evaluate, stopped.is_set),
            samples_at=samples_at,
            group=run.group,
        )
    num_tokens = trained.num_steps * config.batch_size * config.sequence_length
    return {
        "curve": curve.rows,
        "resumed_from": trained.first_step,
        "seconds": trained.seconds,
        "tokens_per_second": num_tokens / trained.seconds,
        "spent": {**trained.spent, "loading": loading_seconds},
        "peak_flops_per_second": peak * run.group.size,
        "peak_memory_megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "device": str(next(method.parameters()).device),
        "num_processes": run.group.size,
    }


def _is_first_speed(row: Row, before: Sequence[Row]) -> bool:
    return "tokens_per_second" in row and not any("tokens_per_second" in each for each in before)


def _save(model: PreTrainedModel, run: TrainingRun, name: str) -> dict[str, Any]:
    """Put the model and its tokenizer into the store, as safetensors, under the run's folder."""
    key = f"{run.run_key}/{name}"
    with tempfile.TemporaryDirectory(dir=run.store.folder) as scratch:
        folder = Path(scratch) / name
        model.save_pretrained(folder)
        load_tokenizer(run.store.get_folder(run.tokenizer_key)).save_pretrained(folder)
        run.store.put_folder(folder, key)
        digest = weights_digest(folder)
    return {"key": key, "digest": digest, "num_parameters": count_parameters(model)}


def device() -> torch.device:
    """This process's GPU, where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@contextlib.contextmanager
def _stop_on_signal() -> Iterator[threading.Event]:
    """An event that SIGTERM and SIGINT set: preemption and Ctrl-C end in a checkpoint."""
    stopped = threading.Event()

    def stop(number: int, frame: FrameType | None) -> None:
        stopped.set()

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
