"""The sequences of a run, out of its shards and its tokenizer in the store."""

from collections.abc import Sequence

import torch

from fast_electra_core.config import TrainingConfig
from fast_electra_core.data import TokenDataset
from fast_electra_core.tokenizer import load_tokenizer, word_continuations
from steps.store import Store
from steps.tokenizer import special_ids


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
