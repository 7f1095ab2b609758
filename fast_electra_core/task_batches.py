"""A task's examples as batches of token ids: sequences of like length, so that little of them is padding.

Shapes: B sequences, L tokens per sequence.
"""

import random
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fast_electra_core.glue import Example

WINDOW_BATCHES = 50
"""Sequences are sorted by length among so many batches' worth of shuffled ones."""


class EncodedExamples(NamedTuple):
    """Examples as token ids, in their order."""

    columns: dict[str, list[list[int]]]
    """input_ids and whatever else the model takes, unpadded."""
    lengths: list[int]
    labels: list[int | float]


class ExampleEncoder:
    """Examples to token ids, and token ids to padded batches on the model's device."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, max_length: int) -> None:
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.device = model.device
        self.takes_segments = getattr(model.config, "type_vocab_size", 2) > 1

    def __call__(self, examples: Sequence[Example]) -> EncodedExamples:
        pairs = [str(e.text_b) for e in examples] if examples[0].text_b is not None else None
        tokens = self.tokenizer(
            [e.text_a for e in examples], pairs, truncation=True, max_length=self.max_length, padding=False
        )
        names = [name for name in self.tokenizer.model_input_names if name in tokens]
        if not self.takes_segments:
            names = [name for name in names if name != "token_type_ids"]
        columns = {name: tokens[name] for name in names if name != "attention_mask"}
        return EncodedExamples(columns, [len(ids) for ids in columns["input_ids"]], [e.label for e in examples])

    def batch(self, encoded: EncodedExamples, indices: Sequence[int]) -> dict[str, Tensor]:
        """Model inputs, each (B, L), padded to the longest of these sequences."""
        width = max(encoded.lengths[index] for index in indices)
        batch: dict[str, Tensor] = {}
        for name, column in encoded.columns.items():
            filler = self.tokenizer.pad_token_id if name == "input_ids" else 0
            rows = [column[index] + [filler] * (width - encoded.lengths[index]) for index in indices]
            batch[name] = torch.tensor(rows, device=self.device)
        lengths = torch.tensor([encoded.lengths[index] for index in indices], device=self.device)
        batch["attention_mask"] = (torch.arange(width, device=self.device) < lengths[:, None]).long()
        return batch


def length_batches(lengths: Sequence[int], *, batch_size: int, rng: random.Random) -> list[list[int]]:
    """Indices in batches of like length, in random order; every index once, every batch but one full."""
    order = list(range(len(lengths)))
    rng.shuffle(order)
    batches: list[list[int]] = []
    window = batch_size * WINDOW_BATCHES
    for start in range(0, len(order), window):
        ranked = sorted(order[start : start + window], key=lengths.__getitem__)  # stable: ties stay shuffled
        batches += [ranked[at : at + batch_size] for at in range(0, len(ranked), batch_size)]
    rng.shuffle(batches)
    return batches


def endless_batches(lengths: Sequence[int], batch_size: int, rng: random.Random) -> Iterator[list[int]]:
    """length_batches of one epoch after another, each shuffled anew."""
    while True:
        yield from length_batches(lengths, batch_size=batch_size, rng=rng)
