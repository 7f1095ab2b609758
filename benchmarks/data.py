"""The data path: tokenizing beside the library's own batches, and reading without ever keeping training waiting.

    python benchmarks/data.py [--text folder_or_file] [--megabytes 8]

One thread, process time, medians of turns taken. Tokenizing is the flow's own task, from the file to the finished
shard. Memory is measured in a process of its own, at one and at four times the text. Reading is from shards of a
billion tokens that are holes in sparse files: what is read are zeros, the seeks are real.
"""

import argparse
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ |= {"TOKENIZERS_PARALLELISM": "false", "RAYON_NUM_THREADS": "1"}

import numpy as np  # after the environment, which the libraries read when they are loaded
import torch

from fast_electra_core.batches import batch_at
from fast_electra_core.config import AuxiliaryConfig, PretrainConfig
from fast_electra_core.data import SpecialIds, TokenDataset
from fast_electra_core.pydocs import source_files, write_pydocs
from fast_electra_core.text import TextPiece, read_documents
from fast_electra_core.token_shards import MANIFEST
from fast_electra_core.tokenizer import load_tokenizer
from steps.corpus import resolve_corpus
from steps.meter import MemoryMeter
from steps.store import Store
from steps.tokenization import tokenize_shard
from steps.tokenizer import prepare_tokenizer

BILLION = 1_000_000_000
SPECIAL = SpecialIds(cls=2, sep=3, mask=4, pad=0, all_special=(0, 1, 2, 3, 4))


def main() -> None:
    """Measure and print."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--text", help=".txt file, or a folder of them; default: docstrings of this Python")
    arguments.add_argument("--megabytes", type=float, default=8.0, help="of text")
    arguments.add_argument("--rounds", type=int, default=3)
    given = arguments.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        text = _text(given.text, Path(folder), num_bytes=round(1e6 * given.megabytes))
        _print_tokenizing(text, Path(folder), rounds=given.rounds)
        _print_reading(Path(folder))


def _text(source: str | None, folder: Path, *, num_bytes: int) -> Path:
    """The first bytes of the text, in one file."""
    if source is None:
        write_pydocs(folder / "pydocs.txt", source_files())
        source = str(folder / "pydocs.txt")
    files = sorted(Path(source).rglob("*.txt")) if Path(source).is_dir() else [Path(source)]
    text = folder / "text.txt"
    with text.open("wb") as out:
        for file in files:
            out.write(file.read_bytes()[: max(0, num_bytes - out.tell())])
            out.write(b"\n\n")
    return text


def _print_tokenizing(text: Path, folder: Path, *, rounds: int) -> None:
    config = AuxiliaryConfig(corpus=str(text), on_bad_text="skip").to_dict()
    key = _tokenizer_key(text, config, folder)
    times: dict[str, list[float]] = {"library": [], "task": []}
    for number in range(rounds):
        times["library"].append(_seconds_of_library(text, Store(str(folder / "store")), key))
        times["task"].append(_seconds_of_task(text, config, folder / f"round-{number}", folder / "store", key))
    library, task = (statistics.median(values) for values in times.values())
    megabytes = text.stat().st_size / 1e6
    print(f"tokenizing {megabytes:.1f} MB: the library's encode_batch_fast {megabytes / library:.2f} MB/s, ", end="")
    print(f"our task, reading and writing included, {megabytes / task:.2f} MB/s: {library / task:.0%}")
    peaks = []
    for times_longer in (1, 4):
        longer = folder / f"text-{times_longer}.txt"
        longer.write_bytes(text.read_bytes() * times_longer)
        context = multiprocessing.get_context("spawn")
        with context.Pool(1) as pool:
            given = (longer, config, folder / f"memory-{times_longer}", folder / "store", key)
            peaks.append(pool.apply(_peak_of_task, given) / 1e6)
    print(f"memory beyond the imports: {peaks[0]:.0f} MB, of four times the text {peaks[1]:.0f} MB")
    walls = {
        count: _wall_of_tasks(text, config, folder / f"procs-{count}", folder / "store", key, count) for count in (1, 2)
    }
    print(f"two processes, each with a text of its own: {2 * walls[1] / walls[2]:.2f} times one's throughput ", end="")
    print(f"({os.cpu_count()} cores)")


def _tokenizer_key(text: Path, config: dict[str, Any], folder: Path) -> str:
    store = Store(str(folder / "store"))
    return prepare_tokenizer("train", config, _shards(text, config, store), store)


def _shards(text: Path, config: dict[str, Any], store: Store) -> list[dict[str, Any]]:
    corpus = resolve_corpus(str(text), store=store, text_field=config["text_field"], shard_megabytes=1e6)
    return list(corpus.shards)


def _seconds_of_library(text: Path, store: Store, key: str) -> float:
    """Reading is not counted; batches as large as ours."""
    backend = load_tokenizer(store.get_folder(key)).backend_tokenizer
    documents = list(read_documents(TextPiece(str(text), 0, None, "txt"), text_field="text", on_bad_text="skip"))
    start = time.process_time()
    for first in range(0, len(documents), 256):
        backend.encode_batch_fast(documents[first : first + 256], add_special_tokens=False)
    return time.process_time() - start


def _seconds_of_task(text: Path, config: dict[str, Any], folder: Path, tokenizers: Path, key: str) -> float:
    store = _store_with(folder, tokenizers, key)
    (shard,) = _shards(text, config, store)
    start = time.process_time()
    tokenize_shard(shard, config, tokenizer_key=key, store=store)
    return time.process_time() - start


def _store_with(folder: Path, tokenizers: Path, key: str) -> Store:
    """An empty store but for the tokenizer."""
    store = Store(str(folder))
    store.put_folder(Store(str(tokenizers)).get_folder(key), key)
    return store


def _peak_of_task(text: Path, config: dict[str, Any], folder: Path, tokenizers: Path, key: str) -> int:
    load_tokenizer(Store(str(tokenizers)).get_folder(key))
    meter = MemoryMeter("cpu")
    _seconds_of_task(text, config, folder, tokenizers, key)
    return meter.peak_bytes()


def _wall_of_tasks(text: Path, config: dict[str, Any], folder: Path, tokenizers: Path, key: str, count: int) -> float:
    """Seconds that so many processes at once need for a text each, once they are up."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(count) as pool:
        pool.map(_warm_up, [(tokenizers, key)] * count, chunksize=1)
        start = time.perf_counter()
        given = [(text, config, folder / str(number), tokenizers, key) for number in range(count)]
        pool.starmap(_seconds_of_task, given, chunksize=1)
        return time.perf_counter() - start


