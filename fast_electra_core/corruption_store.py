"""Corruption ahead of training: the ids drawn for a range of optimiser steps, written once, read by any number of runs.

Only drawn ids are kept. Which sequences a step trains on and which of their positions are selected is computed again,
as every step does; a token's label is whether the drawn id is another than the original.

A range of steps is a folder:

    samples.bin     the ids, step after step, row-major; little-endian, 2 bytes each up to 65,536 tokens of vocabulary,
                    3 up to 16,777,216, else 4
    counts.bin      uint32 per step: how many of them are its own
    manifest.json   written last: identity, steps, sizes, SHA-256 of both files, and what made them

That is mask_fraction × 2 (or 3) bytes per token and 4 bytes per step: 0.30 (0.45) at 15 %. Half a byte per token is
passed above a mask_fraction of 0.25 (0.16 for the larger vocabularies); nothing else changes there.

Shapes: N selected tokens of a step.
"""

import hashlib
import json
import platform
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fast_electra_core.batches import batch_at
from fast_electra_core.config import TrainingConfig
from fast_electra_core.curriculum import Curriculum
from fast_electra_core.data import TokenDataset
from fast_electra_core.errors import DataError
from fast_electra_core.precision import autocast
from fast_electra_core.prefetch import made_ahead
from fast_electra_core.proposals import FrozenMaskedLm
from fast_electra_core.token_shards import MANIFEST
from fast_electra_core.trainer import progress_at

_SAMPLES, _COUNTS = "samples.bin", "counts.bin"
_ADVICE = ". Resume from the step `corrupt`, which draws anew what is missing or damaged"


def draw_samples(
    proposal: FrozenMaskedLm,
    dataset: TokenDataset,
    config: TrainingConfig,
    *,
    steps: range,
    curriculum: Curriculum,
) -> Iterator[Tensor]:
    """Ids (N,) int64 of each step: those that training would draw, in the same micro-batches, on the same device.

    The proposal's models run where they are; the ids come back on the CPU.
    """
    device = proposal.device
    with closing(made_ahead(lambda step: batch_at(step, dataset, config), steps, device=device)) as batches:
        for step, batch in zip(steps, batches, strict=True):
            smoothing = curriculum.at(progress_at(step, config))
            drawn = []
            for micro_batch in batch.split(config.micro_batch_size or config.batch_size):
                with autocast(config.precision, device):
                    drawn.append(proposal.sample(micro_batch.to(device), smoothing))
            yield torch.cat(drawn).cpu()  # device sync


def maker(device: torch.device) -> dict[str, Any]:
    """What the last bits of a sample may depend on besides its identity; kept in the manifest."""
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "machine": platform.machine(),
        "num_threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def write_samples(
    folder: Path,
    samples: Iterable[Tensor],
    *,
    first_step: int,
    vocab_size: int,
    identity: Mapping[str, Any],
    made_by: Mapping[str, Any],
) -> dict[str, Any]:
    """Write the ids of consecutive steps, each (N,), into an existing, empty folder; returns the manifest.

    identity is what the ids are a function of, made_by what else is worth knowing; both plain values. Ids must be below
    vocab_size.
    """
    width = _bytes_per_id(vocab_size)
    counts = []
    with (folder / _SAMPLES).open("wb") as file:
        for ids in samples:
            file.write(_pack(ids.numpy(), width))
            counts.append(len(ids))
    (folder / _COUNTS).write_bytes(np.array(counts, dtype="<u4").tobytes())
    manifest = {
        "identity": dict(identity),
        "first_step": first_step,
        "end_step": first_step + len(counts),
        "num_samples": sum(counts),
        "bytes_per_id": width,
        "num_bytes": {name: (folder / name).stat().st_size for name in (_SAMPLES, _COUNTS)},
        "sha256": {name: _sha256(folder / name) for name in (_SAMPLES, _COUNTS)},
        "made_by": dict(made_by),
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1))
    return manifest


