"""Batches: sequences of a text and all that is random about them, as pure functions of where they are used.

Shapes: B sequences, L tokens per sequence, N selected tokens.
"""

from collections.abc import Callable

from torch import Tensor

from fast_electra_core.config import TrainingConfig
from fast_electra_core.corruption import place
from fast_electra_core.data import TokenDataset, is_ordinary
from fast_electra_core.documents import number_documents
from fast_electra_core.errors import DataError
from fast_electra_core.masking import PLAIN, Masking, choose_positions, count_selected
from fast_electra_core.methods import Batch
from fast_electra_core.randomness import Stream, uniforms


def batch_at(
    step: int,
    dataset: TokenDataset,
    config: TrainingConfig,
    *,
    samples_at: Callable[[int], Tensor] | None = None,
    rows: slice = slice(None),
) -> Batch:
    """The batch of step `step`, on the CPU, or neighbouring rows of it; with samples_at, which gives the ids (N,)
    of the whole batch, with those in the selected places.

    Raises:
        DataError: samples_at gives another number of ids than there are selected positions.
    """
    index = dataset.index_at(step, batch_size=config.batch_size, seed=config.seed)
    batch = make_batch(
        dataset,
        index.sequence[rows],
        index.epoch[rows],
        mask_fraction=config.mask_fraction,
        seed=config.seed,
        masking=Masking(config.masking, config.keep_fraction),
    )
    if samples_at is None:
        return batch
    # Of the rows of others nothing is drawn to know where the samples of ours begin.
    counts = count_selected(is_ordinary(dataset.batch(index.sequence), dataset.special_ids), config.mask_fraction)
    samples, num_selected = samples_at(step), int(counts.sum())
    if len(samples) != num_selected:
        raise DataError(
            f"{len(samples)} replacements are stored for step {step}, but {num_selected} positions are selected: they "
            "were drawn for another text or another config"
        )
    first = int(counts[: rows.start or 0].sum())
    ours = samples[first : first + int(counts[rows].sum())]
    return batch._replace(corrupted_ids=place(batch.input_ids, batch.selected(), ours).corrupted_ids)


def make_batch(
    dataset: TokenDataset,
    sequence: Tensor,
    epoch: Tensor,
    *,
    mask_fraction: float,
    seed: int,
    masking: Masking = PLAIN,
) -> Batch:
    """The sequences (B,) with their selected positions and sampling numbers; a pure function of the arguments.

    Raises:
        ValueError: masking is by words, which the dataset does not know.
    """

    def draw(stream: Stream, length: int) -> Tensor:
        return uniforms(sequence, length=length, seed=seed, epoch=epoch, stream=stream)

    input_ids, length, vocabulary = dataset.batch(sequence), dataset.sequence_length, dataset.continues_word
    is_selected = choose_positions(
        is_ordinary(input_ids, dataset.special_ids),
        None if vocabulary is None or masking.scheme == "tokens" else vocabulary[input_ids],
        scheme=masking.scheme,
        mask_fraction=mask_fraction,
        draw=draw,
    )
    is_masked = None
    if masking.keep_fraction > 0:
        is_masked = is_selected & (draw(Stream.KEEP, length) >= masking.keep_fraction)
    documents = None
    if dataset.attention == "document":
        documents = number_documents(input_ids, separator_id=dataset.special_ids.sep)
    return Batch(input_ids, is_selected, draw(Stream.SAMPLE, length), is_masked=is_masked, documents=documents)
