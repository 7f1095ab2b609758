"""What a batch is made of: each sequence by itself, in its own epoch, under the run's seed and settings."""

from pathlib import Path

import numpy as np
import pytest
import torch
from toys import SPECIAL_IDS, dataset_of

from fast_electra_core.batches import batch_at, make_batch
from fast_electra_core.config import PretrainConfig
from fast_electra_core.data import TokenDataset
from fast_electra_core.masking import Masking
from fast_electra_core.randomness import Stream, uniforms

CONFIG = PretrainConfig(
    batch_size=4, sequence_length=10, mask_fraction=0.4, keep_fraction=0.5, masking="spans", precision="fp32", seed=5
)


@pytest.fixture
def dataset(tmp_path: Path) -> TokenDataset:
    """Eleven sequences: the third batch of four is three of the first epoch and one of the second."""
    rng = np.random.default_rng(0)
    documents = [rng.integers(5, 30, 21) for _ in range(4)]
    dataset_of(tmp_path / "shard", documents, vocab_size=30, sequence_length=10)
    return TokenDataset(
        [tmp_path / "shard"], "train", sequence_length=10, special_ids=SPECIAL_IDS,
        continues_word=torch.arange(30) % 3 == 0,
    )  # fmt: skip


def test_a_sequence_is_masked_as_it_would_be_alone_in_its_own_epoch(dataset: TokenDataset) -> None:
    batch = batch_at(2, dataset, CONFIG)
    index = dataset.index_at(2, batch_size=4, seed=5)
    assert index.epoch.tolist() == [0, 0, 0, 1]
    for row, epoch in enumerate((0, 0, 0, 1)):
        alone = make_batch(
            dataset, index.sequence[row : row + 1], torch.tensor([epoch]), mask_fraction=0.4, seed=5,
            masking=Masking("spans", 0.5),
        )  # fmt: skip
        assert batch.is_masked is not None and alone.is_masked is not None
        assert torch.equal(batch.input_ids[row], alone.input_ids[0])
        assert torch.equal(batch.is_selected[row], alone.is_selected[0])
        assert torch.equal(batch.is_masked[row], alone.is_masked[0])
        assert torch.equal(batch.sample_uniforms[row], alone.sample_uniforms[0])


def test_numbers_are_the_sequences_own_in_that_epoch_and_run_each_kind_from_its_stream(dataset: TokenDataset) -> None:
    sequence, epoch = torch.tensor([7, 2]), torch.tensor([3, 4])
    batch = make_batch(dataset, sequence, epoch, mask_fraction=0.4, seed=5, masking=Masking("tokens", 0.5))
    sample, keep = (
        uniforms(sequence, length=10, seed=5, epoch=epoch, stream=stream) for stream in (Stream.SAMPLE, Stream.KEEP)
    )
    assert torch.equal(batch.sample_uniforms, sample)
    assert batch.is_masked is not None
    assert torch.equal(batch.is_masked, batch.is_selected & (keep >= 0.5))
    chosen = [
        make_batch(dataset, sequence, epochs, mask_fraction=0.4, seed=seed).is_selected
        for epochs, seed in ((epoch, 5), (epoch, 6), (epoch + 1, 5))
    ]
    assert torch.equal(chosen[0], batch.is_selected)
    assert not torch.equal(chosen[1], chosen[0]) and not torch.equal(chosen[2], chosen[0])
