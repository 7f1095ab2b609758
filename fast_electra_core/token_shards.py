"""Token shards on disk: written document by document, checked before they are read. No torch: it would take longer to
import than a small shard to make.

A shard is a folder: train.bin and heldout.bin (little-endian ids, uint16 where the vocabulary allows; each document is
followed by the separator), and manifest.json, written last, with counts and digests.
"""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fast_electra_core.errors import DataError

MANIFEST = "manifest.json"
PARTS = ("train", "heldout")
_MEND = "Delete the folder {} and run again; in a run that has begun, `resume tokenize`"
Ids = npt.NDArray[np.integer[Any]]


def write_shard(
    folder: Path,
    documents: Iterable[Ids],
    *,
    separator_id: int,
    unknown_id: int,
    vocab_size: int,
    heldout_fraction: float,
) -> dict[str, Any]:
    """Write documents (arrays of ids) as one shard into an existing, empty folder; returns the manifest.

    Documents are held out by is_heldout, so duplicates never straddle the two sides.
    """
    dtype = np.dtype("<u2") if vocab_size <= 1 << 16 else np.dtype("<u4")
    digests = {part: hashlib.sha256() for part in PARTS}
    counts = dict.fromkeys(PARTS, 0)
    num_documents = num_unknown = 0
    with (folder / "train.bin").open("wb") as train, (folder / "heldout.bin").open("wb") as heldout:
        for ids in documents:
            if not len(ids):
                continue
            part = "heldout" if is_heldout(ids, heldout_fraction) else "train"
            data = np.empty(len(ids) + 1, dtype)
            data[:-1], data[-1] = ids, separator_id
            (heldout if part == "heldout" else train).write(data.data)
            digests[part].update(data.data)
            counts[part] += len(ids) + 1
            num_documents += 1
            num_unknown += int(np.count_nonzero(ids == unknown_id))
    manifest = {
        "num_documents": num_documents,
        "num_train_tokens": counts["train"],
        "num_heldout_tokens": counts["heldout"],
        "num_unknown": num_unknown,
        "vocab_size": vocab_size,
        "dtype": dtype.str,
        "sha256": {f"{part}.bin": digest.hexdigest() for part, digest in digests.items()},
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1))
    return manifest


def is_heldout(ids: Ids, heldout_fraction: float) -> bool:
    """Whether a document of these ids is held out, wherever and whenever it appears: its hash is among that share."""
    word = int.from_bytes(hashlib.blake2b(ids.astype("<u4").tobytes(), digest_size=8).digest(), "little")
    return word < heldout_fraction * 2**64


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a shard whose files have the sizes that it says. Contents are not read: shards may be large.

    Raises:
        DataError: the folder holds no manifest, so the shard was never finished; the manifest is damaged; a file is
            missing, cut short or too long.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise DataError(f"{folder} is not a token shard: it has no {MANIFEST}. Tokenize again.")
    try:
        manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        token_bytes = {"<u2": 2, "<u4": 4}[manifest["dtype"]]
        sizes = {f"{part}.bin": token_bytes * manifest[f"num_{part}_tokens"] for part in PARTS}
    except (ValueError, KeyError, TypeError) as error:  # ValueError: not JSON, or not UTF-8
        raise DataError(f"{path} is damaged: {type(error).__name__}: {error}. {_MEND.format(folder)}") from error
    for name, expected in sizes.items():
        file = folder / name
        found = file.stat().st_size if file.is_file() else None
        if found != expected:
            held = "is missing" if found is None else f"holds {found} bytes"
            raise DataError(f"{file} {held}, {expected} are expected by its manifest. {_MEND.format(folder)}")
    return manifest
