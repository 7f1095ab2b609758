"""Corruption ahead of training: a task draws its steps' replacements into the store, range by range.

A range that an earlier attempt or another run has stored is checked and kept; a damaged one is drawn anew.
"""

import functools
import logging
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fast_electra_core.config import PretrainConfig
from fast_electra_core.corruption_store import draw_samples, maker, open_samples, write_samples
from fast_electra_core.data import TokenDataset
from fast_electra_core.errors import DataError
from fast_electra_core.evaluation import unigram_counts
from fast_electra_core.method_building import build_frozen, curriculum_of
from fast_electra_core.proposals import FrozenMaskedLm
from steps.corruption_plan import list_ranges, range_key
from steps.frozen import check_frozen, load_members
from steps.machine import device
from steps.pretrain import corruption_identity
from steps.store import Store
from steps.training_run import TrainingRun

_logger = logging.getLogger(__name__)


def corrupt(
    config: PretrainConfig, run: TrainingRun, task: Mapping[str, int], *, auxiliary: dict[str, Any]
) -> dict[str, Any]:
    """Draw the task's steps into the store, as far as they are not there; returns what of them is another run's, their
    bytes and devices, and the seconds of this attempt. The auxiliary is loaded only if there is something to draw.

    Raises:
        AuxiliaryError: the auxiliary's weights are not the frozen ones.
        DataError: the store cannot be written.
    """
    started = time.perf_counter()
    identity = corruption_identity(config, run, auxiliary)
    ranges = [steps for steps in list_ranges(config) if task["first_step"] <= steps.start < task["end_step"]]
    manifests = {steps: _stored(run.store, range_key(identity, steps), identity) for steps in ranges}
    missing = [steps for steps in ranges if manifests[steps] is None]
    if missing:
        check_frozen(auxiliary, run.store)
        dataset = run.dataset("train", config)
        models = [model.to(device()) for model in load_members(auxiliary, run.store)]
        proposal = build_frozen(config, models, dataset, counts=functools.partial(unigram_counts, dataset))
        for steps in missing:
            manifests[steps] = _draw(proposal, dataset, config, run, steps=steps, identity=identity)
    return {**_account(manifests, run.run_key), "seconds": time.perf_counter() - started}


def _stored(store: Store, key: str, identity: dict[str, Any]) -> dict[str, Any] | None:
    """The manifest of a range that is there and sound."""
    if not store.has(key):
        return None
    try:
        return open_samples(store.get_folder(key), identity=identity).manifest
    except DataError as error:
        _logger.warning("%s. It is drawn anew", error)
        return None


def _draw(
    proposal: FrozenMaskedLm,
    dataset: TokenDataset,
    config: PretrainConfig,
    run: TrainingRun,
    *,
    steps: range,
    identity: dict[str, Any],
) -> dict[str, Any]:
    started = time.perf_counter()
    vocab_size = proposal.models[0].config.vocab_size
    curriculum = curriculum_of(config, vocab_size=vocab_size)
    samples = draw_samples(proposal, dataset, config, steps=steps, curriculum=curriculum)
    key = range_key(identity, steps)
    try:
        with tempfile.TemporaryDirectory(dir=run.store.folder) as folder:
            manifest = write_samples(
                Path(folder),
                samples,
                first_step=steps.start,
                vocab_size=vocab_size,
                identity=identity,
                made_by={"run": run.run_key, **maker(proposal.device)},
            )
            run.store.put_folder(Path(folder), key)
    except OSError as error:
        raise DataError(
            f"corruption could not be written to the store {run.store.root}: {error}. Free some disk space and resume, "
            "or give another --store"
        ) from error
    seconds = time.perf_counter() - started
    num_tokens = len(steps) * config.batch_size * config.sequence_length
    _logger.info(
        "corruption of steps %d to %d: %.2f bytes per token, %.0f tokens per second",
        steps.start, steps.stop - 1, sum(manifest["num_bytes"].values()) / num_tokens, num_tokens / seconds,
    )  # fmt: skip
    return manifest


def _account(manifests: Mapping[range, dict[str, Any] | None], run_key: str) -> dict[str, Any]:
    found = {steps: manifest for steps, manifest in manifests.items() if manifest is not None}
    others = [steps for steps, manifest in found.items() if manifest["made_by"]["run"] != run_key]
    return {
        "num_reused_steps": sum(len(steps) for steps in others),
        "num_bytes": sum(sum(manifest["num_bytes"].values()) for manifest in found.values()),
        "devices": sorted({manifest["made_by"]["device"] for manifest in found.values()}),
    }
