"""Embeddings from co-occurrence: words in the same company are neighbours, and the text alone decides."""

import numpy as np
import numpy.typing as npt
import pytest

from fast_electra_core import cooccurrence
from fast_electra_core.cooccurrence import cooccurrence_embeddings
from fast_electra_core.errors import DataError

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


@pytest.mark.parametrize("tokens", [[], [5], [5] * 50], ids=["no token", "one token", "one word over and over"])
def test_a_text_in_which_no_words_keep_company_is_refused(tokens: list[int]) -> None:
    with pytest.raises(
        DataError, match=rf"no two words of the {len(tokens)} training tokens .*--embedding_init random"
    ):
        cooccurrence_embeddings([np.array(tokens, dtype=np.uint16)], vocab_size=VOCAB_SIZE, width=8)
    with pytest.raises(DataError, match="no two words of the 0 training tokens"):
        cooccurrence_embeddings([], vocab_size=1, width=8)


def test_two_tokens_are_enough() -> None:
    """Each is the other's only company: log(1 / (1 × 1/2)) = log 2, so its one coordinate is ± sqrt(log 2)."""
    vectors = cooccurrence_embeddings([np.array([5, 6], dtype=np.uint16)], vocab_size=VOCAB_SIZE, width=4)
    lengths = np.linalg.norm(vectors, axis=1)
    assert lengths[[5, 6]] == pytest.approx([np.sqrt(np.log(2))] * 2)
    assert np.delete(lengths, [5, 6]).tolist() == [0.0] * (VOCAB_SIZE - 2)
    assert vectors[5] @ vectors[6] == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("tokens", [[5, 6, 7], [5, 6] * 50, [5, 6, 7, 8, 9, 3] * 4], ids=len)
def test_a_text_of_fewer_words_than_the_width_gives_the_same_vectors_every_time(tokens: list[int]) -> None:
    arrays = [np.array(tokens, dtype=np.uint16)]
    results = [cooccurrence_embeddings(arrays, vocab_size=VOCAB_SIZE, width=8) for _ in range(3)]
    assert np.isfinite(results[0]).all()
    assert len({result.tobytes() for result in results}) == 1


@pytest.mark.parametrize("width", [4, 8])
def test_many_words_are_decomposed_sparsely_to_the_same_products(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    dense = cooccurrence_embeddings([stream()], vocab_size=VOCAB_SIZE, width=width)
    monkeypatch.setattr(cooccurrence, "MAX_DENSE_WORDS", 0)
    sparse = cooccurrence_embeddings([stream()], vocab_size=VOCAB_SIZE, width=width)
    np.testing.assert_allclose(sparse @ sparse.T, dense @ dense.T, atol=1e-3)
    again = cooccurrence_embeddings([stream()], vocab_size=VOCAB_SIZE, width=width)
    assert sparse.tobytes() == again.tobytes()


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
