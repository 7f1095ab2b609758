"""Counter-based random numbers: every draw is a pure function of where it is used.

Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) in torch int64 arithmetic, the
same bits on every device. Nothing carries state, so resuming is a seek, another world size or micro-batch draws the
same numbers, and offline corruption equals online.

Shapes: B sequences, L tokens per sequence.
"""

from enum import IntEnum

import torch
from torch import Tensor

_MULTIPLIER_0, _MULTIPLIER_1 = 0xD2511F53, 0xCD9E8D57
_WEYL_0, _WEYL_1 = 0x9E3779B9, 0xBB67AE85
_MASK = 0xFFFFFFFF
_ROUNDS = 10


class Stream(IntEnum):
    """What a draw is for; two streams never share a number."""

    ORDER = 0
    SELECT = 1
    SAMPLE = 2
    KEEP = 3
    FLIP = 4
    SPAN = 5
    RING = 6
    AGAIN = 7


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[int, int]) -> tuple[Tensor, ...]:
    """Four int64 tensors of 32-bit words in [0, 2**32), for counters of the same (broadcastable) shape.

    counter and key words are 32-bit values held in int64.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        # The product wraps as signed 64 bit, but its low 64 bits are right, so both halves can be taken from it.
        product0, product1 = c0 * _MULTIPLIER_0, c2 * _MULTIPLIER_1
        high0, low0 = (product0 >> 32) & _MASK, product0 & _MASK
        high1, low1 = (product1 >> 32) & _MASK, product1 & _MASK
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + _WEYL_0) & _MASK, (k1 + _WEYL_1) & _MASK
    return c0, c1, c2, c3


def uniforms(sequence_index: Tensor, *, length: int, seed: int, epoch: Tensor, stream: Stream) -> Tensor:
    """Uniform float64 numbers in [0, 1), (B, length): a pure function of (seed, stream, epoch, sequence, position).

    sequence_index and epoch are int64 (B,), non-negative; seed is in [0, 2**60). Each has 32 random bits.
    """
    num_blocks = -(-length // 4)
    block = torch.arange(num_blocks, device=sequence_index.device)
    low, high = sequence_index & _MASK, (sequence_index >> 32) & _MASK
    # Counter words: position block, sequence (two words), epoch.
    counter = (block[None, :], low[:, None], high[:, None], epoch[:, None] & _MASK)
    words = philox(counter, _key(seed, stream))
    flat = torch.stack([word.expand(len(low), num_blocks) for word in words], dim=2)
    return flat.reshape(len(low), num_blocks * 4)[:, :length].double() * 2.0**-32


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
    keys = _round_keys(seed, epoch)
    result = _feistel(position, half_bits, keys)
    while bool((outside := result >= size).any()):
        result = torch.where(outside, _feistel(result, half_bits, keys), result)
    return result


def _key(seed: int, stream: Stream) -> tuple[int, int]:
    # The stream is part of the key, in the bits above the seed's 60.
    return seed & _MASK, ((seed >> 32) & 0x0FFFFFFF) | (int(stream) << 28)


def _round_keys(seed: int, epoch: Tensor) -> list[Tensor]:
    """A 32-bit word for each round of the Feistel network, of epoch's shape."""
    zero = torch.zeros_like(epoch)
    counter = epoch & _MASK, (epoch >> 32) & _MASK, zero
    return [word for block in range(2) for word in philox((zero + block, *counter), _key(seed, Stream.ORDER))]


def _feistel(value: Tensor, half_bits: int, keys: list[Tensor]) -> Tensor:
    mask = (1 << half_bits) - 1
    left, right = value >> half_bits, value & mask
    for key in keys:
        left, right = right, left ^ (_mix(right ^ key) & mask)
    return (left << half_bits) | right


def _mix(word: Tensor) -> Tensor:
    """MurmurHash3's fmix32 (Appleby, github.com/aappleby/smhasher, public domain): every bit moves every other."""
    word = ((word ^ (word >> 16)) * 0x85EBCA6B) & _MASK
    word = ((word ^ (word >> 13)) * 0xC2B2AE35) & _MASK
    return word ^ (word >> 16)
