"""Samples follow the formula (tempered, averaged, truncated, mixed): by chi-square, by hand, by transformers."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from fast_electra_core import corruption
from fast_electra_core.corruption import sample_replacements
from fast_electra_core.curriculum import Curriculum, Smoothing
from fast_electra_core.randomness import Stream, uniforms
from fast_electra_core.smoothing import mean_probability, sample_smoothed

NUM_SAMPLES = 30_000
NEARLY_ONE = 1 - 2**-53
FIRST, SECOND = np.linspace(-2.0, 2.0, 12), np.cos(np.arange(12) * 1.7)
UNIGRAM = np.arange(12) / 66  # the first token never occurs


def numbers(count: int, *, seed: int = 0) -> torch.Tensor:
    index = torch.arange(-(-count // 100))
    drawn = uniforms(index, length=100, seed=seed, epoch=torch.zeros_like(index), stream=Stream.SAMPLE)
    return drawn.flatten()[:count]


def softmax(logits: Any, temperature: float) -> Any:
    weights = np.exp(np.asarray(logits, dtype=np.float64) / temperature)
    return weights / weights.sum()


def samples(logits: list[Any], smoothing: Smoothing, *, unigram: Any = None, count: int = NUM_SAMPLES) -> Any:
    rows = [torch.tensor(each, dtype=torch.float32).expand(count, -1) for each in logits]
    shares = None if unigram is None else torch.tensor(unigram, dtype=torch.float32)
    return sample_smoothed(rows, numbers(count), smoothing, unigram=shares).numpy()


def assert_drawn_from(expected: Any, ids: Any) -> None:
    """A chi-square test over the possible tokens; the impossible ones must not occur."""
    counts = np.bincount(ids, minlength=len(expected))
    assert counts[expected == 0].sum() == 0
    assert chisquare(counts[expected > 0], len(ids) * expected[expected > 0]).pvalue > 1e-3


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_samples_follow_the_mixture_of_the_tempered_model_and_the_unigram(temperature: float, share: float) -> None:
    expected = (1 - share) * softmax(FIRST, temperature) + share * UNIGRAM
    drawn = samples([FIRST], Smoothing(temperature, unigram_share=share), unigram=UNIGRAM)
    assert_drawn_from(expected, drawn)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_several_members_are_averaged_as_probabilities_not_as_logits(temperature: float) -> None:
    expected = (softmax(FIRST, temperature) + softmax(SECOND, temperature)) / 2
    drawn = samples([FIRST, SECOND], Smoothing(temperature))
    assert_drawn_from(expected, drawn)
    averaged_logits = softmax((FIRST + SECOND) / 2, temperature)
    counts = np.bincount(drawn, minlength=12)
    assert chisquare(counts, NUM_SAMPLES * averaged_logits).pvalue < 1e-3


def test_everything_together_follows_the_formula() -> None:
    """The mean of two, of it the likeliest five, of these the likeliest with 60 %; that to 3/4, the unigram to 1/4."""
    mean = (softmax(FIRST, 2.0) + softmax(SECOND, 2.0)) / 2
    five = np.where(mean >= np.sort(mean)[-5], mean, 0.0)
    five /= five.sum()
    order = np.argsort(-five)
    num_kept = int(np.searchsorted(np.cumsum(five[order]), 0.6)) + 1
    kept = np.zeros(12)
    kept[order[:num_kept]] = five[order[:num_kept]]
    expected = 0.75 * kept / kept.sum() + 0.25 * UNIGRAM
    smoothing = Smoothing(2.0, unigram_share=0.25, top_k=5, top_p=0.6)
    assert 1 < num_kept < 5
    assert_drawn_from(expected, samples([FIRST, SECOND], smoothing, unigram=UNIGRAM))


LOGITS = torch.randn(300, 40, generator=torch.Generator().manual_seed(5)) * 3


@pytest.mark.parametrize("top_k", [1, 2, 7, 20, 21, 39, 40, 100])
@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_truncation_to_k_is_that_of_transformers(top_k: int, temperature: float) -> None:
    uniform = numbers(300)
    warped = TopKLogitsWarper(top_k)(None, TemperatureLogitsWarper(temperature)(None, LOGITS))
    expected = sample_replacements(warped, uniform, 1.0)
    assert torch.equal(sample_smoothed([LOGITS], uniform, Smoothing(temperature, top_k=top_k)), expected)


@pytest.mark.parametrize("top_p", [0.05, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("top_k", [None, 10])
def test_truncation_to_a_mass_is_that_of_transformers(top_p: float, top_k: int | None) -> None:
    uniform = numbers(300)
    warped = TemperatureLogitsWarper(2.0)(None, LOGITS)
    if top_k is not None:
        warped = TopKLogitsWarper(top_k)(None, warped)
    expected = sample_replacements(TopPLogitsWarper(top_p)(None, warped), uniform, 1.0)
    found = sample_smoothed([LOGITS], uniform, Smoothing(2.0, top_k=top_k, top_p=top_p))
    assert torch.equal(found, expected)


@pytest.mark.parametrize("smoothing", [Smoothing(top_k=2), Smoothing(top_p=0.5)], ids=["k", "p"])
def test_tokens_as_likely_as_the_last_one_kept_are_kept_too(smoothing: Smoothing) -> None:
    """3, 1, 1, 1 out of 6: half the mass is the first; the second likeliest is one of three."""
    drawn = samples([np.log([1.0, 3.0, 1.0, 1.0])], smoothing)
    possible = {0, 1, 2, 3} if smoothing.top_k else {1}
    assert set(drawn.tolist()) == possible


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    rows=st.integers(1, 9),
    vocab_size=st.integers(1, 50),
    members=st.integers(1, 3),
    smoothing=st.builds(
        Smoothing,
        temperature=st.floats(0.05, 20),
        unigram_share=st.sampled_from([0.0, 0.2, 1.0]),
        top_k=st.none() | st.integers(1, 60),
        top_p=st.sampled_from([1.0, 0.9, 0.3, 0.01]),
    ),
    seed=st.integers(0, 2**31),
)
def test_a_token_of_probability_zero_is_never_drawn(
    rows: int, vocab_size: int, members: int, smoothing: Smoothing, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    possible = torch.rand(vocab_size, generator=generator) < 0.5
    possible[int(torch.randint(vocab_size, (1,), generator=generator))] = True
    logits = [
        torch.randn(rows, vocab_size, generator=generator).masked_fill(~possible, -math.inf) for _ in range(members)
    ]
    unigram = torch.rand(vocab_size, generator=generator) * possible
    unigram /= unigram.sum()
    for uniform in (torch.zeros(rows).double(), torch.full((rows,), NEARLY_ONE).double(), numbers(rows, seed=seed)):
        drawn = sample_smoothed(logits, uniform, smoothing, unigram=unigram)
        assert drawn.shape == (rows,)
        assert bool(possible[drawn].all())


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    rows=st.integers(0, 20),
    chunk_rows=st.integers(1, 21),
    smoothing=st.sampled_from([Smoothing(2.0), Smoothing(2.0, unigram_share=0.5, top_k=9, top_p=0.8)]),
)
def test_the_chunks_of_the_computation_do_not_matter(rows: int, chunk_rows: int, smoothing: Smoothing) -> None:
    logits, uniform = [LOGITS[:rows], LOGITS[rows : 2 * rows]], numbers(rows)
    unigram = torch.full((40,), 1 / 40)
    whole = sample_smoothed(logits, uniform, smoothing, unigram=unigram)
    probability = mean_probability(logits, whole)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(corruption._CHUNK_ROWS, "cpu", chunk_rows)
        assert torch.equal(sample_smoothed(logits, uniform, smoothing, unigram=unigram), whole)
        assert torch.equal(mean_probability(logits, whole), probability)


def test_one_model_and_a_temperature_alone_are_sampled_as_ever() -> None:
    uniform = numbers(300)
    assert torch.equal(sample_smoothed([LOGITS], uniform, Smoothing(1.7)), sample_replacements(LOGITS, uniform, 1.7))


def test_no_tensor_of_all_rows_is_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    """At 600 rows and a vocabulary of 30,522 it would hold 146 MB, and as much again while it is made."""
    monkeypatch.setitem(corruption._CHUNK_ROWS, "cpu", 16)
    made: list[int] = []
    real = torch.Tensor.cumsum

    def record(tensor: torch.Tensor, *arguments: Any, **more: Any) -> torch.Tensor:
        made.append(len(tensor))
        return real(tensor, *arguments, **more)

    monkeypatch.setattr(torch.Tensor, "cumsum", record)
    sample_smoothed([LOGITS], numbers(300), Smoothing(2.0, top_p=0.5))
    assert made
    assert max(made) == 16


def test_the_logits_are_left_as_they_are() -> None:
    logits = LOGITS.clone()
    smoothing = Smoothing(2.0, unigram_share=0.5, top_k=3, top_p=0.5)
    sample_smoothed([logits, logits], numbers(300), smoothing, unigram=torch.full((40,), 1 / 40))
    assert torch.equal(logits, LOGITS)


def test_the_replaced_share_falls_as_the_unigram_does_and_as_the_vocabulary_is_cut() -> None:
    """Of a model that gives the original token a half."""
    logits, right = np.log([0.5, 0.2, 0.2, 0.05, 0.05]), 0
    unigram = np.array([0.0, 0.25, 0.25, 0.25, 0.25])

    def replaced(smoothing: Smoothing) -> float:
        return float((samples([logits], smoothing, unigram=unigram) != right).mean())

    assert replaced(Smoothing()) == pytest.approx(0.5, abs=0.01)
    assert replaced(Smoothing(unigram_share=0.4)) == pytest.approx(0.6 * 0.5 + 0.4, abs=0.01)
    assert replaced(Smoothing(top_k=3)) == pytest.approx(0.4 / 0.9, abs=0.01)
    assert replaced(Smoothing(top_p=0.4)) == 0.0


def test_a_share_of_the_unigram_needs_the_unigram() -> None:
    with pytest.raises(ValueError, match=r"unigram_share is 0\.2, but the unigram distribution is not given"):
        samples([FIRST], Smoothing(unigram_share=0.2))


def test_a_temperature_that_is_not_positive_is_refused_with_several_members_too() -> None:
    with pytest.raises(ValueError, match="temperature must be > 0, got 0"):
        samples([FIRST, SECOND], Smoothing(0.0))


def test_the_probability_of_a_token_is_the_members_mean_at_temperature_1() -> None:
    logits = [torch.tensor(np.log([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]])), torch.tensor(np.log([[0.1, 0.3, 0.6]] * 2))]
    found = mean_probability(logits, torch.tensor([0, 2]))
    torch.testing.assert_close(found, torch.tensor([0.3, 0.7]))
    assert mean_probability([LOGITS[:0]], torch.zeros(0, dtype=torch.int64)).shape == (0,)


@pytest.mark.parametrize("smoothing", [Smoothing(2.0), Smoothing(2.0, unigram_share=0.5, top_k=9, top_p=0.8)])
@pytest.mark.parametrize("num_members", [1, 2])
def test_logits_of_half_precision_are_worked_on_in_float32(num_members: int, smoothing: Smoothing) -> None:
    half = [LOGITS.bfloat16(), LOGITS.flip(0).bfloat16()][:num_members]
    whole, unigram = [each.float() for each in half], torch.full((40,), 1 / 40)
    ids = sample_smoothed(whole, numbers(300), smoothing, unigram=unigram)
    assert torch.equal(sample_smoothed(half, numbers(300), smoothing, unigram=unigram), ids)
    expected = sum(each.double().softmax(dim=1).gather(1, ids[:, None]).squeeze(1) for each in half) / num_members
    torch.testing.assert_close(mean_probability(half, ids), expected.float(), rtol=1e-5, atol=0.0)


# The curriculum


def test_everything_is_annealed_along_the_shape_of_the_temperature() -> None:
    """Half-way along a linear schedule half of everything is left; k has grown tenfold, of a hundredfold."""
    curriculum = Curriculum("linear", 3.0, 1.0, 1.0, dropout=0.2, unigram_share=0.6, top_k=4, top_p=0.5, vocab_size=400)
    assert curriculum.at(0.0) == Smoothing(3.0, 0.2, 0.6, 4, 0.5)
    assert curriculum.at(0.5) == Smoothing(2.0, 0.1, 0.3, 40, 0.75)
    assert curriculum.at(1.0) == curriculum.last == Smoothing()


@settings(max_examples=40, deadline=None, derandomize=True)
@given(top_k=st.integers(1, 500), vocab_size=st.integers(1, 500), progress=st.floats(0, 1))
def test_k_is_between_its_start_and_the_whole_vocabulary(top_k: int, vocab_size: int, progress: float) -> None:
    curriculum = Curriculum("exponential", 1.0, 0.2, 1.0, top_k=top_k, vocab_size=vocab_size)
    k = curriculum.at(progress).top_k
    assert k is None or min(top_k, vocab_size) <= k < vocab_size
    assert curriculum.at(0.0).top_k == (top_k if top_k < vocab_size else None)


def test_only_what_is_on_is_worth_a_curve() -> None:
    off = Curriculum("linear", 2.0, 1.0, 1.0)
    assert off.values_at(0.5) == {"temperature": 1.5}
    on = off._replace(dropout=0.2, unigram_share=0.4, top_k=1, top_p=0.5, vocab_size=100)
    assert on.values_at(0.5) == {
        "temperature": 1.5, "auxiliary_dropout": 0.1, "unigram_share": 0.2, "top_k": 10.0, "top_p": 0.75,
    }  # fmt: skip
    assert on.values_at(1.0)["top_k"] == 100.0