def _warm_up(given: tuple[Path, str]) -> None:
    load_tokenizer(Store(str(given[0])).get_folder(given[1]))


def _print_reading(folder: Path) -> None:
    shards = [_sparse_shard(folder / f"shard-{number}", BILLION // 10) for number in range(10)]
    start = time.perf_counter()
    dataset = TokenDataset(shards, "train", sequence_length=128, special_ids=SPECIAL)
    opened = time.perf_counter() - start
    start = time.perf_counter()
    batch_at(0, dataset, PretrainConfig(sequence_length=128, batch_size=128))
    first = time.perf_counter() - start
    print(f"\n{dataset.num_tokens:.1e} tokens: opened in {opened:.3f} s, the first batch {first:.3f} s later")
    for batch_size, length in ((128, 128), (256, 512)):
        dataset = TokenDataset(shards, "train", sequence_length=length, special_ids=SPECIAL)
        config = PretrainConfig(sequence_length=length, batch_size=batch_size)
        steps = np.random.default_rng(0).integers(0, 10_000_000, 30).tolist()
        times = [_seconds_of_batch(step, dataset, config) for step in steps]
        low, median, high = statistics.quantiles(times, n=4)
        noise = 500 * (high - low)
        print(f"batch of {batch_size} x {length} at a random step: {1000 * median:.1f} ms, noise {noise:.1f}")


def _seconds_of_batch(step: int, dataset: TokenDataset, config: PretrainConfig) -> float:
    start = time.process_time()
    batch_at(step, dataset, config)
    return time.process_time() - start


def _sparse_shard(folder: Path, num_tokens: int) -> Path:
    folder.mkdir()
    for part, count in (("train", num_tokens), ("heldout", 0)):
        with (folder / f"{part}.bin").open("wb") as file:
            file.truncate(2 * count)
    manifest = {"num_documents": 1, "num_train_tokens": num_tokens, "num_heldout_tokens": 0, "num_unknown": 0}
    manifest |= {"vocab_size": 30_522, "dtype": "<u2", "sha256": {}}
    (folder / MANIFEST).write_text(json.dumps(manifest))
    return folder


if __name__ == "__main__":
    main()
