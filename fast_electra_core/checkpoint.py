"""Checkpoints: safetensors and JSON, written atomically, verified by digest when read. No pickle anywhere.

A checkpoint is a folder `step-000001000` with tensors.safetensors, state.json and, written last, manifest.json with the
SHA-256 of both. The folder gets its name only when it is complete, so a half-written one is never picked.
"""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fast_electra_core.errors import CheckpointError

MANIFEST = "manifest.json"
_TENSORS, _STATE = "tensors.safetensors", "state.json"
_logger = logging.getLogger(__name__)


class Checkpoint(NamedTuple):
    """What a checkpoint holds."""

    step: int
    tensors: dict[str, Tensor]
    state: dict[str, Any]


def save_checkpoint(root: Path, checkpoint: Checkpoint, *, keep: int = 2, milestone_every: int | None = None) -> Path:
    """Write the checkpoint below root, delete those that are `superseded`, and return its folder.

    Raises:
        CheckpointError: it could not be written (disk full, say). Earlier ones are untouched.
    """
    final = root / f"step-{checkpoint.step:09d}"
    partial = root / f".{final.name}.{os.getpid()}.partial"
    try:
        for left_over in root.glob(".step-*.partial"):  # of an attempt that was killed while writing
            shutil.rmtree(left_over)
        partial.mkdir(parents=True, exist_ok=True)
        save_file(
            {name: tensor.detach().contiguous() for name, tensor in checkpoint.tensors.items()},
            partial / _TENSORS,
        )
        (partial / _STATE).write_text(json.dumps({"step": checkpoint.step, **checkpoint.state}))
        digests = {name: _sha256(partial / name) for name in (_TENSORS, _STATE)}
        (partial / MANIFEST).write_text(json.dumps({"sha256": digests}))
        _flush_to_disk(partial)
        if final.exists():
            shutil.rmtree(final)
        partial.rename(final)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise CheckpointError(
            f"no checkpoint could be written to {final}: {error}. Free some disk space, or set --store, and resume."
        ) from error
    names = [path.name for path in list_checkpoints(root)]
    for name in superseded(names, final.name, keep=keep, milestone_every=milestone_every):
        shutil.rmtree(root / name)
    return final


def superseded(names: Iterable[str], newest: str, *, keep: int, milestone_every: int | None) -> list[str]:
    """Of checkpoints' names those that are not kept: neither among the last `keep` up to the newest, which was written
    just now, nor of a step that milestone_every divides. Those of later steps were damaged, or training would have
    gone on from them.

    >>> superseded(["step-000000010", "step-000000020", "step-000000030"], "step-000000030", keep=1, milestone_every=20)
    ['step-000000010']
    """
    sound = sorted(name for name in names if name <= newest)
    older = [name for name in sound[:-keep] if milestone_every is None or step_of(name) % milestone_every]
    return older + sorted(set(names) - set(sound))


def step_of(name: str) -> int:
    """Of a checkpoint, by its folder's name."""
    return int(name.removeprefix("step-"))


def list_checkpoints(root: Path) -> list[Path]:
    """Folders of checkpoints below root, the newest first; they bear their names only once they are complete."""
    return sorted((path for path in root.glob("step-*") if path.is_dir()), reverse=True)


def load_latest(root: Path) -> Checkpoint | None:
    """What the `newest_sound` checkpoint holds; None if there is none.

    Raises: as newest_sound.
    """
    folder = newest_sound(root)
    if folder is None:
        return None
    state = json.loads((folder / _STATE).read_text())
    return Checkpoint(state.pop("step"), load_file(folder / _TENSORS), state)


def newest_sound(root: Path) -> Path | None:
    """The folder of the newest checkpoint whose digests are right; None if root holds none.

    A damaged one is passed over with a warning that names it and what is wrong.

    Raises:
        CheckpointError: there are checkpoints, but every one is damaged.
    """
    folders = list_checkpoints(root)
    for folder in folders:
        try:
            check(folder)
            return folder
        except CheckpointError as error:
            _logger.warning("%s; trying the one before", error)
    if folders:
        raise CheckpointError(f"every checkpoint in {root} is damaged; delete the folder to start from step 0")
    return None


def check(folder: Path) -> None:
    """The checkpoint's files are those that its manifest names.

    Raises:
        CheckpointError: they are not, or not all are there; it says which.
    """
    try:
        digests = json.loads((folder / MANIFEST).read_text())["sha256"]
        for name, expected in digests.items():
            if _sha256(folder / name) != expected:
                raise CheckpointError(f"checkpoint {folder} is damaged: {name} does not match its digest")
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, KeyError) as error:
        raise CheckpointError(f"checkpoint {folder} is damaged: {type(error).__name__}: {error}") from error


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush_to_disk(folder: Path) -> None:
    for path in [*folder.iterdir(), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def training_tensors(module: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """All tensors that training changes, by name: parameters (tied ones once) and the optimizer's state."""
    tensors: dict[str, Tensor] = {f"model.{name}": value for name, value in module.named_parameters()}
    for index, values in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{key}": value for key, value in values.items()}
    return tensors


@torch.no_grad()
def restore_weights(tensors: dict[str, Tensor], module: nn.Module) -> None:
    """The parameters alone; the module is mutated."""
    for name, parameter in module.named_parameters():
        parameter.copy_(tensors[f"model.{name}"])


@torch.no_grad()
def restore_training_tensors(tensors: dict[str, Tensor], module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Inverse of training_tensors; module and optimizer are mutated.

    Raises:
        CheckpointError: names or shapes are not those of this module.
    """
    parameters = dict(module.named_parameters())
    saved = {name.removeprefix("model."): value for name, value in tensors.items() if name.startswith("model.")}
    shapes = {name: tuple(value.shape) for name, value in parameters.items()}
    if shapes != {name: tuple(value.shape) for name, value in saved.items()}:
        raise CheckpointError("the checkpoint is of another model: names or shapes of its weights differ")
    restore_weights(tensors, module)
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith("optimizer."):
            _, index, key = name.split(".", 2)
            state.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
