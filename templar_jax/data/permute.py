"""A keyed permutation of range(n) without a table: any position's image in O(1) time and memory.

A balanced Feistel network of 8 rounds permutes [0, 4^h) with 4^h >= n > 4^(h-1); an image outside range(n) is
permuted again until it falls inside (cycle walking: Black and Rogaway, "Ciphers with arbitrary finite domains", 2002),
at most 4 times on average. Integers only, so the same on every machine and for ever.
"""

import hashlib

import numpy as np

ROUNDS = 8


def permute(key: bytes, n: int, index: np.ndarray) -> np.ndarray:
    """Images of `index` (any shape, each in range(n)) under the permutation that `key` names; uint64, same shape.

    Raises:
      ValueError: an index outside range(n), or n not in [1, 2^62].
    """
    index = np.asarray(index)
    if not 1 <= n <= 1 << 62:
        raise ValueError(f"a permutation of {n} things")
    if index.size and (index.min() < 0 or index.max() >= n):
        raise ValueError(f"index outside range({n})")
    half = max(1, ((n - 1).bit_length() + 1) // 2)
    keys = [np.uint64(int.from_bytes(hashlib.sha256(key + bytes([r])).digest()[:8], "little")) for r in range(ROUNDS)]
    image = index.astype(np.uint64)
    outside = np.ones(image.shape, bool)
    while outside.any():
        image[outside] = _feistel(keys, half, image[outside])
        outside = image >= n
    return image


def _feistel(keys: list[np.uint64], half: int, value: np.ndarray) -> np.ndarray:
    shift, mask = np.uint64(half), np.uint64((1 << half) - 1)
    left, right = value >> shift, value & mask
    for key in keys:
        left, right = right, left ^ (_mix(right ^ key) & mask)
    return (left << shift) | right


def _mix(x: np.ndarray) -> np.ndarray:
    """The finaliser of splitmix64 (Steele, Lea, Flood, 2014); wraps modulo 2^64."""
    x = (x + np.uint64(0x9E3779B97F4A7C15)) & np.uint64(0xFFFFFFFFFFFFFFFF)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
