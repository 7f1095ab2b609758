"""How many samples differ when the same corruption is drawn in another geometry: micro-batch, threads, device.

    python benchmarks/corruption_mismatch.py --auxiliary FOLDER --shard FOLDER [--steps 300]

FOLDER: a saved masked language model with its tokenizer, and a token shard; a run leaves both in its store, below
`auxiliaries/` and `tokens/`. The uniform numbers are the same throughout, so a sample differs only where rounding moves
a border of the cumulative distribution past its number.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import torch

from fast_electra_core.config import PretrainConfig
from fast_electra_core.corruption_store import draw_samples
from fast_electra_core.data import TokenDataset
from fast_electra_core.methods import Temperature
from steps.auxiliary import load_masked_lm
from steps.tokenization import special_ids

TEMPERATURE = Temperature("exponential", 2.0, 0.1, 1.0)


def main() -> None:
    """Draw in each geometry and print the share of samples that differ from the first."""
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--auxiliary", type=Path, required=True)
    arguments.add_argument("--shard", type=Path, required=True)
    arguments.add_argument("--steps", type=int, default=300)
    arguments.add_argument("--batch_size", type=int, default=32)
    arguments.add_argument("--sequence_length", type=int, default=64)
    given = arguments.parse_args()
    config = PretrainConfig(
        num_steps=given.steps, batch_size=given.batch_size, sequence_length=given.sequence_length, precision="fp32"
    )
    dataset = TokenDataset(
        [given.shard], "train", sequence_length=given.sequence_length, special_ids=special_ids(given.auxiliary)
    )
    model = load_masked_lm(given.auxiliary)
    whole, quarter = given.batch_size, given.batch_size // 4
    geometries = [(whole, 1, "fp32", "cpu"), (whole, 1, "fp32", "cpu"), (quarter, 1, "fp32", "cpu")]
    geometries += [(1, 1, "fp32", "cpu"), (whole, 2, "fp32", "cpu"), (quarter, 2, "fp32", "cpu")]
    if torch.cuda.is_available():
        geometries += [(whole, 1, "fp32", "cuda"), (quarter, 1, "fp32", "cuda"), (whole, 1, "bf16", "cuda")]
    reference = None
    print(f"{'micro-batch':>12}{'threads':>9}{'precision':>11}{'device':>8}{'samples':>10}{'differ':>8}{'share':>11}")
    for micro_batch_size, num_threads, precision, device in geometries:
        torch.set_num_threads(num_threads)
        drawn = draw_samples(
            model.to(device),
            dataset,
            replace(config, micro_batch_size=micro_batch_size, precision=precision),
            steps=range(given.steps),
            temperature=TEMPERATURE,
        )
        ids = torch.cat(list(drawn))
        reference = ids if reference is None else reference
        differ = int((ids != reference).sum())
        share = f"{differ / len(ids):.2e}"
        print(
            f"{micro_batch_size:>12}{num_threads:>9}{precision:>11}{device:>8}{len(ids):>10,}{differ:>8,}{share:>11}",
            flush=True,
        )


if __name__ == "__main__":
    main()
