"""Toy models, ids and data that several test files build."""

import io
from collections.abc import Iterable
from pathlib import Path

from transformers import ElectraConfig, ElectraForMaskedLM

from fast_electra_core.tokenizer import train_tokenizer


def save_auxiliary(folder: Path, documents: Iterable[str]) -> Path:
    """An untrained masked language model of one layer, with a tokenizer that knows the documents."""
    tokenizer = train_tokenizer(iter(documents), vocab_size=300)
    tokenizer.save_pretrained(folder)
    shape = {"embedding_size": 16, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    ElectraForMaskedLM(ElectraConfig(**shape, vocab_size=len(tokenizer))).save_pretrained(folder)
    return folder


class Terminal(io.StringIO):
    """Takes what a progress bar draws; `shown` has it once the bar is closed."""

    shown = ""

    def close(self) -> None:
        self.shown = self.getvalue()
        super().close()
