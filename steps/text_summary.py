"""Counts of the tokenized text, checked for being enough to train on. Imports nothing heavy."""

from collections.abc import Sequence
from typing import Any

from fast_electra_core.errors import DataError

MAX_UNKNOWN_FRACTION = 0.2


def summarise(manifests: Sequence[dict[str, Any]], config: dict[str, Any]) -> dict[str, Any]:
    """Counts over all shards, checked for being enough to train on.

    Raises:
        DataError: no tokens, fewer than one batch or no held-out sequence, or a tokenizer that does not know the text.
    """
    names = ("num_documents", "num_train_tokens", "num_heldout_tokens", "num_unknown")
    text = {name: sum(manifest[name] for manifest in manifests) for name in names}
    num_tokens = text["num_train_tokens"] + text["num_heldout_tokens"]
    if not num_tokens:
        raise DataError(f"the documents of {config['corpus']!r} hold no tokens; is text_field right?")
    body = config["sequence_length"] - 2
    text["num_sequences"] = text["num_train_tokens"] // body
    text["unknown_fraction"] = text["num_unknown"] / num_tokens
    text["vocab_size"] = manifests[0]["vocab_size"]
    if text["unknown_fraction"] > MAX_UNKNOWN_FRACTION:
        raise DataError(
            f"{text['unknown_fraction']:.1%} of the tokens are unknown to the tokenizer (at most "
            f"{MAX_UNKNOWN_FRACTION:.0%} is sensible): it is of another language or script; train one on this text"
        )
    if text["num_sequences"] < config["batch_size"]:
        raise DataError(
            f"the corpus holds {text['num_train_tokens']:,} tokens for training (held out: "
            f"{text['num_heldout_tokens']:,}), which is {text['num_sequences']} sequences of "
            f"{config['sequence_length']}: smaller than one batch of {config['batch_size']}. Give more "
            "text, or a smaller --batch_size or --sequence_length"
        )
    if text["num_heldout_tokens"] < body:
        raise DataError(
            f"only {text['num_heldout_tokens']} tokens are held out (heldout_fraction {config['heldout_fraction']}), "
            f"less than one sequence of {config['sequence_length']}. Documents are held out whole, and of "
            f"{text['num_documents']:,} chance took too few: raise --heldout_fraction, or give text in more documents "
            "(in .txt, blank lines lie between them)"
        )
    return text