class SampleRange(NamedTuple):
    """An open range of steps."""

    folder: Path
    manifest: dict[str, Any]
    rows: npt.NDArray[np.uint8]
    """(samples, bytes per id), mapped from the disk."""
    ends: npt.NDArray[np.int64]
    """(steps,): row after each step's last."""

    def __contains__(self, step: object) -> bool:
        return isinstance(step, int) and self.manifest["first_step"] <= step < self.manifest["end_step"]

    def at(self, step: int) -> Tensor:
        """Ids (N,) int64 of a step.

        Raises:
            DataError: the step is not among the range's.
        """
        first, end = self.manifest["first_step"], self.manifest["end_step"]
        if step not in self:
            raise DataError(f"{self.folder} holds the corruption of steps {first} to {end - 1}, not of step {step}")
        index = step - first
        rows = self.rows[self.ends[index - 1] if index else 0 : self.ends[index]]
        ids = np.zeros((len(rows), 4), dtype=np.uint8)
        ids[:, : rows.shape[1]] = rows
        return torch.from_numpy(ids.view("<u4").astype(np.int64).reshape(-1))


def open_samples(folder: Path, *, identity: Mapping[str, Any]) -> SampleRange:
    """Open a range of steps, its bytes checked against their digests.

    Raises:
        DataError: it is unfinished, cut short, damaged, or of another identity; the message names what differs.
    """
    manifest = _checked_manifest(folder, identity)
    ends = np.cumsum(np.fromfile(folder / _COUNTS, dtype="<u4").astype(np.int64))
    shape = (manifest["num_samples"], manifest["bytes_per_id"])
    if not shape[0]:  # an empty file cannot be mapped
        return SampleRange(folder, manifest, np.zeros(shape, dtype=np.uint8), ends)
    return SampleRange(folder, manifest, np.memmap(folder / _SAMPLES, dtype=np.uint8, mode="r", shape=shape), ends)


def _checked_manifest(folder: Path, identity: Mapping[str, Any]) -> dict[str, Any]:
    try:
        manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text())
        found = manifest["identity"]
        differing = sorted(key for key in found | dict(identity) if found.get(key) != identity.get(key))
        if differing:
            raise DataError(f"the corruption in {folder} was drawn for another run: {', '.join(differing)} differ")
        for name, expected in manifest["num_bytes"].items():
            size = (folder / name).stat().st_size
            if size != expected:
                raise DataError(f"{folder / name} has {size} bytes instead of {expected}{_ADVICE}")
            if _sha256(folder / name) != manifest["sha256"][name]:
                raise DataError(f"{folder / name} is damaged: it does not match its digest{_ADVICE}")
    except DataError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:  # of a manifest that is cut short
        raise DataError(
            f"the corruption in {folder} cannot be read: {type(error).__name__}: {error}{_ADVICE}"
        ) from error
    return manifest


class StoredSamples:
    """The ids of any step, in ranges of steps; the one last used stays open."""

    def __init__(self, folder_of: Callable[[int], Path], *, identity: Mapping[str, Any]) -> None:
        """folder_of finds the range that holds a step."""
        self._folder_of = folder_of
        self._identity = dict(identity)
        self._open: SampleRange | None = None

    def at(self, step: int) -> Tensor:
        """Ids (N,) int64 of a step.

        Raises: as open_samples.
        """
        if self._open is None or step not in self._open:
            self._open = open_samples(self._folder_of(step), identity=self._identity)
        return self._open.at(step)


def _bytes_per_id(vocab_size: int) -> int:
    return 2 if vocab_size <= 1 << 16 else 3 if vocab_size <= 1 << 24 else 4


def _pack(ids: npt.NDArray[np.int64], width: int) -> bytes:
    return ids.astype("<u4").view(np.uint8).reshape(-1, 4)[:, :width].tobytes()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
