"""Old text is replayed in an exact share, in an order that depends on the step alone: resume is a seek."""

import copy
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import test_trainer
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toys import dataset_of

from fast_electra_core.batches import batch_at
from fast_electra_core.checkpoint import load_latest
from fast_electra_core.data import TokenDataset
from fast_electra_core.errors import DataError
from fast_electra_core.evaluation import unigram_counts
from fast_electra_core.replay import MixedDataset, mixed_index_at

VOCAB_SIZE, NUM_NEW = 30, 7
FRACTIONS = st.integers(1, 9_999).map(lambda parts: parts / 10_000)


def order(count: int, fraction: float, *, num_new: int = 5, num_old: int = 3, seed: int = 4) -> list[tuple[int, int]]:
    """(epoch, sequence) at the first positions."""
    index = mixed_index_at(torch.arange(count), num_new=num_new, num_old=num_old, replay_fraction=fraction, seed=seed)
    return list(zip(index.epoch.tolist(), index.sequence.tolist(), strict=True))


@settings(max_examples=30, deadline=None, derandomize=True)
@given(fraction=FRACTIONS, first=st.integers(0, 10**12), count=st.integers(1, 300))
def test_any_window_holds_the_replayed_share_but_for_one_sequence(fraction: float, first: int, count: int) -> None:
    index = mixed_index_at(torch.arange(first, first + count), num_new=5, num_old=3, replay_fraction=fraction, seed=0)
    exact = Fraction(round(fraction * 10_000), 10_000) * count
    assert abs(int((index.sequence >= 5).sum()) - exact) < 1


def test_a_share_that_a_float_only_comes_near_to_is_met_exactly() -> None:
    """0.57 * 10,000 is 5,699.999999999999 in floats."""
    assert sum(sequence >= 5 for _, sequence in order(10_000, 0.57)) == 5_700


@settings(max_examples=20, deadline=None, derandomize=True)
@given(fraction=FRACTIONS, num_new=st.integers(1, 9), num_old=st.integers(1, 9), seed=st.integers(0, 2**60 - 1))
def test_new_and_old_text_are_each_gone_through_once_per_epoch(
    fraction: float, num_new: int, num_old: int, seed: int
) -> None:
    pairs = order(400, fraction, num_new=num_new, num_old=num_old, seed=seed)
    for first, size in ((0, num_new), (num_new, num_old)):
        ours = [pair for pair in pairs if first <= pair[1] < first + size]
        for start in range(0, len(ours) - size + 1, size):
            epoch = ours[start : start + size]
            assert {number for number, _ in epoch} == {start // size}
            assert sorted(sequence for _, sequence in epoch) == list(range(first, first + size))


def test_the_order_is_shuffled_anew_in_each_epoch_and_with_each_seed() -> None:
    first, second = order(20, 0.5, num_new=10), order(40, 0.5, num_new=10)[20:]
    assert [sequence for _, sequence in first if sequence < 10] != [sequence for _, sequence in second if sequence < 10]
    assert first != order(20, 0.5, num_new=10, seed=5)


def test_a_new_text_without_a_sequence_has_no_order() -> None:
    with pytest.raises(DataError, match="the new text is smaller than one sequence"):
        order(4, 0.5, num_new=0)


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> tuple[TokenDataset, TokenDataset]:
    """New text of ids below 15, old text of those above."""
    rng, folder = np.random.default_rng(0), tmp_path_factory.mktemp("parts")
    new, old = ([rng.integers(low, high, 19) for _ in range(3)] for low, high in ((5, 15), (15, VOCAB_SIZE)))
    sizes = {"vocab_size": VOCAB_SIZE, "sequence_length": 10}
    return dataset_of(folder / "new", new, **sizes), dataset_of(folder / "old", old, **sizes)


def mixed(parts: tuple[TokenDataset, TokenDataset], fraction: float = 0.5) -> MixedDataset:
    return MixedDataset(*parts, replay_fraction=fraction)


def test_no_sequence_holds_tokens_of_both_and_all_of_both_are_counted(
    parts: tuple[TokenDataset, TokenDataset],
) -> None:
    dataset = mixed(parts)
    assert dataset.num_tokens == 2 * 3 * 20  # documents of 19 tokens, a separator behind each
    assert len(parts[0]) == len(parts[1]) == NUM_NEW and len(dataset) == 2 * NUM_NEW
    ordinary = [{int(token) for token in dataset.sequence(index)} - {2, 3} for index in range(2 * NUM_NEW)]
    assert all(max(tokens) < 15 for tokens in ordinary[:NUM_NEW])
    assert all(min(tokens) >= 15 for tokens in ordinary[NUM_NEW:])
    by_hand = sum(unigram_counts(part, VOCAB_SIZE) for part in parts)
    assert unigram_counts(dataset, VOCAB_SIZE).tolist() == by_hand.tolist()


def test_how_far_tokens_see_and_which_go_on_with_a_word_is_as_in_the_new_text(
    parts: tuple[TokenDataset, TokenDataset],
) -> None:
    new = copy.copy(parts[0])
    new.attention, new.continues_word = "document", torch.arange(VOCAB_SIZE) > 9
    dataset = mixed((new, parts[1]))
    assert (dataset.attention, dataset.continues_word) == ("document", new.continues_word)


def test_a_batch_is_the_same_whatever_came_before_it(parts: tuple[TokenDataset, TokenDataset]) -> None:
    config = test_trainer.CONFIG
    whole = [batch_at(step, mixed(parts), config).input_ids for step in range(9)]
    assert torch.equal(batch_at(8, mixed(parts), config).input_ids, whole[8])
    is_old = (torch.cat(whole) >= 15).any(dim=1)
    assert int(is_old.sum()) == 18  # half of 9 batches of 4


def test_a_replaying_run_killed_and_resumed_is_bit_for_bit_the_run_that_was_not(
    parts: tuple[TokenDataset, TokenDataset], tmp_path: Path
) -> None:
    test_trainer.run("fast_electra", mixed(parts), tmp_path / "whole")
    for step in (3, 5):
        test_trainer.run("fast_electra", mixed(parts), tmp_path / "killed", on_step=test_trainer.kill_at(step))
    test_trainer.run("fast_electra", mixed(parts), tmp_path / "killed")
    whole = test_trainer.final_tensors(tmp_path / "whole")
    assert test_trainer.final_tensors(tmp_path / "killed") == whole
    test_trainer.run("fast_electra", mixed(parts, 0.25), tmp_path / "other")
    assert test_trainer.final_tensors(tmp_path / "other") != whole
    assert load_latest(tmp_path / "whole") is not None


def test_old_text_without_a_sequence_cannot_be_replayed(
    parts: tuple[TokenDataset, TokenDataset], tmp_path: Path
) -> None:
    short = dataset_of(tmp_path / "short", [np.array([5, 6])], vocab_size=VOCAB_SIZE, sequence_length=10)
    with pytest.raises(DataError, match=r"the old text \(3 tokens\) is shorter than one sequence of 10"):
        MixedDataset(parts[0], short, replay_fraction=0.5)
