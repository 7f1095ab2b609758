"""What a second process gives: tokens per second of one process on one core and of two on one core each, on gloo.

    python benchmarks/data_parallel.py [--num_steps 30] [--repeats 5]

Fast-ELECTRA at the laptop preset's shape and batch, random text, on CPUs. The two are measured in turn, so that what
else runs on the machine hits both; a repeat's ratio is of neighbours.
"""

import argparse
import json
import multiprocessing
import os
import statistics
import tempfile
from pathlib import Path

import numpy as np
import torch
from arm_steps import SPECIAL
from torch import distributed as dist

from fast_electra_core.config import PretrainConfig
from fast_electra_core.curriculum import Curriculum
from fast_electra_core.data import TokenDataset
from fast_electra_core.fast_electra import FastElectra
from fast_electra_core.models import build_discriminator, build_masked_lm, encoder_config
from fast_electra_core.parallel import joined
from fast_electra_core.presets import AUXILIARY_PRESETS, PRETRAIN_PRESETS
from fast_electra_core.proposals import FrozenMaskedLm
from fast_electra_core.token_shards import write_shard
from fast_electra_core.trainer import Hooks, Row, train

VOCABULARY = 8192


def main() -> None:
    """Measure and print the table."""
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--num_steps", type=int, default=30, help="of each training; the first fifth is not timed")
    arguments.add_argument("--repeats", type=int, default=5)
    given = arguments.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "shard").mkdir()
        text = np.random.default_rng(0).integers(5, VOCABULARY, 400_000)
        write_shard(
            folder / "shard",
            [text],
            separator_id=SPECIAL.sep,
            unknown_id=1,
            vocab_size=VOCABULARY,
            heldout_fraction=0.0,
        )
        speeds = [[_speed(folder, size, given.num_steps) for size in (1, 2)] for _ in range(given.repeats)]
    for size, of_size in zip((1, 2), zip(*speeds, strict=True), strict=True):
        print(f"{size} process{'es' * (size - 1)}: {statistics.median(of_size):,.0f} tokens/s")
    ratios = sorted(two / one for one, two in speeds)
    print(f"ratio {statistics.median(ratios):.2f}, from {ratios[0]:.2f} to {ratios[-1]:.2f}; {os.cpu_count()} cores")


def _speed(folder: Path, size: int, num_steps: int) -> float:
    """Tokens per second of a training by so many processes."""
    with tempfile.TemporaryDirectory(dir=folder) as meeting:
        context = multiprocessing.get_context("spawn")
        work = [
            context.Process(target=_train, args=(folder, Path(meeting), rank, size, num_steps)) for rank in range(size)
        ]
        for process in work:
            process.start()
        for process in work:
            process.join()
        return float(json.loads((Path(meeting) / "speed.json").read_text()))


def _train(folder: Path, meeting: Path, rank: int, size: int, num_steps: int) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), "TORCH_CPP_LOG_LEVEL": "ERROR"}
    every = max(1, num_steps // 5)
    changes = {
        "num_steps": num_steps,
        "log_every_steps": every,
        "checkpoint_every_steps": num_steps,
        "precision": "fp32",
    }
    config = PretrainConfig(**{"preset": "laptop", **PRETRAIN_PRESETS["laptop"], "precision": "fp32", **changes})
    dataset = TokenDataset([folder / "shard"], "train", sequence_length=config.sequence_length, special_ids=SPECIAL)
    shallow = PretrainConfig(**{**config.to_dict(), "num_layers": int(AUXILIARY_PRESETS["laptop"]["num_layers"])})
    shape, auxiliary = (encoder_config(each, vocab_size=VOCABULARY, special_ids=SPECIAL) for each in (config, shallow))
    method = FastElectra(
        build_discriminator(shape, seed=0),
        FrozenMaskedLm([build_masked_lm(auxiliary, seed=1)], mask_token_id=SPECIAL.mask),
        curriculum=Curriculum("exponential", 2.0, 0.1, 1.0),
        rtd_weight=config.rtd_weight,
    )
    rows: list[Row] = []
    store = dist.FileStore(str(meeting / "store"), size)
    with joined(torch.device("cpu"), timeout_seconds=120, store=store) as group:
        train(
            method, dataset, config=config, checkpoints=meeting / "checkpoints", hooks=Hooks(on_metrics=rows.append),
            group=group,
        )  # fmt: skip
    if rank == 0:
        speeds = [row["tokens_per_second"] for row in rows if "tokens_per_second" in row][1:]
        (meeting / "speed.json").write_text(json.dumps(statistics.median(speeds)))


if __name__ == "__main__":
    main()
