"""The chosen positions: an exact count, whole words and spans as far as it allows, every position as likely.

Several claims are defects of public implementations: see each test's docstring.
"""

import math
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2, chisquare
from torch import Tensor
from toys import MASK, dataset_of, electra_config
from transformers import ElectraForMaskedLM

from fast_electra_core.batches import make_batch
from fast_electra_core.config import MASKINGS
from fast_electra_core.curriculum import Smoothing
from fast_electra_core.data import TokenDataset
from fast_electra_core.masking import (
    PLAIN,
    Masking,
    choose_positions,
    select_groups,
    select_positions,
    span_starts,
    word_starts,
)
from fast_electra_core.methods import Batch, MaskedLanguageModel, Totals
from fast_electra_core.proposals import FrozenMaskedLm
from fast_electra_core.randomness import Stream, uniforms

VOCAB_SIZE = 40


def numbers(rows: int, length: int, *, seed: int = 0, stream: Stream = Stream.SELECT) -> Tensor:
    index = torch.arange(rows)
    return uniforms(index, length=length, seed=seed, epoch=torch.zeros_like(index), stream=stream)


def packed_rows(rows: int, length: int) -> Tensor:
    """[CLS], ordinary tokens, [SEP]."""
    ordinary = torch.ones(rows, length, dtype=torch.bool)
    ordinary[:, 0] = ordinary[:, -1] = False
    return ordinary


def choose(scheme: str, is_ordinary: Tensor, continues: Tensor, *, fraction: float = 0.15, seed: int = 0) -> Tensor:
    rows = len(is_ordinary)
    return choose_positions(
        is_ordinary,
        continues,
        scheme=scheme,
        mask_fraction=fraction,
        draw=lambda stream, length: numbers(rows, length, seed=seed, stream=stream),
    )


def pieces(rows: int, length: int, *, share: float = 0.3) -> Tensor:
    """Words of 1 / (1 - share) tokens."""
    return torch.from_numpy(np.random.default_rng(1).random((rows, length)) < share)


def flags(text: str) -> Tensor:
    """One row: true where the text has an x."""
    return torch.tensor([[letter == "x" for letter in text]])


# For every scheme


@pytest.mark.parametrize("scheme", MASKINGS)
@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    rows=st.integers(1, 5),
    length=st.integers(1, 70),
    fraction=st.floats(0.001, 0.999),
    special_share=st.floats(0, 1),
    seed=st.integers(0, 2**60 - 1),
)
def test_every_row_has_the_exact_count_and_no_special_token(
    scheme: str, rows: int, length: int, fraction: float, special_share: float, seed: int
) -> None:
    """google/electra draws positions with replacement: 13.8 % are masked instead of 15 %."""
    is_ordinary = numbers(rows, length, seed=seed ^ 1) >= special_share
    selected = choose(scheme, is_ordinary, pieces(rows, length), fraction=fraction, seed=seed)
    assert not bool((selected & ~is_ordinary).any())
    for chosen, available in zip(selected.sum(1).tolist(), is_ordinary.sum(1).tolist(), strict=True):
        wanted = Fraction(fraction) * available
        assert chosen == min(1, available) or abs(chosen - wanted) <= Fraction(1, 2) + Fraction(1, 10**9)
        assert chosen >= min(1, available)


@pytest.mark.parametrize("scheme", MASKINGS)
@pytest.mark.parametrize(
    ("num_ordinary", "fraction", "expected"),
    [(126, 0.15, 19), (510, 0.15, 77), (10, 0.25, 3), (50, 0.53, 27), (150, 0.21, 32), (3, 0.01, 1), (0, 0.5, 0)],
    ids=["18.9", "76.5", "2.5", "26.5", "31.5", "at least one", "nothing to choose"],
)
def test_the_count_is_rounded_to_the_nearest_and_halves_up(
    scheme: str, num_ordinary: int, fraction: float, expected: int
) -> None:
    is_ordinary = torch.arange(512)[None] < num_ordinary
    assert int(choose(scheme, is_ordinary, pieces(1, 512), fraction=fraction).sum()) == expected


