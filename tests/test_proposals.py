"""What replacements are drawn from: frozen models, and counted text without any model."""

import itertools
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from toys import MASK, SPECIAL_IDS, electra_config
from transformers import ElectraForMaskedLM

from fast_electra_core import bigrams
from fast_electra_core.bigrams import DISCOUNT, count_bigrams
from fast_electra_core.corruption import sample_replacements
from fast_electra_core.curriculum import Smoothing
from fast_electra_core.errors import DataError
from fast_electra_core.methods import Batch
from fast_electra_core.proposals import (
    BigramProposal,
    FrozenMaskedLm,
    Proposal,
    UniformProposal,
    UnigramProposal,
    unigram_distribution,
)

VOCAB_SIZE = 20
NEVER = SPECIAL_IDS.all_special
NEARLY_ONE = 1 - 2**-53
# Documents of a few words in a vocabulary of twenty; 3 is the separator, 19 never occurs.
STREAM = np.array([7, 8, 7, 8, 7, 9, 3, 7, 8, 10, 3, 11, 11, 11, 12, 3, 18, 7, 8, 3], dtype=np.uint16)
COUNTS = np.bincount(STREAM, minlength=VOCAB_SIZE)


def batch_of(left: int, uniforms: Any) -> Batch:
    """A row per number: [CLS], the left token, a selected token, [SEP]."""
    numbers = torch.as_tensor(uniforms, dtype=torch.float64)
    ids = torch.tensor([2, left, 13, 3]).expand(len(numbers), -1)
    is_selected = torch.zeros_like(ids, dtype=torch.bool)
    is_selected[:, 2] = True
    return Batch(ids, is_selected, numbers[:, None].expand(-1, 4))


def grid(count: int) -> Any:
    return (np.arange(count) + 0.5) / count


def bigram(streams: list[Any] | None = None) -> BigramProposal:
    streams = [STREAM] if streams is None else streams
    counts = sum(np.bincount(stream, minlength=VOCAB_SIZE) for stream in streams)
    return BigramProposal(
        count_bigrams(streams, vocab_size=VOCAB_SIZE, never=NEVER), UnigramProposal(counts, never=NEVER)
    )


MODEL_FREE: dict[str, Callable[[], Proposal]] = {
    "uniform": lambda: UniformProposal(vocab_size=VOCAB_SIZE, never=NEVER),
    "unigram": lambda: UnigramProposal(COUNTS, never=NEVER),
    "bigram": bigram,
}


def unigram_by_hand() -> Any:
    """Of 16 words: 7 five times, 8 four times, 11 three times, 9, 10, 12 and 18 once."""
    expected = np.zeros(VOCAB_SIZE)
    expected[[7, 8, 11, 9, 10, 12, 18]] = np.array([5, 4, 3, 1, 1, 1, 1]) / 16
    return expected


def bigram_by_loop(left: int, stream: Any = STREAM) -> Any:
    """Absolute discounting by a slow loop over the text."""
    followers = Counter(int(b) for a, b in itertools.pairwise(stream) if a == left and b not in NEVER)
    whole = sum(followers.values())
    if not whole:
        return unigram_by_hand()
    expected = DISCOUNT * len(followers) / whole * unigram_by_hand()
    for right, count in followers.items():
        expected[right] += (count - DISCOUNT) / whole
    return expected


EXPECTED = {
    "uniform": lambda left: np.where(np.arange(VOCAB_SIZE) < 5, 0.0, 1 / 15),
    "unigram": lambda left: unigram_by_hand(),
    "bigram": bigram_by_loop,
}


@pytest.mark.parametrize("left", [2, 3, 7, 8, 9, 11, 19])
@pytest.mark.parametrize("name", MODEL_FREE)
def test_evenly_spaced_numbers_give_every_token_its_share(name: str, left: int) -> None:
    """An exact inverse of the cumulative distribution: each piece of it is off by less than one in the grid."""
    drawn = MODEL_FREE[name]().sample(batch_of(left, grid(4000)), Smoothing())
    counts = np.bincount(drawn.numpy(), minlength=VOCAB_SIZE)
    np.testing.assert_allclose(counts, 4000 * EXPECTED[name](left), rtol=0, atol=2.0)


