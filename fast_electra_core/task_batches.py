"""A task's examples as batches of token ids: sequences of like length, so that little of them is padding.

Shapes: B sequences, L tokens per sequence, n examples with T tokens in all.
"""

import hashlib
import itertools
import os
import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from safetensors.numpy import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fast_electra_core.glue import Example
from fast_electra_core.tokenizer import tokenizer_digest
from fast_electra_core.transfer import onto

WINDOW_BATCHES = 50
"""Sequences are sorted by length among so many batches' worth of shuffled ones."""

TOKENIZED_AT_ONCE = 10_000
"""Examples; a tokenizer's output takes some hundred bytes per token."""


class EncodedExamples(NamedTuple):
    """Examples as token ids, in their order, end to end."""

    columns: dict[str, npt.NDArray[np.int32]]
    """input_ids and whatever else the model takes, each (T,)."""
    starts: npt.NDArray[np.int64]
    """(n + 1,): example i is [starts[i], starts[i + 1])."""
    labels: list[int | float | None]

    @property
    def lengths(self) -> list[int]:
        """Tokens per example."""
        return [int(length) for length in np.diff(self.starts)]


class ExampleEncoder:
    """Examples to token ids, and token ids to padded batches on the model's device.

    cache: a folder that keeps what was tokenized, by the digest of texts, tokenizer and length; None keeps nothing.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
        *,
        cache: Path | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.device = model.device
        self.takes_segments = getattr(model.config, "type_vocab_size", 2) > 1
        self._cache = cache
        self._how = f"{tokenizer_digest(tokenizer)} {tokenizer.model_input_names}" if cache is not None else ""

    def __call__(self, examples: Sequence[Example]) -> EncodedExamples:
        labels = [example.label for example in examples]
        if self._cache is None:
            return EncodedExamples(*self._tokenize(examples), labels)
        path = self._cache / f"{self._digest(examples)}.safetensors"
        if not path.is_file():
            columns, starts = self._tokenize(examples)
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_name(f".{path.stem}.{os.getpid()}")
            save_file({"starts": starts, **columns}, partial)
            partial.replace(path)  # whole or not at all: fine-tunings run side by side
            return EncodedExamples(columns, starts, labels)
        found = load_file(path)
        starts = found.pop("starts")
        return EncodedExamples(found, starts, labels)

    def _tokenize(self, examples: Sequence[Example]) -> tuple[dict[str, npt.NDArray[np.int32]], npt.NDArray[np.int64]]:
        parts: dict[str, list[npt.NDArray[np.int32]]] = {}
        lengths = [0]
        for start in range(0, len(examples), TOKENIZED_AT_ONCE):
            some = examples[start : start + TOKENIZED_AT_ONCE]
            pairs = [str(e.text_b) for e in some] if some[0].text_b is not None else None
            tokens = self.tokenizer(
                [e.text_a for e in some], pairs, truncation=True, max_length=self.max_length, padding=False
            )
            lengths += map(len, tokens["input_ids"])
            for name in self._inputs(tokens):
                ids = itertools.chain.from_iterable(tokens[name])
                parts.setdefault(name, []).append(np.fromiter(ids, np.int32))
        columns = {name: np.concatenate(arrays) for name, arrays in parts.items()}
        return columns, np.cumsum(lengths, dtype=np.int64)

    def _inputs(self, tokens: Mapping[str, Any]) -> list[str]:
        """What the model takes of the tokenizer's output; the mask follows from the lengths."""
        names = [name for name in self.tokenizer.model_input_names if name in tokens and name != "attention_mask"]
        return [name for name in names if name != "token_type_ids" or self.takes_segments]

    def _digest(self, examples: Sequence[Example]) -> str:
        digest = hashlib.sha256(f"{self._how} {self.max_length} {self.takes_segments}\n".encode())
        for example in examples:
            digest.update(repr((example.text_a, example.text_b)).encode())
        return digest.hexdigest()[:32]

    def batch(self, encoded: EncodedExamples, indices: Sequence[int]) -> dict[str, Tensor]:
        """Model inputs, each (B, L), padded to the longest of these sequences."""
        spans = [slice(encoded.starts[index], encoded.starts[index + 1]) for index in indices]
        lengths = np.array([span.stop - span.start for span in spans])
        width = int(lengths.max())
        batch: dict[str, Tensor] = {}
        for name, column in encoded.columns.items():
            rows = np.full((len(spans), width), self.tokenizer.pad_token_id if name == "input_ids" else 0, np.int64)
            for row, span, length in zip(rows, spans, lengths, strict=True):
                row[:length] = column[span]
            batch[name] = onto(torch.from_numpy(rows), self.device)
        mask = np.arange(width) < lengths[:, None]
        batch["attention_mask"] = onto(torch.from_numpy(mask.astype(np.int64)), self.device)
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