@pytest.mark.parametrize("scheme", MASKINGS)
def test_positions_are_chosen_evenly_up_to_the_end_of_the_row(scheme: str) -> None:
    """DeBERTaV3 never masks the tail of a 512-token row (0.0 % after position 480)."""
    rows, length, share = 3000, 512, 77 / 510
    chosen = choose(scheme, packed_rows(rows, length), pieces(rows, length), seed=3).double().sum(0)
    assert chosen[0] == chosen[-1] == 0
    deviations = (chosen[1:-1] - rows * share) / math.sqrt(rows * share * (1 - share))
    assert float(deviations.abs().max()) < 4.5  # of 510 normal ones: with a chance of 0.3 % it would be above
    assert float(chosen[481:-1].mean()) == pytest.approx(rows * share, rel=0.03)
    assert float(chosen[1:31].mean()) == pytest.approx(rows * share, rel=0.03)


@pytest.mark.parametrize("scheme", MASKINGS)
def test_the_choice_in_a_row_does_not_depend_on_the_other_rows(scheme: str) -> None:
    is_ordinary, continues = packed_rows(6, 40), pieces(6, 40)
    whole = choose(scheme, is_ordinary, continues, fraction=0.3)
    alone = choose_positions(
        is_ordinary[4:],
        continues[4:],
        scheme=scheme,
        mask_fraction=0.3,
        draw=lambda stream, length: numbers(6, length, stream=stream)[4:],
    )
    assert torch.equal(whole[4:], alone)


def test_the_schemes_choose_differently() -> None:
    rows = [choose(scheme, packed_rows(1, 128), pieces(1, 128))[0] for scheme in MASKINGS]
    assert len({tuple(row.tolist()) for row in rows}) == 3
    neighbours = [int((row[1:] & row[:-1]).sum()) for row in rows]
    assert neighbours == sorted(neighbours)


# Tokens


def test_the_smallest_numbers_win_and_equal_ones_go_by_position() -> None:
    uniform = torch.tensor([[0.0, 0.5, 0.5, 0.9, 0.5, 0.0]], dtype=torch.float64)
    selected = select_positions(packed_rows(1, 6), uniform, 0.5)
    assert selected.tolist() == [[False, True, True, False, False, False]]


def test_tokens_are_chosen_as_independently_as_an_exact_count_allows() -> None:
    rows, length = 3000, 128
    counts = select_positions(packed_rows(rows, length), numbers(rows, length, seed=3), 0.15).sum(0)[1:-1].numpy()
    # Without replacement the counts vary less than multinomial ones: 107 of 126 positions are not chosen.
    assert chi2.sf(chisquare(counts).statistic * 125 / 107, 125) > 1e-3


# Words and spans


def test_words_begin_where_the_tokenizer_says_and_after_special_tokens() -> None:
    """In a row cut out of the text, and after a separator, the rest of a word is a word."""
    is_ordinary = flags(".xxxxx.xx.")
    continues = flags("xx.xx.xx.x")
    assert torch.equal(word_starts(is_ordinary, continues), flags(".xx..x.xx."))


def ring_by_hand(
    starts: list[bool], is_ordinary: list[bool], uniform: list[float], offset: float, count: int
) -> set[int]:
    """Group after group in the order of their numbers; `count` positions from the offset on, around the end."""
    groups: list[list[int]] = []
    for position, (begins, ordinary) in enumerate(zip(starts, is_ordinary, strict=True)):
        if begins:
            groups.append([])
        if ordinary:
            groups[-1].append(position)
    ring = [position for number in np.argsort(uniform[: len(groups)], kind="stable") for position in groups[number]]
    first = math.floor(offset * len(ring))
    return {ring[(first + step) % len(ring)] for step in range(count)}


