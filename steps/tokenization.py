"""Text becomes token shards in the store, one task per shard; a shard that is there already is not made again."""

import hashlib
import itertools
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from fast_electra_core.config import TrainingConfig
from fast_electra_core.data import SpecialIds, TokenDataset, read_manifest, write_shard
from fast_electra_core.errors import ConfigError, DataError
from fast_electra_core.text import read_documents
from fast_electra_core.tokenizer import (
    encode_documents,
    load_tokenizer,
    tokenizer_digest,
    train_tokenizer,
    word_continuations,
)
from steps.console import ProgressBar
from steps.corpus import local_piece
from steps.store import Store

SHARD_FORMAT = 1
"""Part of every shard's key; raise it when the bytes of a shard change."""
_CHARACTERS_PER_ENTRY = 2_000
"""Text that a vocabulary is trained on, per entry: more changes it little."""


def prepare_tokenizer(source: str, config: dict[str, Any], shards: Sequence[dict[str, Any]], store: Store) -> str:
    """Train a tokenizer on the corpus (`train`) or load the given one; returns its key in the store.

    Raises:
        DataError: a tokenizer that cannot be read, or text that holds no word.
    """
    if source == "train":
        texts = _sample(shards, config, store)
        tokenizer = train_tokenizer(texts, vocab_size=config["vocab_size"])
    else:
        tokenizer = load_tokenizer(source)
    key = f"tokenizers/{tokenizer_digest(tokenizer)}"
    if not store.has(key):
        with tempfile.TemporaryDirectory() as folder:
            tokenizer.save_pretrained(folder)
            store.put_folder(Path(folder), key)
    return key


def _sample(shards: Sequence[dict[str, Any]], config: dict[str, Any], store: Store) -> Iterator[str]:
    """An equal share of every shard's text, from its beginning."""
    share = _CHARACTERS_PER_ENTRY * config["vocab_size"] // len(shards)
    for shard in shards:
        characters = 0
        for document in _documents(shard, config, store):
            yield document
            characters += len(document)
            if characters >= share:
                break


def _documents(shard: dict[str, Any], config: dict[str, Any], store: Store) -> Iterator[str]:
    cache = store.folder / "downloads"
    return itertools.chain.from_iterable(
        read_documents(
            local_piece(piece, cache, store=store),
            text_field=config["text_field"],
            on_bad_text=config["on_bad_text"],
        )
        for piece in shard["pieces"]
    )


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
    tokenizer = load_tokenizer(store.get_folder(tokenizer_key))
    with tempfile.TemporaryDirectory(dir=store.folder) as folder:
        write_shard(
            Path(folder),
            encode_documents(tokenizer, _documents(shard, config, store)),
            separator_id=tokenizer.sep_token_id,
            unknown_id=tokenizer.unk_token_id,
            vocab_size=len(tokenizer),
            heldout_fraction=config["heldout_fraction"],
        )
        store.put_folder(Path(folder), key)


def count_tokens(
    shards: Sequence[dict[str, Any]], config: dict[str, Any], *, tokenizer_key: str, store: Store, at_most: int
) -> int:
    """How many tokens the shards' text has, separators included; reading ends where there are at_most.

    Raises:
        DataError: text that cannot be read.
    """
    tokenizer, count = load_tokenizer(store.get_folder(tokenizer_key)), 0
    with ProgressBar(at_most, label="counting new tokens", unit="token") as bar:
        for shard in shards:
            for ids in encode_documents(tokenizer, _documents(shard, config, store)):
                count += len(ids) + 1 if len(ids) else 0
                if count >= at_most:
                    return at_most
                bar.update(count)
    return count


def special_ids(tokenizer_folder: Path) -> SpecialIds:
    """The special ids that training needs."""
    tokenizer = load_tokenizer(tokenizer_folder)
    return SpecialIds(
        cls=tokenizer.cls_token_id,
        sep=tokenizer.sep_token_id,
        mask=tokenizer.mask_token_id,
        pad=tokenizer.pad_token_id,
        all_special=tuple(sorted(tokenizer.all_special_ids)),
    )


def check_masking(masking: str, tokenizer_folder: Path) -> None:
    """The tokenizer can serve the masking asked for.

    Raises:
        ConfigError: whole words, where no word has several tokens.
        DataError: words or spans, where the tokenizer does not say what a word is.
    """
    if masking == "tokens":
        return
    continues = word_continuations(load_tokenizer(tokenizer_folder))
    if masking == "whole_words" and not continues.any():
        raise ConfigError(
            "masking whole_words has no effect: no token of the tokenizer continues a word. Give --masking tokens or "
            "spans"
        )


def open_dataset(
    part: str, config: TrainingConfig, *, shard_keys: Sequence[str], tokenizer_key: str, store: Store
) -> TokenDataset:
    """The `train` or `heldout` sequences of the shards; they know which tokens continue a word if masking needs it."""
    folder = store.get_folder(tokenizer_key)
    continues_word = None
    if config.masking != "tokens":
        continues_word = torch.from_numpy(word_continuations(load_tokenizer(folder)))
    return TokenDataset(
        [store.get_folder(key) for key in shard_keys],
        part,
        sequence_length=config.sequence_length,
        special_ids=special_ids(folder),
        continues_word=continues_word,
        attention=config.attention,
    )
