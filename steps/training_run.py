"""A training in the store: the text and checkpoints it reads, what it writes, its metrics on their way to MLflow."""

import contextlib
import logging
import resource
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from transformers import PreTrainedModel

from fast_electra_core.checkpoint import newest_sound, step_of
from fast_electra_core.config import TrainingConfig
from fast_electra_core.corruption_store import StoredSamples
from fast_electra_core.data import TokenDataset
from fast_electra_core.methods import Method
from fast_electra_core.models import count_parameters
from fast_electra_core.parallel import ALONE, Group
from fast_electra_core.peak import gemm_flops_per_second
from fast_electra_core.replay import MixedDataset
from fast_electra_core.tokenizer import load_tokenizer
from fast_electra_core.trainer import Hooks, Row, train
from steps import tracking
from steps.checkpoints import Curve, fetch_checkpoints, keep_checkpoint, on_disk
from steps.console import ProgressBar
from steps.cost_words import expected_price
from steps.dataset import open_dataset
from steps.machine import device
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


def train_in_run(
    method: Method,
    dataset: TokenDataset,
    config: TrainingConfig,
    run: TrainingRun,
    *,
    evaluate: Callable[[], Row],
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
    first_step = step_of(newest.name) if (newest := newest_sound(checkpoints)) else 0
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


def save_model(model: PreTrainedModel, run: TrainingRun, name: str) -> dict[str, Any]:
    """Put the model and its tokenizer into the store, as safetensors, under the run's folder.

    Raises:
        CheckpointError: the disk does not take it.
    """
    key = f"{run.run_key}/{name}"
    with on_disk(run.store.path(key)), tempfile.TemporaryDirectory(dir=run.store.folder) as scratch:
        folder = Path(scratch) / name
        model.save_pretrained(folder)
        load_tokenizer(run.store.get_folder(run.tokenizer_key)).save_pretrained(folder)
        run.store.put_folder(folder, key)
        digest = weights_digest(folder)
    return {"key": key, "digest": digest, "num_parameters": count_parameters(model)}


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