@settings(max_examples=80, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32 - 1), length=st.integers(2, 40), count_share=st.floats(0.01, 0.99))
def test_groups_are_taken_as_a_slow_loop_takes_them(seed: int, length: int, count_share: float) -> None:
    rng = np.random.default_rng(seed)
    is_ordinary = torch.from_numpy(rng.random((3, length)) < 0.8)
    is_ordinary[:, 0] = True
    starts = word_starts(is_ordinary, torch.from_numpy(rng.random((3, length)) < 0.5))
    uniform, offset = torch.from_numpy(rng.random((3, length))), torch.from_numpy(rng.random((3, 1)))
    found = select_groups(is_ordinary, starts, uniform=uniform, offset=offset, mask_fraction=count_share)
    for row in range(3):
        available = int(is_ordinary[row].sum())
        count = min(available, max(1, math.floor(available * count_share + 0.5)))
        lists = (starts[row].tolist(), is_ordinary[row].tolist(), uniform[row].tolist())
        assert set(found[row].nonzero()[:, 0].tolist()) == ring_by_hand(*lists, float(offset[row, 0]), count)


def test_over_all_beginnings_of_the_ring_every_position_is_taken_equally_often() -> None:
    """What makes the chance exact, however long the words are: 30 ordinary tokens, 9 taken, 30 beginnings."""
    is_ordinary, continues = flags(".xxxxxxxxxx.xxxxxxxxxxxxxxxxxxxx."), flags("..xxxxxxx.x...x.x..xxx......xxxx.")
    starts, uniform = word_starts(is_ordinary, continues), numbers(1, 33)
    taken = torch.zeros(1, 33, dtype=torch.int64)
    for first in range(30):
        offset = torch.tensor([[(first + 0.5) / 30]], dtype=torch.float64)
        taken += select_groups(is_ordinary, starts, uniform=uniform, offset=offset, mask_fraction=0.3)
    assert taken.tolist() == torch.where(is_ordinary, 9, 0).tolist()


@pytest.mark.parametrize("scheme", ["whole_words", "spans"])
def test_all_words_and_spans_but_two_are_chosen_whole_or_not_at_all(scheme: str) -> None:
    rows, length = 200, 128
    is_ordinary, continues = packed_rows(rows, length), pieces(rows, length)
    selected = choose(scheme, is_ordinary, continues)
    starts = word_starts(is_ordinary, continues)
    if scheme == "spans":
        starts = span_starts(is_ordinary, starts, uniform=numbers(rows, length, stream=Stream.SPAN))
    group = starts.cumsum(1).masked_fill(~is_ordinary, 0)
    sizes = torch.zeros(rows, length, dtype=torch.int64).scatter_add_(1, group, is_ordinary.long())
    chosen = torch.zeros_like(sizes).scatter_add_(1, group, selected.long())
    num_cut = ((chosen > 0) & (chosen < sizes)).sum(1)
    assert int(num_cut.max()) <= 2
    assert int(((chosen == sizes) & (sizes > 1)).sum()) > rows


def spans_by_hand(is_ordinary: list[bool], words: list[bool], lengths: list[int]) -> list[bool]:
    """Walk along the words; a span ends after its length, and begins anew after a special token."""
    starts, left = [], 0
    remaining = iter(lengths)
    for position, is_word in enumerate(words):
        begins = False
        if is_word:
            begins = left == 0 or position == 0 or not is_ordinary[position - 1]
            left = (next(remaining) if left == 0 else left) - 1
        starts.append(begins)
    return starts


