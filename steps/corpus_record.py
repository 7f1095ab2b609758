"""What text a model has seen, file by file and by content: the artifact `corpus.json` of the run that trained it.

A continued model has seen what the model before it saw, too: its record holds the files and shards of both.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from steps import tracking

RECORD = "corpus.json"
_FORMAT = 1
_OF_A_FILE = ("name", "num_bytes", "digest")
_OF_A_SHARD = ("key", "num_train_tokens", "num_heldout_tokens")


def record_of(plan: Mapping[str, Any], manifests: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The record of a run: its own text, after that of the model it continues (`plan["seen"]`, if there is one).

    Files have a name, a size in bytes and a digest by content (SHA-256, or an S3 object's ETag and size); shards their
    key in the store and their counts of tokens, in the order in which they were read.
    """
    corpus, seen = plan["corpus"], plan.get("seen") or {"files": [], "shards": []}
    files = [{name: file[name] for name in _OF_A_FILE} for file in corpus["files"]]
    shards = [{name: manifest[name] for name in _OF_A_SHARD} for manifest in manifests]
    return {
        "format": _FORMAT,
        "address": corpus["address"],
        "tokenizer": plan["tokenizer_key"],
        "files": [*seen["files"], *files],
        "shards": [*seen["shards"], *shards],
    }


def read_record(version: Mapping[str, Any]) -> dict[str, Any] | None:
    """The record of a registered version (tracking.model_version_info's); None where it has none, as versions from
    before records were kept.

    Raises:
        TrackingError: the run that made it is gone or cannot be read.
    """
    parent = version["tags"].get("mlflow.parent_run_id")
    return tracking.load_dict(parent, RECORD) if parent else None
