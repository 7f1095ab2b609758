"""Time of fine-tuning one seed of a task, by size of the encoder, beside what its matrix products alone would take.

    python benchmarks/finetune.py --glue glue_data/ --tokenizer vocab.txt [--task rte] [--presets laptop,small]

One thread, process time. In every round each size trains on the same few batches of the task, of like length as in a
real run, and multiplies matrices of its own width; printed are medians over the rounds, and what a seed takes by them:
the recipe's epochs over the training set, then the dev set. Weights are random: what they are does not matter for time.
"""

import argparse
import math
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from transformers import PreTrainedTokenizerBase

from fast_electra_core.classifier import build_classifier
from fast_electra_core.config import PretrainConfig
from fast_electra_core.data import SpecialIds
from fast_electra_core.finetuning import training_step
from fast_electra_core.glue import TaskData
from fast_electra_core.glue_files import read_task
from fast_electra_core.model_cost import forward_flops_per_token
from fast_electra_core.models import build_discriminator, encoder_config
from fast_electra_core.presets import PRETRAIN_PRESETS
from fast_electra_core.recipes import FinetuneSettings, finetune_settings
from fast_electra_core.task_batches import ExampleEncoder, length_batches
from fast_electra_core.tokenizer import load_tokenizer

NUM_BATCHES = 4


class _Size(NamedTuple):
    name: str
    forward_flops: float
    """Per token."""
    train: Callable[[], object]
    """One step on each of the batches."""
    multiply: Callable[[], object]
    multiply_flops: float


def main() -> None:
    """Measure and print the table."""
    given = _arguments()
    torch.set_num_threads(1)
    data = read_task(given.glue, given.task)
    tokenizer = load_tokenizer(given.tokenizer)
    settings = finetune_settings("electra", data.spec, hidden_size=128)
    lengths = [
        len(ids)
        for ids in tokenizer(
            [each.text_a for each in data.train], [each.text_b or "" for each in data.train],
            truncation=True, max_length=settings.max_length,
        )["input_ids"]
    ]  # fmt: skip
    batches = length_batches(lengths, batch_size=settings.batch_size, rng=random.Random(0))
    chosen = batches[:: math.ceil(len(batches) / NUM_BATCHES)]
    tokens = [len(batch) * max(lengths[index] for index in batch) for batch in batches]
    measured = sum(len(batch) * max(lengths[index] for index in batch) for batch in chosen)
    sizes = [_size(name, tokenizer, data, chosen, settings) for name in given.presets.split(",")]
    steps: dict[str, list[float]] = {size.name: [] for size in sizes}
    products: dict[str, list[float]] = {size.name: [] for size in sizes}
    for round_number in range(given.rounds + 1):
        for size in sizes:
            for found, work in ((steps, size.train), (products, size.multiply)):
                started = time.process_time()
                work()
                if round_number:
                    found[size.name].append(time.process_time() - started)
    evaluated = sum(lengths) / len(lengths) * sum(len(examples) for examples in data.dev.values()) / 3  # forward only
    passed = settings.epochs * sum(tokens) + evaluated
    print(f"{given.task}: {len(lengths):,} examples, {sum(tokens):,} tokens with padding, {settings.epochs:g} epochs")
    print(f"{'':<10}{'MFLOP/token':>12}{'TFLOP':>8}{'us/token':>10}{'noise':>8}{'GFLOP/s':>9}{'GEMM':>7}", end="")
    print(f"{'s of one core':>15}{'at least':>10}")
    for size in sizes:
        low, median, high = statistics.quantiles(steps[size.name], n=4)
        rate = size.multiply_flops / statistics.median(products[size.name])
        flops = 3 * size.forward_flops * passed
        print(f"{size.name:<10}{size.forward_flops / 1e6:>12.2f}{flops / 1e12:>8.1f}", end="")
        print(f"{1e6 * median / measured:>10.1f}{5e5 * (high - low) / measured:>8.1f}", end="")
        print(f"{3 * size.forward_flops * measured / median / 1e9:>9.0f}{rate / 1e9:>7.0f}", end="")
        print(f"{median / measured * passed:>15.0f}{flops / rate:>10.0f}")


def _arguments() -> argparse.Namespace:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--glue", type=Path, required=True, help="folder with a sub-folder per task")
    arguments.add_argument("--tokenizer", required=True, help="vocab.txt or a folder with a tokenizer")
    arguments.add_argument("--task", default="rte")
    arguments.add_argument("--presets", default="laptop,small", help="sizes, by the presets of PretrainFlow")
    arguments.add_argument("--rounds", type=int, default=7, help="measured rounds, after one to warm up")
    return arguments.parse_args()


def _size(
    name: str, tokenizer: PreTrainedTokenizerBase, data: TaskData, batches: list[list[int]], settings: FinetuneSettings
) -> _Size:
    values = {**PRETRAIN_PRESETS[name], "sequence_length": settings.max_length}
    config = PretrainConfig(**values)
    special = SpecialIds(
        cls=tokenizer.cls_token_id, sep=tokenizer.sep_token_id, mask=tokenizer.mask_token_id,
        pad=tokenizer.pad_token_id, all_special=tuple(tokenizer.all_special_ids),
    )  # fmt: skip
    shape = encoder_config(config, vocab_size=len(tokenizer), special_ids=special)
    with tempfile.TemporaryDirectory() as folder:
        build_discriminator(shape, seed=0).save_pretrained(folder)
        model = build_classifier(Path(folder), num_labels=data.spec.num_labels, seed=0)
    encode = ExampleEncoder(model, tokenizer, settings.max_length)
    encoded = encode(data.train)
    inputs = [encode.batch(encoded, batch) for batch in batches]
    labels = [[encoded.labels[index] for index in batch] for batch in batches]
    take = training_step(model, settings)
    length = sum(each["input_ids"].shape[1] for each in inputs) // len(inputs)
    rows = settings.batch_size * length
    left, right = torch.randn(rows, config.hidden_size), torch.randn(config.hidden_size, config.intermediate_size)
    return _Size(
        name,
        forward_flops_per_token(model, sequence_length=length, head_fraction=1 / length),
        lambda: [take(*batch, 1.0) for batch in zip(inputs, labels, strict=True)],
        lambda: [left @ right for _ in range(20)],
        20 * 2.0 * rows * config.hidden_size * config.intermediate_size,
    )


if __name__ == "__main__":
    main()
