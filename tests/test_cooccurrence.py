"""Embeddings from co-occurrence: words in the same company are neighbours, and the text alone decides."""

import numpy as np
import numpy.typing as npt
import pytest

from fast_electra_core import cooccurrence
from fast_electra_core.cooccurrence import cooccurrence_embeddings

VOCAB_SIZE = 40
Vector = npt.NDArray[np.float32]


def stream(*, seed: int = 0) -> npt.NDArray[np.uint16]:
    """Sentences on two topics, words 10-19 and 20-29; 30 and 31 stand wherever the other could."""
    rng = np.random.default_rng(seed)
    sentences = []
    for _ in range(2000):
        words = rng.integers(10, 20, 6) if rng.random() < 0.5 else rng.integers(20, 30, 6)
        if words[0] < 20:
            words[rng.integers(6)] = rng.integers(30, 32)
        sentences.append(np.append(words, 3))
    return np.concatenate(sentences).astype(np.uint16)


def cosine(first: Vector, second: Vector) -> float:
    return float(first @ second / np.linalg.norm(first) / np.linalg.norm(second))


def test_words_with_the_same_contexts_get_nearly_the_same_vectors() -> None:
    vectors = cooccurrence_embeddings([stream()], vocab_size=VOCAB_SIZE, width=4)
    assert cosine(vectors[30], vectors[31]) > 0.95
    assert cosine(vectors[30], vectors[15]) > 0.5
    assert abs(cosine(vectors[30], vectors[25])) < 0.2


def test_the_result_is_a_pure_function_of_the_text() -> None:
    first = cooccurrence_embeddings([stream()], vocab_size=VOCAB_SIZE, width=8)
    cooccurrence_embeddings([stream(seed=1)], vocab_size=VOCAB_SIZE, width=8)
    np.random.seed(3)
    again = cooccurrence_embeddings([stream()], vocab_size=VOCAB_SIZE, width=8)
    assert first.tobytes() == again.tobytes()
    other = cooccurrence_embeddings([stream(seed=1)], vocab_size=VOCAB_SIZE, width=8)
    assert not np.allclose(first, other)


def test_shards_are_read_as_one_text() -> None:
    text = stream()
    whole = cooccurrence_embeddings([text], vocab_size=VOCAB_SIZE, width=8)
    parts = cooccurrence_embeddings([text[:777], text[777:]], vocab_size=VOCAB_SIZE, width=8)
    assert whole.tobytes() == parts.tobytes()


def test_only_the_head_of_a_long_text_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    text = stream()
    expected = cooccurrence_embeddings([text[:1000]], vocab_size=VOCAB_SIZE, width=8)
    monkeypatch.setattr(cooccurrence, "MAX_TOKENS", 1000)
    found = cooccurrence_embeddings([text[:600], text[600:1200], text[1200:]], vocab_size=VOCAB_SIZE, width=8)
    assert found.tobytes() == expected.tobytes()


@pytest.mark.parametrize("width", [1, 8, 39, 40, 64])
def test_a_vocabulary_smaller_than_the_width_leaves_the_last_columns_zero(width: int) -> None:
    vectors = cooccurrence_embeddings([stream()], vocab_size=VOCAB_SIZE, width=width)
    assert vectors.shape == (VOCAB_SIZE, width)
    assert vectors.dtype == np.float32
    assert np.isfinite(vectors).all()
    assert not vectors[:, VOCAB_SIZE - 1 :].any()


def test_words_that_never_occur_get_no_direction() -> None:
    vectors = cooccurrence_embeddings([stream()], vocab_size=VOCAB_SIZE, width=8)
    assert np.abs(vectors[35]).max() < 1e-3 * np.abs(vectors[30]).max()


def test_products_of_vectors_are_those_of_the_positive_mutual_information() -> None:
    """A dense, slow computation of the same: U S Uᵀ of the symmetric part, checked through its singular values."""
    text = stream()[:700].astype(int)
    counts = np.zeros((VOCAB_SIZE, VOCAB_SIZE))
    for position, word in enumerate(text):
        for distance in range(1, 5):
            if position + distance < len(text):
                counts[word, text[position + distance]] += 1 / distance
                counts[text[position + distance], word] += 1 / distance
    totals = counts.sum(axis=1)
    contexts = totals**0.75 / (totals**0.75).sum()
    information = np.zeros_like(counts)
    for row, column in zip(*counts.nonzero(), strict=True):
        information[row, column] = max(0.0, np.log(counts[row, column] / (totals[row] * contexts[column])))
    left, singular, _ = np.linalg.svd(information)
    expected = (left[:, :6] * singular[:6]) @ left[:, :6].T
    vectors = cooccurrence_embeddings([text.astype(np.uint16)], vocab_size=VOCAB_SIZE, width=6)
    np.testing.assert_allclose(vectors @ vectors.T, expected, atol=1e-3)
