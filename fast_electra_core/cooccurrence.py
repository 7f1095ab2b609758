"""Token embeddings from co-occurrence counts: a start that already knows which words keep company.

A small masked language model sits on the unigram plateau for millions of tokens before its attention finds anything to
attend to. Starting from these embeddings it leaves at once (figures: docs/LOG.md).
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_matrix
from scipy.sparse.linalg import svds

from fast_electra_core.errors import DataError

WINDOW = 4
MAX_DENSE_WORDS = 1024
"""Up to so many words are decomposed densely (within a second). With few words the rank may be below the width, and
ARPACK then goes on from random vectors."""
MAX_TOKENS = 4_000_000
"""More text moves the counts little and costs memory: about 100 bytes per token."""


def cooccurrence_embeddings(
    streams: Sequence[npt.NDArray[np.uint16 | np.uint32]], *, vocab_size: int, width: int
) -> npt.NDArray[np.float32]:
    """Embeddings (vocab_size, width) float32: a truncated SVD, U sqrt(S), of the positive pointwise mutual information.

    Counts run over pairs at most WINDOW tokens apart, weighted by 1 / distance, in the first MAX_TOKENS tokens; context
    frequencies are smoothed by the power 0.75 (Levy, Goldberg & Dagan, TACL 2015, secs. 3.1 and 3.2). The result is a
    pure function of the arguments. Where there are no more than `width` words the columns left over are 0.

    Raises:
        DataError: no two words stand together more often than by chance: the text is empty, or one word.
    """
    tokens = _head(streams)
    counts = _symmetric_counts(tokens, vocab_size).tocoo()
    totals = np.asarray(counts.sum(axis=1)).ravel()
    smoothed = totals**0.75
    smoothed /= smoothed.sum() or 1.0
    information = np.log(counts.data / (totals[counts.row] * smoothed[counts.col]))
    keep = information > 0
    positive = csr_matrix(
        (information[keep].astype(np.float32), (counts.row[keep], counts.col[keep])), shape=(vocab_size,) * 2
    )
    if not positive.nnz:
        raise DataError(
            f"no two words of the {len(tokens):,} training tokens stand together more often than by chance; give more "
            "text, or --embedding_init random"
        )
    words = np.flatnonzero(totals)
    embeddings = np.zeros((vocab_size, width), dtype=np.float32)
    if len(words) <= MAX_DENSE_WORDS:
        left, singular, _ = np.linalg.svd(positive[words][:, words].toarray())
        rank = min(width, len(words))
        embeddings[words, :rank] = left[:, :rank] * np.sqrt(singular[:rank])
    else:
        rank = min(width, vocab_size - 1)
        start = np.ones(vocab_size, dtype=np.float32)  # ARPACK's own start is random
        left, singular, _ = svds(positive, k=rank, v0=start)
        embeddings[:, :rank] = left * np.sqrt(singular)
    return embeddings


def _head(streams: Sequence[npt.NDArray[np.uint16 | np.uint32]]) -> npt.NDArray[np.int64]:
    parts, left = [], MAX_TOKENS
    for stream in streams:
        parts.append(np.asarray(stream[:left], dtype=np.int64))
        left -= len(parts[-1])
        if left <= 0:
            break
    return np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64)


def _symmetric_counts(tokens: npt.NDArray[np.int64], vocab_size: int) -> csr_matrix:
    counts = csr_matrix((vocab_size, vocab_size), dtype=np.float64)
    for distance in range(1, WINDOW + 1):
        left, right = tokens[:-distance], tokens[distance:]
        weights = np.full(len(left), 1.0 / distance)
        counts = counts + csr_matrix((weights, (left, right)), shape=(vocab_size, vocab_size))
    return counts + counts.T
