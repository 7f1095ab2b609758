"""The tokenizer of a run, in the store: trained on its text or given, and what training must know of it."""

import math
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from fast_electra_core.data import SpecialIds
from fast_electra_core.errors import ConfigError
from fast_electra_core.tokenizer import load_tokenizer, tokenizer_digest, train_tokenizer, word_continuations
from steps.console import ProgressBar
from steps.store import Store
from steps.tokenization import documents_of

_CHARACTERS_PER_ENTRY = 2_000
"""Text that a vocabulary is trained on, per entry: more changes it little."""
_MAX_SAMPLED_SHARDS = 1_000
"""Of a shard in S3 a sample takes a request or two."""


def prepare_tokenizer(source: str, config: dict[str, Any], shards: Sequence[dict[str, Any]], store: Store) -> str:
    """Train a tokenizer on the corpus (`train`) or load the given one; returns its key in the store.

    Raises:
        DataError: a tokenizer that cannot be read, or text that holds no word.
    """
    if source == "train":
        texts = _sample(shards, config, store)
        tokenizer = train_tokenizer(texts, vocab_size=config["vocab_size"])
    else:
        tokenizer = load_tokenizer(Path(source).expanduser())
    key = f"tokenizers/{tokenizer_digest(tokenizer)}"
    if not store.has(key):
        with tempfile.TemporaryDirectory() as folder:
            tokenizer.save_pretrained(folder)
            store.put_folder(Path(folder), key)
    return key


def _sample(shards: Sequence[dict[str, Any]], config: dict[str, Any], store: Store) -> Iterator[str]:
    """An equal share of every shard's text, from its beginning; of very many shards, of as many as may be, evenly."""
    sampled = shards[:: math.ceil(len(shards) / _MAX_SAMPLED_SHARDS)]
    share = _CHARACTERS_PER_ENTRY * config["vocab_size"] // len(sampled)
    with ProgressBar(len(sampled), label="reading text for the tokenizer", unit="shard") as bar:
        for done, shard in enumerate(sampled, start=1):
            characters = 0
            for document in documents_of(shard, config, store):
                yield document
                characters += len(document)
                if characters >= share:
                    break
            bar.update(done)


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
