"""A run's checkpoints in its store, where another machine finds them, and the curve that goes with them."""

import contextlib
import json
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError

from fast_electra_core.checkpoint import check, list_checkpoints, superseded
from fast_electra_core.config import TrainingConfig
from fast_electra_core.errors import CheckpointError, StoreError
from fast_electra_core.trainer import Row
from steps.store import Store

_CURVE = "curve.jsonl"
_logger = logging.getLogger(__name__)


class Curve:
    """Metric rows on disk beside the checkpoints, so that a resumed run's curves have no seam."""

    def __init__(self, path: Path, *, first_step: int) -> None:
        self._path = path
        lines = path.read_text().splitlines() if path.is_file() else []
        rows = [json.loads(line) for line in lines if line.endswith("}")]  # the last may be cut short
        # Rows after the checkpoint are computed again.
        self.rows: list[Row] = [row for row in rows if row["step"] <= first_step]
        path.parent.mkdir(parents=True, exist_ok=True)
        anew = path.with_name(f"{path.name}.partial")  # a disk that is full, or a kill, would else cost those there are
        self._write(anew, "w", self.rows)
        anew.replace(path)

    def append(self, row: Row) -> None:
        """Raises: CheckpointError: the disk does not take it."""
        self.rows.append(row)
        self._write(self._path, "a", [row])

    @staticmethod
    def _write(path: Path, mode: str, rows: list[Row]) -> None:
        with on_disk(path), path.open(mode) as file:
            file.writelines(f"{json.dumps(row)}\n" for row in rows)


@contextlib.contextmanager
def on_disk(path: Path) -> Iterator[None]:
    """Inside, something is written to the path.

    Raises:
        CheckpointError: the disk does not take it.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{path} could not be written: {error}. Free some disk space, or set --store, and resume."
        ) from error


def fetch_checkpoints(store: Store, prefix: str) -> Path:
    """The folder of checkpoints on this machine, with the newest sound one: it may be here alone, where S3 did not take
    it, or in S3 alone, and then its curve comes with it.

    Raises:
        CheckpointError: there are some in S3, but every one is damaged.
        StoreError: S3 does not say.
    """
    here = store.path(prefix)
    if not store.is_s3:
        return here
    newest_here = next((folder.name for folder in list_checkpoints(here) if _is_sound(folder)), "")
    keys = store.list_keys(prefix)
    for key in reversed(keys):
        if key.rpartition("/")[2] <= newest_here:
            return here
        folder = store.get_folder(key)
        if not _is_sound(folder):
            folder = store.get_folder(key, anew=True)  # it may be the copy that is damaged
        if _is_sound(folder):
            if (folder / _CURVE).is_file():
                shutil.copyfile(folder / _CURVE, here.parent / _CURVE)
            return here
    if keys and not newest_here:
        raise CheckpointError(
            f"every checkpoint in {store.address(prefix)} is damaged. Delete them there, and the folder {here}, to "
            "start from step 0"
        )
    return here


def _is_sound(folder: Path) -> bool:
    try:
        check(folder)
    except CheckpointError:  # said by newest_sound, which comes by here
        return False
    return True


def keep_checkpoint(folder: Path, store: Store, prefix: str, config: TrainingConfig) -> None:
    """Upload the checkpoint, where the store is in S3, with the curve so far; drop those that are superseded.

    Where S3 will not take it, for longer than its client tries, that is said: training goes on, the checkpoint is on
    this machine, and the next one may have better luck.

    Raises:
        CheckpointError: the disk is full.
    """
    try:
        with on_disk(folder):
            if store.is_s3:
                shutil.copyfile(store.path(prefix).parent / _CURVE, folder / _CURVE)
            store.put_folder(folder, f"{prefix}/{folder.name}")
        names = [key.rpartition("/")[2] for key in store.list_keys(prefix)]
        for name in superseded(
            names, folder.name, keep=config.keep_checkpoints, milestone_every=config.milestone_every_steps
        ):
            store.delete(f"{prefix}/{name}")
    except StoreError as error:
        _logger.warning("checkpoint %s is on this machine alone, S3 does not take it: %s", folder, error)
