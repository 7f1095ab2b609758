"""Text becomes token shards in the store, one task per shard; a shard that is there already is not made again.

Neither torch nor transformers is imported: of a task with a small shard that was most of its time.
"""

import hashlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from fast_electra_core.encoding import DocumentEncoder
from fast_electra_core.errors import DataError
from fast_electra_core.text import read_documents
from fast_electra_core.token_shards import is_heldout, read_manifest, write_shard
from steps.console import ProgressBar
from steps.corpus import open_piece
from steps.store import Store

SHARD_FORMAT = 1
"""Part of every shard's key; raise it when the bytes of a shard change."""


def documents_of(shard: dict[str, Any], config: dict[str, Any], store: Store) -> Iterator[str]:
    """The documents of a shard's text, one after the other, read as far as they are asked for."""
    given = {name: config[name] for name in ("text_field", "on_bad_text")}
    for piece in shard["pieces"]:
        found, open_file = open_piece(piece, store=store)
        yield from read_documents(found, open_file=open_file, **given)


def tokenize_shard(
    shard: dict[str, Any], config: dict[str, Any], *, tokenizer_key: str, store: Store
) -> dict[str, Any]:
    """Tokenize one shard's text into the store; returns its manifest with its `key`.

    The key is a digest of everything the bytes depend on, so a shard made by an earlier run is used again.

    Raises:
        DataError: text that cannot be read, or a disk that is full; nothing half-made is left.
    """
    parts = [SHARD_FORMAT, shard["digest"], tokenizer_key, config["heldout_fraction"], config["on_bad_text"]]
    digest = hashlib.sha256(repr([*parts, config["text_field"]]).encode()).hexdigest()[:20]
    key = f"tokens/{digest}"
    if not store.has(key):
        try:
            _make_shard(shard, config, tokenizer_key=tokenizer_key, store=store, key=key)
        except OSError as error:  # those of reading are DataErrors already
            raise DataError(
                f"a token shard could not be written to the store {store.root}: {error}. Free some disk space and "
                "resume, or give another --store"
            ) from error
    return {"key": key, **read_manifest(store.get_folder(key))}


def _make_shard(shard: dict[str, Any], config: dict[str, Any], *, tokenizer_key: str, store: Store, key: str) -> None:
    encoder = DocumentEncoder(store.get_folder(tokenizer_key))
    with tempfile.TemporaryDirectory(dir=store.folder) as folder:
        write_shard(
            Path(folder),
            encoder.encode(documents_of(shard, config, store)),
            separator_id=encoder.separator_id,
            unknown_id=encoder.unknown_id,
            vocab_size=encoder.vocab_size,
            heldout_fraction=config["heldout_fraction"],
        )
        store.put_folder(Path(folder), key)


def count_tokens(
    shards: Sequence[dict[str, Any]],
    config: dict[str, Any],
    *,
    tokenizer_key: str,
    store: Store,
    is_enough: Callable[[int, int], bool],
    about: int,
) -> tuple[int, int]:
    """How many tokens of the shards' text would be trained on and how many held out, separators included; reading ends
    where is_enough(train, heldout). about: the tokens in all at which that is expected, for the progress bar.

    Raises:
        DataError: text that cannot be read.
    """
    encoder, train, heldout = DocumentEncoder(store.get_folder(tokenizer_key)), 0, 0
    with ProgressBar(about, label="counting new tokens", unit="token") as bar:
        for shard in shards:
            for ids in encoder.encode(documents_of(shard, config, store)):
                count = len(ids) + 1 if len(ids) else 0
                if is_heldout(ids, config["heldout_fraction"]):
                    heldout += count
                else:
                    train += count
                if is_enough(train, heldout):
                    return train, heldout
                if train + heldout < about:
                    bar.update(train + heldout)
    return train, heldout
