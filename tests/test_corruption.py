"""Sampling is exact, and labels say what really changed.

Several claims are defects of public implementations: see each test's docstring.
"""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from fast_electra_core import corruption
from fast_electra_core.corruption import place, sample_replacements
from fast_electra_core.randomness import Stream, uniforms
from fast_electra_core.selection import find_selected

NEARLY_ONE = 1 - 2**-53


def numbers(rows: int, length: int, *, seed: int = 0) -> torch.Tensor:
    index = torch.arange(rows)
    return uniforms(index, length=length, seed=seed, epoch=torch.zeros_like(index), stream=Stream.SELECT)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_samples_follow_the_softmax_of_the_tempered_logits(temperature: float) -> None:
    logits = np.linspace(-2.0, 2.0, 20)
    num_samples = 40_000
    samples = sample_replacements(
        torch.tensor(logits).expand(num_samples, -1), numbers(num_samples // 100, 100).flatten(), temperature
    )
    weights = np.exp(logits / temperature)
    expected = num_samples * weights / weights.sum()
    assert chisquare(np.bincount(samples.numpy(), minlength=20), expected).pvalue > 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_a_sample_is_the_first_id_whose_cumulative_probability_exceeds_the_number(dtype: torch.dtype) -> None:
    logits = torch.zeros(8, 4, dtype=dtype)  # cumulative: 1/4, 1/2, 3/4, 1
    uniform = torch.tensor([0.0, 0.2499, 0.25, 0.4999, 0.5, 0.75, 0.999, NEARLY_ONE], dtype=torch.float64)
    assert sample_replacements(logits, uniform, 1.0).tolist() == [0, 0, 1, 1, 2, 3, 3, 3]


def test_sampling_at_low_temperature_approaches_the_argmax() -> None:
    logits = torch.randn(200, 30, generator=torch.Generator().manual_seed(0))
    samples = sample_replacements(logits, numbers(2, 100).flatten(), 1e-6)
    assert torch.equal(samples, logits.argmax(dim=1))


def test_sampling_at_high_temperature_approaches_uniform() -> None:
    logits = torch.linspace(-5, 5, 10).expand(20_000, -1)
    samples = sample_replacements(logits, numbers(200, 100).flatten(), 1e6)
    assert chisquare(torch.bincount(samples, minlength=10).numpy()).pvalue > 1e-3


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    possible=st.lists(st.booleans(), min_size=1, max_size=40).filter(any),
    uniform=st.one_of(st.sampled_from([0.0, NEARLY_ONE]), st.floats(0, 1, exclude_max=True)),
    temperature=st.floats(0.01, 100),
)
def test_a_token_of_probability_zero_is_never_drawn(possible: list[bool], uniform: float, temperature: float) -> None:
    logits = torch.arange(len(possible), dtype=torch.float32).fmod(7)
    logits[~torch.tensor(possible)] = -math.inf
    sample = sample_replacements(logits[None], torch.tensor([uniform], dtype=torch.float64), temperature)
    assert possible[int(sample)]


def test_every_id_of_the_vocabulary_can_be_drawn() -> None:
    """ModernBERT's random ids are bounded by the batch's largest id."""
    vocab_size = 1000
    uniform = (torch.arange(vocab_size).double() + 0.5) / vocab_size
    samples = sample_replacements(torch.zeros(vocab_size, vocab_size), uniform, 1.0)
    assert torch.equal(samples, torch.arange(vocab_size))


def test_the_tail_of_a_large_vocabulary_is_not_lost_to_rounding() -> None:
    """One token has almost all probability: in float32 the others, 1e-8 each, would not move the cumulative sum."""
    vocab_size = 100_000
    logits = np.full(vocab_size, math.log(1e-8), dtype=np.float32)
    logits[0] = 0.0
    cumulative = np.cumsum(np.exp(logits.astype(np.float64)))
    wanted = np.linspace(1, vocab_size - 1, 12).astype(np.int64)
    middle = (cumulative[wanted - 1] + cumulative[wanted]) / 2 / cumulative[-1]
    samples = sample_replacements(torch.from_numpy(logits).expand(12, -1), torch.from_numpy(middle), 1.0)
    assert samples.tolist() == wanted.tolist()


