"""A run's checkpoints in its store, where another machine finds them, and the curve that goes with them."""

import json
import logging
import shutil
from pathlib import Path

from fast_electra_core.checkpoint import check, superseded
from fast_electra_core.config import TrainingConfig
from fast_electra_core.errors import CheckpointError
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
        path.write_text("".join(f"{json.dumps(row)}\n" for row in self.rows))

    def append(self, row: Row) -> None:
        self.rows.append(row)
        with self._path.open("a") as file:
            file.write(f"{json.dumps(row)}\n")


def fetch_checkpoints(store: Store, prefix: str) -> Path:
    """The folder of checkpoints on this machine, with the newest sound one of those in S3."""
    if store.is_s3:
        for key in reversed(store.list_keys(prefix)):
            folder = store.get_folder(key)
            if (folder / _CURVE).is_file():
                shutil.copyfile(folder / _CURVE, store.path(prefix).parent / _CURVE)
            if _is_sound(folder):
                break
    return store.path(prefix)


def _is_sound(folder: Path) -> bool:
    try:
        check(folder)
    except CheckpointError:  # said by load_latest, which comes by here
        return False
    return True


def keep_checkpoint(folder: Path, store: Store, prefix: str, config: TrainingConfig) -> None:
    """Upload the checkpoint, where the store is in S3, with the curve so far; drop those that are superseded.

    Where S3 will not take it, for longer than its client tries, that is said: training goes on, the checkpoint is on
    this machine, and the next one may have better luck.
    """
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError

    if store.is_s3:
        shutil.copyfile(store.path(prefix).parent / _CURVE, folder / _CURVE)
    try:
        store.put_folder(folder, f"{prefix}/{folder.name}")
        names = [key.rpartition("/")[2] for key in store.list_keys(prefix)]
        for name in superseded(names, keep=config.keep_checkpoints, milestone_every=config.milestone_every_steps):
            store.delete(f"{prefix}/{name}")
    except (Boto3Error, BotoCoreError, ClientError) as error:
        _logger.warning("checkpoint %s is on this machine alone, S3 does not take it: %s", folder, error)
