"""A run's checkpoints in its store, where another machine finds them, and the curve that goes with them."""

import json
import shutil
from pathlib import Path

from fast_electra_core.trainer import Row
from steps.store import Store


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
    """The folder of checkpoints on this machine, with those in S3 downloaded if it is a fresh one."""
    for key in store.list_keys(prefix):
        folder = store.get_folder(key)
        if store.is_s3 and (folder / "curve.jsonl").is_file():
            shutil.copyfile(folder / "curve.jsonl", folder.parent.parent / "curve.jsonl")
    return store.path(prefix)


def keep_checkpoint(folder: Path, store: Store, prefix: str) -> None:
    """Upload the checkpoint, where the store is in S3, with the curve so far; drop those no longer on disk."""
    if store.is_s3:
        shutil.copyfile(folder.parent.parent / "curve.jsonl", folder / "curve.jsonl")
    store.put_folder(folder, f"{prefix}/{folder.name}")
    for key in store.list_keys(prefix):
        if not store.path(key).is_dir():
            store.delete(key)