@pytest.mark.parametrize("chunk_rows", [1, 7, 50, 51])
def test_the_chunks_of_the_computation_do_not_matter(chunk_rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.randn(50, 300, generator=torch.Generator().manual_seed(1))
    uniform = numbers(1, 50)[0]
    whole = sample_replacements(logits, uniform, 1.5)
    monkeypatch.setitem(corruption._CHUNK_ROWS, "cpu", chunk_rows)
    assert torch.equal(sample_replacements(logits, uniform, 1.5), whole)


def test_no_row_gives_no_sample() -> None:
    assert sample_replacements(torch.zeros(0, 5), torch.zeros(0), 1.0).shape == (0,)


def test_the_logits_are_left_as_they_are() -> None:
    logits = torch.randn(5, 9, generator=torch.Generator().manual_seed(2))
    before = logits.clone()
    sample_replacements(logits, numbers(1, 5)[0], 2.0)
    assert torch.equal(logits, before)


def test_the_replaced_share_grows_with_the_temperature() -> None:
    """A masked language model that is often right: the higher the temperature, the more wrong tokens it puts in."""
    num_rows, vocab_size = 2000, 50
    input_ids = torch.randint(vocab_size, (1, num_rows), generator=torch.Generator().manual_seed(3))
    logits = torch.randn(num_rows, vocab_size, generator=torch.Generator().manual_seed(4))
    logits[torch.arange(num_rows), input_ids[0]] += 5.0
    everywhere = torch.ones_like(input_ids, dtype=torch.bool)
    uniform = numbers(20, 100).flatten()
    shares = [
        place(input_ids, find_selected(everywhere), sample_replacements(logits, uniform, temperature))
        .is_replaced.double()
        .mean()
        for temperature in (0.25, 0.5, 1.0, 2.0, 4.0, 1e6)
    ]
    assert shares == sorted(shares)
    assert shares[0] < 0.1
    assert shares[-1] == pytest.approx(1 - 1 / vocab_size, abs=0.02)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(rows=st.integers(1, 4), length=st.integers(1, 20), seed=st.integers(0, 2**31))
def test_only_selected_positions_change_and_a_sample_equal_to_the_original_is_not_replaced(
    rows: int, length: int, seed: int
) -> None:
    """lucidrains' random tokens land outside the chosen positions."""
    rng = np.random.default_rng(seed)
    input_ids = rng.integers(0, 4, (rows, length))
    is_selected = rng.random((rows, length)) < 0.5
    samples = rng.integers(0, 4, is_selected.sum())  # of four ids, one in four equals the original
    result = place(torch.from_numpy(input_ids), find_selected(torch.from_numpy(is_selected)), torch.from_numpy(samples))
    expected = input_ids.copy()
    expected[is_selected] = samples
    assert result.corrupted_ids.tolist() == expected.tolist()
    assert result.is_replaced.tolist() == (is_selected & (expected != input_ids)).tolist()


def test_placing_leaves_the_input_as_it_is() -> None:
    input_ids = torch.tensor([[5, 6, 7]])
    result = place(input_ids, find_selected(torch.tensor([[True, False, True]])), torch.tensor([5, 9]))
    assert input_ids.tolist() == [[5, 6, 7]]
    assert result.corrupted_ids.tolist() == [[5, 6, 9]]
    assert result.is_replaced.tolist() == [[False, False, True]]


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan])
def test_a_temperature_that_is_not_positive_is_refused(temperature: float) -> None:
    with pytest.raises(ValueError, match="temperature must be > 0, got"):
        sample_replacements(torch.zeros(1, 3), torch.zeros(1), temperature)


@pytest.mark.parametrize(("logits_shape", "uniforms_shape"), [((3,), (3,)), ((2, 3), (3,)), ((2, 3), (2, 1))])
def test_shapes_that_do_not_fit_are_refused(logits_shape: tuple[int, ...], uniforms_shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"logits must be \(N, V\) and uniforms \(N,\), got"):
        sample_replacements(torch.zeros(logits_shape), torch.zeros(uniforms_shape), 1.0)