@pytest.mark.parametrize("name", MODEL_FREE)
def test_random_numbers_pass_a_chi_square_test(name: str) -> None:
    numbers = torch.rand(20_000, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    counts = np.bincount(MODEL_FREE[name]().sample(batch_of(8, numbers), Smoothing()).numpy(), minlength=VOCAB_SIZE)
    expected = EXPECTED[name](8)
    assert counts[expected == 0].sum() == 0
    assert chisquare(counts[expected > 0], 20_000 * expected[expected > 0]).pvalue > 1e-3


@pytest.mark.parametrize("name", MODEL_FREE)
@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    rows=st.integers(1, 4),
    length=st.integers(1, 12),
    seed=st.integers(0, 2**31),
    extreme=st.sampled_from([None, 0.0, NEARLY_ONE]),
)
def test_special_tokens_are_never_drawn_nor_what_never_occurs(
    name: str, rows: int, length: int, seed: int, extreme: float | None
) -> None:
    """lucidrains' random tokens land outside the chosen positions: here there is one id for each chosen one."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, VOCAB_SIZE, (rows, length), generator=generator)
    is_selected = torch.rand(rows, length, generator=generator) < 0.5
    numbers = torch.rand(rows, length, generator=generator, dtype=torch.float64)
    if extreme is not None:
        numbers.fill_(extreme)
    drawn = MODEL_FREE[name]().sample(Batch(ids, is_selected, numbers), Smoothing())
    assert drawn.shape == (int(is_selected.sum()),)
    assert drawn.dtype == torch.int64
    possible = range(5, VOCAB_SIZE) if name == "uniform" else np.flatnonzero(unigram_by_hand())
    assert set(drawn.tolist()) <= set(possible)


@pytest.mark.parametrize("name", ["unigram", "bigram"])
def test_the_last_id_of_the_vocabulary_has_its_share(name: str) -> None:
    """Two words of 19, the last id, among eight; 9, to the left, never occurs."""
    stream = np.array([19, 7, 7, 3, 19, 8, 8, 3, 7, 8, 3], dtype=np.uint16)
    unigram = UnigramProposal(np.bincount(stream, minlength=VOCAB_SIZE), never=NEVER)
    proposal = unigram if name == "unigram" else BigramProposal(
        count_bigrams([stream], vocab_size=VOCAB_SIZE, never=NEVER), unigram
    )  # fmt: skip
    drawn = proposal.sample(batch_of(9, [*grid(8), NEARLY_ONE]), Smoothing())
    assert drawn.tolist() == [7, 7, 7, 8, 8, 8, 19, 19, 19]


@settings(max_examples=100, deadline=None, derandomize=True)
@given(count=st.integers(1, 2**53))
def test_a_number_below_1_never_points_past_the_last_word(count: int) -> None:
    """Of any text: there is one word that stands there count times, and one that would be next."""
    counts = np.array([0, 0, 0, 0, 0, count, 0])
    assert UnigramProposal(counts, never=NEVER).pick(torch.tensor([0.0, NEARLY_ONE], dtype=torch.float64)).tolist() == [
        5,
        5,
    ]


@pytest.mark.parametrize("vocab_size", [6, 7, 9, 13, 21, 1029, 30_522, 65_541])
def test_a_number_below_1_never_points_past_the_last_id(vocab_size: int) -> None:
    drawn = UniformProposal(vocab_size=vocab_size, never=NEVER).sample(batch_of(7, [0.0, NEARLY_ONE]), Smoothing())
    assert drawn.tolist() == [5, vocab_size - 1]


@pytest.mark.parametrize("vocab_size", [6, 1000, 30_522])
def test_every_ordinary_id_of_the_vocabulary_can_be_drawn(vocab_size: int) -> None:
    """ModernBERT's random ids are bounded by the batch's largest id, here 13, and special tokens are among them."""
    proposal = UniformProposal(vocab_size=vocab_size, never=NEVER)
    drawn = proposal.sample(batch_of(7, grid(vocab_size - 5)), Smoothing())
    assert drawn.tolist() == list(range(5, vocab_size))


@pytest.mark.parametrize("name", MODEL_FREE)
def test_a_draw_is_a_function_of_its_own_row_alone(name: str) -> None:
    proposal, numbers = MODEL_FREE[name](), grid(50)
    whole = proposal.sample(batch_of(8, numbers), Smoothing(3.0, 0.5, 0.5, 2, 0.5))
    alone = [int(proposal.sample(batch_of(8, numbers[[row]]), Smoothing())) for row in range(50)]
    assert whole.tolist() == alone


def test_the_left_neighbour_is_the_original_also_where_it_is_replaced() -> None:
    ids = torch.tensor([[2, 11, 12, 3]])
    batch = Batch(ids, torch.tensor([[False, True, True, False]]), torch.full((1, 4), 0.3, dtype=torch.float64))
    first, second = bigram().sample(batch, Smoothing()).tolist()
    # 0.3: after [CLS], which is never in the text, the unigram's 5/16 are 7; after 11 (11 twice, 12 once), the first of
    # 1.25/3 is 11.
    assert (first, second) == (7, 11)


def test_the_first_token_of_a_row_has_no_left_neighbour() -> None:
    numbers = torch.tensor(grid(400))[:, None]
    batch = Batch(torch.full((400, 1), 11), torch.ones(400, 1, dtype=torch.bool), numbers)
    counts = np.bincount(bigram().sample(batch, Smoothing()), minlength=VOCAB_SIZE)
    np.testing.assert_allclose(counts, 400 * unigram_by_hand(), rtol=0, atol=1.0)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    lengths=st.lists(st.integers(0, 30), min_size=1, max_size=3),
    chunk_tokens=st.integers(1, 40),
    seed=st.integers(0, 2**31),
)
def test_pairs_are_counted_within_streams_wherever_the_chunks_end(
    lengths: list[int], chunk_tokens: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    streams = [rng.integers(0, 9, length).astype(np.uint16) for length in lengths]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bigrams, "_CHUNK_TOKENS", chunk_tokens)
        counts = count_bigrams(streams, vocab_size=9, never=[0, 1])
    expected = Counter((int(a), int(b)) for each in streams for a, b in itertools.pairwise(each) if b not in (0, 1))
    steps = np.diff(counts.sums.numpy()) + DISCOUNT
    left = np.repeat(np.arange(10), np.diff(counts.starts.numpy()))
    assert dict(zip(zip(left, counts.right.tolist(), strict=True), steps, strict=True)) == expected


def test_only_an_equal_share_of_each_shard_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bigrams, "MAX_TOKENS", 6)
    counts = count_bigrams([STREAM, STREAM[:2]], vocab_size=VOCAB_SIZE, never=NEVER)
    assert counts.right.tolist() == [8, 7]  # of 7 8 7, and of 7 8
    assert counts.sums.tolist() == [0.0, 2 - DISCOUNT, 3 - 2 * DISCOUNT]


def test_without_a_single_pair_all_is_the_unigrams() -> None:
    streams = [np.array([token], dtype=np.uint16) for token in (7, 8, 8, 8)]
    drawn = bigram(streams).sample(batch_of(7, grid(8)), Smoothing())
    assert drawn.tolist() == [7, 7, 8, 8, 8, 8, 8, 8]


def test_shares_of_the_unigram_leave_special_tokens_out() -> None:
    shares = unigram_distribution(COUNTS, never=NEVER)
    np.testing.assert_allclose(shares, unigram_by_hand(), rtol=1e-6)
    assert COUNTS[3] == 4, "the counts are left as they were"


def test_a_vocabulary_of_special_tokens_alone_is_refused() -> None:
    with pytest.raises(DataError, match="all 5 tokens of the vocabulary are special: nothing can be drawn"):
        UniformProposal(vocab_size=5, never=NEVER)


@pytest.mark.parametrize("make", [UnigramProposal, unigram_distribution])
def test_text_without_an_ordinary_token_is_refused(make: Any) -> None:
    counts = np.bincount([3, 3, 1], minlength=VOCAB_SIZE)
    with pytest.raises(DataError, match="the training text holds no ordinary token: nothing can be drawn from its"):
        make(counts, never=NEVER)


# Frozen models


def models(count: int, *, dropout: float = 0.0) -> list[Any]:
    torch.manual_seed(0)
    made = [ElectraForMaskedLM(electra_config(VOCAB_SIZE, dropout=dropout)).train() for _ in range(count)]
    with torch.no_grad():
        for parameter in (parameter for model in made for parameter in model.parameters()):
            parameter.add_(0.5 * torch.randn_like(parameter))
    return made


def random_batch(rows: int = 8, length: int = 12, *, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, VOCAB_SIZE, (rows, length), generator=generator)
    is_selected = torch.rand(rows, length, generator=generator) < 0.4
    return Batch(ids, is_selected, torch.rand(rows, length, generator=generator, dtype=torch.float64))


def full_logits(model: Any, batch: Batch) -> torch.Tensor:
    """The selected rows of an ordinary forward pass over the masked input."""
    with torch.no_grad():
        logits: torch.Tensor = model(input_ids=batch.input_ids.masked_fill(batch.is_selected, MASK)).logits
    return logits[batch.is_selected]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_one_model_is_sampled_at_the_temperature_from_the_masked_input(temperature: float) -> None:
    (model,), batch = models(1), random_batch()
    drawn = FrozenMaskedLm([model], mask_token_id=MASK).sample(batch, Smoothing(temperature))
    uniform = batch.sample_uniforms[batch.is_selected]
    assert torch.equal(drawn, sample_replacements(full_logits(model, batch), uniform, temperature))


def test_several_models_sample_together_from_their_mean() -> None:
    ours, batch = models(3), random_batch()
    drawn = FrozenMaskedLm(ours, mask_token_id=MASK).sample(batch, Smoothing(2.0))
    mean = torch.stack([(full_logits(model, batch) / 2.0).softmax(dim=1) for model in ours]).mean(dim=0)
    expected = sample_replacements(mean.log(), batch.sample_uniforms[batch.is_selected], 1.0)
    assert torch.equal(drawn, expected)
    alone = FrozenMaskedLm(ours[:1], mask_token_id=MASK).sample(batch, Smoothing(2.0))
    assert not torch.equal(drawn, alone)


def test_the_doubt_about_a_draw_is_the_probability_of_all_other_tokens() -> None:
    ours, batch = models(2), random_batch()
    proposal = FrozenMaskedLm(ours, mask_token_id=MASK)
    draw = proposal.draw(batch, Smoothing(2.0))
    assert torch.equal(draw.ids, proposal.sample(batch, Smoothing(2.0)))
    mean = torch.stack([full_logits(model, batch).softmax(dim=1) for model in ours]).mean(dim=0)
    torch.testing.assert_close(draw.doubt, 1 - mean[torch.arange(len(draw.ids)), draw.ids])


@pytest.mark.parametrize("count", [1, 2])
def test_dropout_is_a_function_of_the_micro_batch_and_leaves_the_callers_random_state(count: int) -> None:
    proposal, batch = FrozenMaskedLm(models(count), mask_token_id=MASK), random_batch()
    torch.manual_seed(1)
    state = torch.get_rng_state()
    drawn = proposal.sample(batch, Smoothing(dropout=0.4))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert torch.equal(proposal.sample(batch, Smoothing(dropout=0.4)), drawn)
    other = batch._replace(sample_uniforms=batch.sample_uniforms.clone())
    other.sample_uniforms[0, 0] = 0.5  # the same text another time: it is not selected, but another seed
    assert not batch.is_selected[0, 0]
    assert not torch.equal(proposal.sample(other, Smoothing(dropout=0.4)), drawn)
    assert torch.equal(proposal.sample(other, Smoothing()), proposal.sample(batch, Smoothing()))
    assert not torch.equal(proposal.sample(batch, Smoothing()), drawn)


def test_members_drop_different_units() -> None:
    (model,), batch = models(1), random_batch()
    alone = FrozenMaskedLm([model], mask_token_id=MASK)._logits(batch, Smoothing(dropout=0.4))
    twice = FrozenMaskedLm([model, model], mask_token_id=MASK)._logits(batch, Smoothing(dropout=0.4))
    assert torch.equal(twice[0], alone[0])
    assert not torch.equal(twice[1], alone[0])


def test_the_models_are_frozen_and_get_no_gradient() -> None:
    ours, batch = models(2, dropout=0.3), random_batch()
    before = [{name: value.clone() for name, value in model.state_dict().items()} for model in ours]
    proposal = FrozenMaskedLm(ours, mask_token_id=MASK, unigram=torch.full((VOCAB_SIZE,), 1 / VOCAB_SIZE))
    draw = proposal.draw(batch, Smoothing(2.0, unigram_share=0.5))
    assert not draw.doubt.requires_grad
    for model, weights in zip(ours, before, strict=True):
        assert not any(module.training for module in model.modules())
        assert all(value.grad is None and not value.requires_grad for value in model.parameters())
        assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