@settings(max_examples=60, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32 - 1), length=st.integers(2, 60))
def test_spans_are_those_of_a_slow_loop(seed: int, length: int) -> None:
    rng = np.random.default_rng(seed)
    is_ordinary = torch.from_numpy(rng.random((3, length)) < 0.9)
    words, uniform = word_starts(is_ordinary, torch.from_numpy(rng.random((3, length)) < 0.4)), rng.random((3, length))
    found = span_starts(is_ordinary, words, uniform=torch.from_numpy(uniform))
    chances = np.cumsum(0.2 * 0.8 ** np.arange(10))
    for row in range(3):
        lengths = [1 + int((chances / chances[-1] <= number).sum()) for number in uniform[row]]
        assert found[row].tolist() == spans_by_hand(is_ordinary[row].tolist(), words[row].tolist(), lengths)


def test_spans_are_as_long_as_spanberts() -> None:
    """arXiv 1907.10529, sec. 3.1: p = 0.2, at most 10 words, 3.8 on average."""
    rows, length = 40, 2000
    words = torch.ones(rows, length, dtype=torch.bool)
    starts = span_starts(words, words, uniform=numbers(rows, length, stream=Stream.SPAN))
    lengths = np.concatenate([np.diff(row.nonzero()[:, 0].numpy()) for row in starts])
    chances = 0.2 * 0.8 ** np.arange(10)
    counts = np.bincount(lengths, minlength=11)
    assert counts[0] == 0
    assert len(counts) == 11
    assert chisquare(counts[1:], len(lengths) * chances / chances.sum()).pvalue > 1e-3
    assert lengths.mean() == pytest.approx(3.8, abs=0.05)


def test_masking_by_words_without_knowing_them_is_refused() -> None:
    with pytest.raises(ValueError, match="masking spans needs to be told which tokens continue a word"):
        choose("spans", packed_rows(1, 10), None)  # type: ignore[arg-type]


# Batches, and what stays unmasked


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> TokenDataset:
    """60 sequences of 34 tokens; ids from 30 on continue a word."""
    rng = np.random.default_rng(0)
    documents = [rng.integers(5, VOCAB_SIZE, 400) for _ in range(5)]
    opened = dataset_of(tmp_path_factory.mktemp("shard"), documents, vocab_size=VOCAB_SIZE, sequence_length=34)
    opened.continues_word = torch.arange(VOCAB_SIZE) >= 30
    return opened


def batch_of(dataset: TokenDataset, masking: Masking = PLAIN, *, order: Any = slice(None), seed: int = 3) -> Batch:
    sequence, epoch = torch.arange(60)[order], (torch.arange(60) % 2)[order]
    return make_batch(dataset, sequence, epoch, mask_fraction=0.3, seed=seed, masking=masking)


@pytest.mark.parametrize("scheme", MASKINGS)
def test_a_batch_is_a_pure_function_of_place_and_seed_under_any_masking(scheme: str, dataset: TokenDataset) -> None:
    masking = Masking(scheme, 0.15)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(0))
    whole = batch_of(dataset, masking)
    torch.manual_seed(77)
    shuffled = batch_of(dataset, masking, order=order)
    for ours, theirs in ((whole.is_selected, shuffled.is_selected), (whole.is_masked, shuffled.is_masked)):
        assert ours is not None
        assert theirs is not None
        assert torch.equal(ours[order], theirs)
    assert not torch.equal(batch_of(dataset, masking, seed=4).is_selected, whole.is_selected)


def test_a_dataset_that_knows_no_words_cannot_be_masked_by_words(tmp_path: Path) -> None:
    plain = dataset_of(tmp_path, [np.full(3000, 7)], vocab_size=VOCAB_SIZE, sequence_length=34)
    assert batch_of(plain).is_masked is None
    with pytest.raises(ValueError, match="masking whole_words needs to be told which tokens continue a word"):
        batch_of(plain, Masking("whole_words", 0.0))


