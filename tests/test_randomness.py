"""Counter-based numbers: Philox's published answers, and draws that depend on their place alone."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2_contingency, chisquare

from fast_electra_core.randomness import Stream, fresh, philox, shuffled_index, uniforms

MAX_SEED = 2**60 - 1


def draw(
    *sequences: int, length: int = 8, seed: int = 0, epoch: int = 0, stream: Stream = Stream.SELECT
) -> torch.Tensor:
    index = torch.tensor(sequences)
    return uniforms(index, length=length, seed=seed, epoch=torch.full_like(index, epoch), stream=stream)


def order(size: int, *, seed: int = 0, epoch: int = 0) -> list[int]:
    position = torch.arange(size)
    result: list[int] = shuffled_index(position, size=size, seed=seed, epoch=torch.full_like(position, epoch)).tolist()
    return result


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
    ids=["zeros", "ones", "digits of pi"],
)
def test_philox_gives_the_known_answers_of_random123(counter: str, key: str, expected: str) -> None:
    c0, c1, c2, c3 = (torch.tensor([int(word, 16)]) for word in counter.split())
    k0, k1 = (int(word, 16) for word in key.split())
    assert " ".join(f"{int(word):08x}" for word in philox((c0, c1, c2, c3), (k0, k1))) == expected


def test_uniforms_are_philox_words_of_place_over_2_to_the_32() -> None:
    # Sequence 2**32 + 5, epoch 7, block 1; the stream (SAMPLE = 2) sits above the seed's 60 bits.
    words = philox(
        (torch.tensor([1]), torch.tensor([5]), torch.tensor([1]), torch.tensor([7])), (0x00000003, (2 << 28) | 9)
    )
    expected = [int(word) / 2**32 for word in words]
    drawn = draw(2**32 + 5, length=8, seed=(9 << 32) | 3, epoch=7, stream=Stream.SAMPLE)
    assert drawn[0, 4:].tolist() == expected


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    sequences=st.lists(st.integers(0, 2**40), min_size=1, max_size=6),
    length=st.integers(1, 21),
    longer=st.integers(0, 9),
    seed=st.integers(0, MAX_SEED),
    epoch=st.integers(0, 2**31),
)
def test_numbers_of_a_sequence_depend_neither_on_its_batch_nor_on_the_length(
    sequences: list[int], length: int, longer: int, seed: int, epoch: int
) -> None:
    batch = draw(*sequences, length=length + longer, seed=seed, epoch=epoch)
    alone = draw(sequences[-1], length=length, seed=seed, epoch=epoch)
    assert torch.equal(batch[-1, :length], alone[0])
    assert batch.dtype == torch.float64
    assert bool(((batch >= 0) & (batch < 1)).all())


def test_each_sequence_of_a_batch_has_its_own_epoch() -> None:
    mixed = uniforms(torch.tensor([3, 3]), length=8, seed=1, epoch=torch.tensor([0, 4]), stream=Stream.SAMPLE)
    assert torch.equal(mixed[0], draw(3, seed=1, epoch=0, stream=Stream.SAMPLE)[0])
    assert torch.equal(mixed[1], draw(3, seed=1, epoch=4, stream=Stream.SAMPLE)[0])


def test_no_two_of_streams_seeds_epochs_and_sequences_share_a_number() -> None:
    places = [
        draw(7, length=64, seed=seed, epoch=epoch, stream=stream)
        for stream in Stream
        for seed in (0, 1, 2**32, MAX_SEED)
        for epoch in (0, 1)
    ] + [draw(8, length=64), draw(7 + 2**32, length=64)]
    assert len({tuple(place[0].tolist()) for place in places}) == len(Stream) * 4 * 2 + 2


def test_numbers_are_uniform() -> None:
    values = draw(*range(400), length=100, seed=5).flatten()
    counts = torch.histc(values.float(), bins=50, min=0.0, max=1.0)
    assert chisquare(counts.numpy()).pvalue > 1e-3


def test_neighbouring_positions_are_independent() -> None:
    values = (draw(*range(400), length=100, seed=6) * 8).long()
    table = torch.zeros(8, 8)
    table.index_put_((values[:, :-1].flatten(), values[:, 1:].flatten()), torch.tensor(1.0), accumulate=True)
    assert chi2_contingency(table.numpy()).pvalue > 1e-3


def test_fresh_numbers_are_uniform_and_do_not_depend_on_those_they_come_from() -> None:
    first = draw(*range(200), length=100)
    second = fresh(first)
    table = torch.zeros(10, 10)
    table.index_put_(((first * 10).long(), (second * 10).long()), torch.ones(200, 100), accumulate=True)
    assert chisquare(table.sum(dim=0).numpy()).pvalue > 1e-3
    assert chi2_contingency(table.numpy()).pvalue > 1e-3
    assert float(second.max()) < 1.0
    assert torch.equal(fresh(first[3:4, 50:]), second[3:4, 50:])
    assert not bool((fresh(second) == second).any() or (second == first).any())


@settings(max_examples=20, deadline=None, derandomize=True)
@given(size=st.integers(1, 600), seed=st.integers(0, MAX_SEED), epoch=st.integers(0, 2**33))
def test_shuffled_index_is_a_bijection(size: int, seed: int, epoch: int) -> None:
    assert sorted(order(size, seed=seed, epoch=epoch)) == list(range(size))


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 16, 17, 64, 65, 1024, 1025])
def test_shuffled_index_is_a_bijection_at_the_edges_of_its_domain(size: int) -> None:
    assert sorted(order(size)) == list(range(size))


def test_every_epoch_and_every_seed_has_another_order() -> None:
    orders = {tuple(order(100, seed=seed, epoch=epoch)) for seed in (0, 1, 2**40) for epoch in range(5)}
    assert len(orders) == 15


def test_the_first_position_points_anywhere_with_the_same_chance() -> None:
    epoch = torch.arange(4000)
    first = shuffled_index(torch.zeros_like(epoch), size=10, seed=3, epoch=epoch)
    assert chisquare(torch.bincount(first, minlength=10).numpy()).pvalue > 1e-3


def test_any_two_positions_point_to_any_two_places_with_the_same_chance() -> None:
    epoch = torch.arange(6000)
    pair = [shuffled_index(torch.full_like(epoch, at), size=6, seed=8, epoch=epoch) for at in (2, 5)]
    counts = torch.bincount(pair[0] * 6 + pair[1], minlength=36).reshape(6, 6)
    assert int(counts.diagonal().sum()) == 0
    assert chisquare(counts[~torch.eye(6, dtype=torch.bool)].numpy()).pvalue > 1e-3


@pytest.mark.parametrize("size", [5_000, 7_936_507, 2**33 + 1])
def test_neighbours_of_a_large_order_lie_apart_as_at_random(size: int) -> None:
    position = torch.arange(5000)
    places = shuffled_index(position, size=size, seed=4, epoch=torch.ones_like(position)) * 20 // size
    assert chisquare(torch.bincount(places, minlength=20).numpy()).pvalue > 1e-3
    table = torch.zeros(20, 20)
    table.index_put_((places[:-1], places[1:]), torch.tensor(1.0), accumulate=True)
    assert chi2_contingency(table.numpy()).pvalue > 1e-3


def test_one_position_is_sought_without_computing_the_others() -> None:
    whole = order(1000, seed=9, epoch=2)
    assert shuffled_index(torch.tensor([777]), size=1000, seed=9, epoch=torch.tensor([2])).item() == whole[777]


@pytest.mark.parametrize(("size", "position"), [(0, 0), (5, 5), (5, -1)])
def test_positions_outside_the_order_are_refused(size: int, position: int) -> None:
    with pytest.raises(
        ValueError, match=rf"positions must be in \[0, size\), got size {size}, positions \[{position}\]"
    ):
        shuffled_index(torch.tensor([position]), size=size, seed=0, epoch=torch.tensor([0]))
