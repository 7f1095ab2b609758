"""How many samples differ when the same corruption is drawn in another geometry: micro-batch, threads, device.

    python benchmarks/corruption_mismatch.py --auxiliary FOLDER --shard FOLDER [--steps 300] [--width 768]

FOLDER: a saved masked language model with its tokenizer, and a token shard; a run leaves both in its store, below
`auxiliaries/` and `tokens/`. The uniform numbers are the same throughout, so a sample differs only where rounding moves
a border of the cumulative distribution past its number. How probable that is can be computed as well as counted: it is
the sum of the borders' shifts, here averaged over the rows of the first steps.

Shapes: N selected tokens, V vocabulary.
"""

import argparse
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from transformers import ElectraConfig, PreTrainedModel

from fast_electra_core.batches import batch_at
from fast_electra_core.config import PretrainConfig
from fast_electra_core.corruption_store import draw_samples
from fast_electra_core.curriculum import Curriculum
from fast_electra_core.data import TokenDataset
from fast_electra_core.models import build_masked_lm, masked_logits
from fast_electra_core.precision import autocast
from fast_electra_core.proposals import FrozenMaskedLm
from fast_electra_core.trainer import progress_at
from steps.auxiliary import load_masked_lm
from steps.tokenizer import special_ids

CURRICULUM = Curriculum("exponential", 2.0, 0.1, 1.0)
STEPS_OF_BORDERS = 4
VOCAB_SIZE = 30_522
LOGIT_SPREAD = 3.0


def main() -> None:
    """Draw in each geometry and print the share of samples that differ from the first."""
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--auxiliary", type=Path, required=True)
    arguments.add_argument("--shard", type=Path, required=True)
    arguments.add_argument("--steps", type=int, default=300)
    arguments.add_argument("--width", type=int, help="random weights instead: 4 layers of this width")
    arguments.add_argument("--batch_size", type=int, default=32)
    arguments.add_argument("--sequence_length", type=int, default=64)
    given = arguments.parse_args()
    config = PretrainConfig(
        num_steps=given.steps, batch_size=given.batch_size, sequence_length=given.sequence_length, precision="fp32"
    )
    dataset = TokenDataset(
        [given.shard], "train", sequence_length=given.sequence_length, special_ids=special_ids(given.auxiliary)
    )
    model = random_auxiliary(given.width) if given.width else load_masked_lm(given.auxiliary)
    whole, quarter = given.batch_size, given.batch_size // 4
    geometries = [(whole, 1, "fp32", "cpu"), (whole, 1, "fp32", "cpu"), (quarter, 1, "fp32", "cpu")]
    geometries += [(1, 1, "fp32", "cpu"), (whole, 2, "fp32", "cpu"), (quarter, 2, "fp32", "cpu")]
    if torch.cuda.is_available():
        geometries += [(whole, 1, "fp32", "cuda"), (quarter, 1, "fp32", "cuda"), (whole, 1, "bf16", "cuda")]
    reference = None
    heads = ("samples", "differ", "share", "computed")
    print(f"{'micro-batch':>12}{'threads':>9}{'precision':>11}{'device':>8}" + "".join(f"{head:>10}" for head in heads))
    for micro_batch_size, num_threads, precision, device in geometries:
        torch.set_num_threads(num_threads)
        ours = replace(config, micro_batch_size=micro_batch_size, precision=precision)
        proposal = FrozenMaskedLm([model.to(device)], mask_token_id=dataset.special_ids.mask)
        drawn = draw_samples(proposal, dataset, ours, steps=range(given.steps), curriculum=CURRICULUM)
        ids, rows = torch.cat(list(drawn)), torch.cat(list(borders(model, dataset, ours)))
        reference = (ids, rows) if reference is None else reference
        differ = int((ids != reference[0]).sum())
        computed = float((rows - reference[1]).abs().sum(dim=1).mean())
        print(
            f"{micro_batch_size:>12}{num_threads:>9}{precision:>11}{device:>8}{len(ids):>10,}{differ:>10,}"
            f"{differ / len(ids):>10.1e}{computed:>10.1e}",
            flush=True,
        )


@torch.no_grad()
def random_auxiliary(width: int) -> PreTrainedModel:
    """4 layers, vocabulary 30,522; the head's last norm is scaled up, so that logits spread as a trained model's do."""
    shape = ElectraConfig(
        vocab_size=VOCAB_SIZE, embedding_size=width, hidden_size=width, num_hidden_layers=4,
        num_attention_heads=width // 64, intermediate_size=4 * width,
    )  # fmt: skip
    model = build_masked_lm(shape, seed=0)
    model.generator_predictions.LayerNorm.weight.mul_(LOGIT_SPREAD / (0.02 * width**0.5))
    model.eval()
    return model


@torch.no_grad()
def borders(model, dataset: TokenDataset, config: PretrainConfig) -> Iterator[torch.Tensor]:
    """Cumulative distributions (N, V), float64, of the selected tokens of the first steps."""
    device = model.device
    for step in range(min(STEPS_OF_BORDERS, config.num_steps)):
        for batch in batch_at(step, dataset, config).split(config.micro_batch_size):
            batch = batch.to(device)
            masked_ids = batch.masked_ids(dataset.special_ids.mask)
            with autocast(config.precision, device):
                logits = masked_logits(model, masked_ids, batch.selected(), batch.documents)
            temperature = CURRICULUM.at(progress_at(step, config)).temperature
            yield torch.softmax(logits.cpu().double() / temperature, dim=1).cumsum(dim=1)


if __name__ == "__main__":
    main()