@pytest.mark.parametrize("keep_fraction", [0.1, 0.15, 0.9])
def test_the_asked_share_of_the_chosen_is_kept_and_the_choice_stays_the_same(
    keep_fraction: float, dataset: TokenDataset
) -> None:
    """electra_pytorch's `int(replace_prob) != 0` switches a probability of 0.1 off."""
    batch = batch_of(dataset, Masking("tokens", keep_fraction))
    assert torch.equal(batch.is_selected, batch_of(dataset).is_selected)
    assert batch.is_masked is not None
    assert not bool((batch.is_masked & ~batch.is_selected).any())
    chosen, masked = int(batch.is_selected.sum()), int(batch.is_masked.sum())
    spread = math.sqrt(keep_fraction * (1 - keep_fraction) / chosen)
    assert 1 - masked / chosen == pytest.approx(keep_fraction, abs=3.5 * spread)


def test_kept_tokens_are_seen_as_they_are_and_all_others_as_before(dataset: TokenDataset) -> None:
    batch = batch_of(dataset, Masking("spans", 0.4))
    assert batch.is_masked is not None
    seen = batch.masked_ids(MASK)
    assert bool((seen[batch.is_masked] == MASK).all())
    assert torch.equal(seen[~batch.is_masked], batch.input_ids[~batch.is_masked])
    assert torch.equal(batch._replace(is_masked=None).masked_ids(MASK) == MASK, batch.is_selected)


@pytest.mark.parametrize("with_samples", [False, True])
@pytest.mark.parametrize("keep_fraction", [0.0, 0.4])
def test_micro_batches_hold_their_rows_of_every_part(
    with_samples: bool, keep_fraction: float, dataset: TokenDataset
) -> None:
    batch = batch_of(dataset, Masking("tokens", keep_fraction)).to(torch.device("cpu"))
    if with_samples:
        batch = batch._replace(corrupted_ids=batch.input_ids + 1)
    parts = batch.split(7)
    assert [len(part.input_ids) for part in parts] == [7] * 8 + [4]
    for name, whole in batch._replace(selection=None, seed=None)._asdict().items():
        of_parts = [getattr(part, name) for part in parts]
        if whole is None:
            assert of_parts == [None] * 9
        else:
            assert torch.equal(torch.cat(of_parts), whole)


def masked_lm() -> Any:
    torch.manual_seed(0)
    model = ElectraForMaskedLM(electra_config(VOCAB_SIZE, max_position_embeddings=64)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def test_replacements_are_drawn_for_the_kept_too_from_a_model_that_sees_them(dataset: TokenDataset) -> None:
    """A slow loop over the full forward pass."""
    model, batch = masked_lm(), batch_of(dataset, Masking("tokens", 0.4), order=slice(4))
    assert batch.is_masked is not None
    drawn = FrozenMaskedLm([model], mask_token_id=MASK).sample(batch, Smoothing(1.5))
    with torch.no_grad():
        logits = model(torch.where(batch.is_masked, MASK, batch.input_ids)).logits.double() / 1.5
    expected = [
        int((logits[row, column].softmax(0).cumsum(0) <= batch.sample_uniforms[row, column]).sum())
        for row, column in batch.is_selected.nonzero().tolist()
    ]
    assert drawn.tolist() == expected


def test_the_masked_lm_learns_the_kept_too_and_loss_and_gradients_are_transformers(dataset: TokenDataset) -> None:
    model, batch = masked_lm(), batch_of(dataset, Masking("whole_words", 0.4))
    method = MaskedLanguageModel(model, mask_token_id=MASK)
    totals = Totals(batch.input_ids.numel(), int(batch.is_selected.sum()))
    method.loss(batch, totals, progress=0.0, stats={}).backward()  # type: ignore[no-untyped-call]
    ours = {name: value.grad.clone() for name, value in model.named_parameters()}
    model.zero_grad()
    labels = batch.input_ids.masked_fill(~batch.is_selected, -100)
    assert batch.is_masked is not None
    model(torch.where(batch.is_masked, MASK, batch.input_ids), labels=labels).loss.backward()
    for name, value in model.named_parameters():
        torch.testing.assert_close(ours[name], value.grad, rtol=1e-4, atol=1e-6, msg=name)
