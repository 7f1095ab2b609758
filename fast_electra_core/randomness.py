"""Counter-based random numbers: every draw is a pure function of where it is used.

Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) in integer arithmetic, the same
bits on every device. Nothing carries state, so resuming is a seek, another world size or micro-batch draws the same
numbers, and offline corruption equals online. What belongs to a batch is drawn by NumPy on the CPU, where batches are
made, in a third of the time that torch takes (docs/LOG.md).

Shapes: B sequences, L tokens per sequence.
"""

from enum import IntEnum
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

_MULTIPLIER_0, _MULTIPLIER_1 = 0xD2511F53, 0xCD9E8D57
_WEYL_0, _WEYL_1 = 0x9E3779B9, 0xBB67AE85
_MASK = 0xFFFFFFFF
_ROUNDS = 10

Array = npt.NDArray[Any]  # uint64; said so, mypy would take its sums with numbers for signed
Words = TypeVar("Words", Tensor, Array)


class Stream(IntEnum):
    """What a draw is for; two streams never share a number."""

    ORDER = 0
    SELECT = 1
    SAMPLE = 2
    KEEP = 3
    SPAN = 5
    RING = 6
    AGAIN = 7


def philox(counter: tuple[Words, Words, Words, Words], key: tuple[int, int]) -> tuple[Words, Words, Words, Words]:
    """Four tensors (int64) or arrays (uint64) of 32-bit words in [0, 2**32), as the counters are, and of their
    (broadcastable) shape.

    counter and key words are 32-bit values.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        # An int64's product wraps as signed, but its low 64 bits are right, so both halves can be taken from it.
        low0, low1 = c0 * _MULTIPLIER_0, c2 * _MULTIPLIER_1
        high0, high1 = low0 >> 32, low1 >> 32
        for word in (high0, high1, low0, low1):
            word &= _MASK  # in place: what is made anew costs more than what is computed
        c0, c1, c2, c3 = high1 ^ c1, low1, high0 ^ c3, low0
        c0 ^= k0
        c2 ^= k1
        k0, k1 = (k0 + _WEYL_0) & _MASK, (k1 + _WEYL_1) & _MASK
    return c0, c1, c2, c3


def uniforms(sequence_index: Tensor, *, length: int, seed: int, epoch: Tensor, stream: Stream) -> Tensor:
    """Uniform float64 numbers in [0, 1), (B, length): a pure function of (seed, stream, epoch, sequence, position).

    sequence_index and epoch are int64 (B,), non-negative; seed is in [0, 2**60). Each has 32 random bits.
    """
    num_blocks = -(-length // 4)
    block, sequence = np.arange(num_blocks, dtype=np.uint64)[None, :], _unsigned(sequence_index)[:, None]
    # Counter words: position block, sequence (two words), epoch.
    counter = (block, sequence & _MASK, sequence >> 32, _unsigned(epoch)[:, None] & _MASK)
    drawn = np.empty((len(sequence), num_blocks, 4))
    for index, words in enumerate(philox(counter, _key(seed, stream))):
        drawn[:, :, index] = words
    drawn *= 2.0**-32
    return torch.from_numpy(np.ascontiguousarray(drawn.reshape(len(sequence), num_blocks * 4)[:, :length]))


def fresh(uniform: Tensor) -> Tensor:
    """Other uniform float64 numbers in [0, 1), of the same shape: for a second draw where each number of `uniform` (in
    [0, 1), with 32 random bits, as from `uniforms`) serves a first one. A pure function of each number alone.
    """
    word = (uniform.double() * 2.0**32).long()
    zero = torch.zeros_like(word)
    return philox((word, zero, zero, zero), _key(0, Stream.AGAIN))[0].double() * 2.0**-32


def shuffled_index(position: Tensor, *, size: int, seed: int, epoch: Tensor) -> Tensor:
    """Where each position of an epoch's random order points: a permutation of range(size), computed in O(1) each.

    A Feistel network of 8 rounds over the smallest even-bit domain that holds `size`, walked along its cycle until it
    lands inside (Black & Rogaway, "Ciphers with arbitrary finite domains", 2002): at most 4 applications are expected.
    Philox gives each epoch its round keys; MurmurHash3's finaliser mixes, at a tenth of the operations of a Philox per
    round. position and epoch are int64 of the same shape; positions are in [0, size), size is at most 2**62.

    Raises:
        ValueError: size < 1, or a position outside [0, size), for which the walk would not end.
    """
    if size < 1 or bool(((position < 0) | (position >= size)).any()):
        raise ValueError(f"positions must be in [0, size), got size {size}, positions {position.tolist()[:8]}")
    half_bits = max(1, -(-(size - 1).bit_length() // 2))
    keys = _round_keys(seed, _unsigned(epoch))
    result = _feistel(_unsigned(position), half_bits, keys)
    while bool((outside := result >= size).any()):
        result = np.where(outside, _feistel(result, half_bits, keys), result)
    return torch.from_numpy(result.astype(np.int64))


def _unsigned(tensor: Tensor) -> Array:
    words: Array = tensor.numpy().astype(np.uint64)
    return words


def _key(seed: int, stream: Stream) -> tuple[int, int]:
    # The stream is part of the key, in the bits above the seed's 60.
    return seed & _MASK, ((seed >> 32) & 0x0FFFFFFF) | (int(stream) << 28)


def _round_keys(seed: int, epoch: Array) -> list[Array]:
    """A 32-bit word for each round of the Feistel network, of epoch's shape."""
    zero = np.zeros_like(epoch)
    counter = epoch & _MASK, epoch >> 32, zero
    return [word for block in range(2) for word in philox((zero + block, *counter), _key(seed, Stream.ORDER))]


def _feistel(value: Array, half_bits: int, keys: list[Array]) -> Array:
    mask = (1 << half_bits) - 1
    left, right = value >> half_bits, value & mask
    for key in keys:
        left, right = right, left ^ (_mix(right ^ key) & mask)
    return (left << half_bits) | right


def _mix(word: Array) -> Array:
    """MurmurHash3's fmix32 (Appleby, github.com/aappleby/smhasher, public domain): every bit moves every other."""
    word = ((word ^ (word >> 16)) * 0x85EBCA6B) & _MASK
    word = ((word ^ (word >> 13)) * 0xC2B2AE35) & _MASK
    word ^= word >> 16
    return word
