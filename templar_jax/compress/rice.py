"""Sets of indices at the entropy bound: Golomb-Rice codes of the gaps, in two planes that NumPy reads at once.

k indices out of N, ascending, are k gaps; drawn at random a gap is nearly geometric, for which a Rice code is nearly
optimal (Rice and Plaunt 1971, Golomb 1966). Its fixed part, the low m bits of each gap, goes into one plane; its unary
part (gap >> m zeros, then a one) into another. Nothing has to be parsed bit by bit: the ones of the unary plane are
found all at once. 64 of 4096 take 7.50 bits an index, log2 C(4096, 64) / 64 is 7.36.

A set has one encoding, so equal contributions have equal bytes. The fixed part has at most 8 bits, so where fewer than
10 of 4096 are kept the codes grow longer than they need be (1 of 4096: 17 bits for 12).

Letters: R rows (tiles), k indices of each, N elements of a tile, m low bits, n values.
"""

import numpy as np

from templar_jax.errors import RefusedError

CHUNK = 2**16  # values, and bytes of the unary plane, that are worked on at a time: what stays in the cache
MOST_LOW = 8  # low bits: eight values fill a word of 64 bits


def low_bits(k: int, size: int) -> int:
    """m: the largest with 2**m <= ln 2 * the mean gap (there a bit of the unary part is a coin flip), at most 8."""
    m = 0
    while m < MOST_LOW and 2 ** (m + 1) * 1000 * (k + 1) <= 693 * (size - k):
        m += 1
    return m


def bounds(rows: int, k: int, size: int) -> tuple[int, int]:
    """Fewest and most bytes of `encode`: a row's gaps add up to at most N - k."""
    m = low_bits(k, size)
    least, most = rows * k, rows * (k + ((size - k) >> m))
    return _low_bytes(rows * k, m) + (least + 7) // 8, _low_bytes(rows * k, m) + (most + 7) // 8


def expected(rows: int, k: int, size: int) -> int:
    """Bytes of `encode` for sets drawn at random: the unary part of a geometric gap has 1 / (1 - q) bits."""
    m = low_bits(k, size)
    q = ((size - k) / (size + 1)) ** (2**m)
    return _low_bytes(rows * k, m) + round(rows * k / (1.0 - q) / 8)


def encode(indices_Rk: np.ndarray, size: int) -> np.ndarray:
    """uint16 [R, k], ascending in each row, below `size` -> uint8 [bytes]."""
    m = low_bits(indices_Rk.shape[1], size)
    gaps = np.empty_like(indices_Rk)
    gaps[:, 0] = indices_Rk[:, 0]
    np.subtract(indices_Rk[:, 1:], indices_Rk[:, :-1], out=gaps[:, 1:])
    gaps[:, 1:] -= np.uint16(1)
    flat, low, unary, rest = gaps.reshape(-1), [], [], np.zeros(0, bool)
    for start in range(0, flat.size, CHUNK):
        part = flat[start : start + CHUNK]
        low.append(_pack_low(part, m))
        ones = np.cumsum((part >> np.uint16(m)) + np.uint16(1), dtype=np.int32) + (rest.size - 1)
        bits = np.zeros(ones[-1] + 1, bool)
        bits[: rest.size] = rest
        bits[ones] = True
        whole = bits.size // 8 * 8
        unary.append(np.packbits(bits[:whole], bitorder="little"))
        rest = bits[whole:]
    return np.concatenate([*low, *unary, np.packbits(rest, bitorder="little")])


def decode(data: np.ndarray, rows: int, k: int, size: int) -> tuple[np.ndarray, int]:
    """(uint16 [R, k], bytes used) of what stands at the front of uint8 `data`.

    Raises:
      RefusedError: "size" (ends early), "padding" (bits beyond the last value are set), "indices" (outside of a tile).
    """
    m, count = low_bits(k, size), rows * k
    fixed = _low_bytes(count, m)
    if fixed > data.size:
        raise RefusedError("size", "ends within the indices")
    high, used = _read_unary(data[fixed : bounds(rows, k, size)[1]], count)
    if (high > np.uint32((size - k) >> m)).any():  # from here on no sum can pass 32 bits
        raise RefusedError("indices", f"a gap beyond a tile of {size} elements")
    gaps = (high << np.uint32(m)) + np.uint32(1)
    if m:
        _add_low(gaps, data[:fixed], m)
    indices = gaps.reshape(rows, k)
    np.cumsum(indices, axis=1, out=indices)  # one more than the index
    if not (indices[:, -1] <= size).all():  # the last of a row is its largest
        raise RefusedError("indices", f"beyond a tile of {size} elements")
    return (indices - np.uint32(1)).astype(np.uint16), fixed + used


def _low_bytes(count: int, m: int) -> int:
    """Groups of eight values, m bytes each; the last one is padded with zeros."""
    return -(-count // 8) * m


def _pack_low(gaps: np.ndarray, m: int) -> np.ndarray:
    """The low m bits of uint16 [n] -> uint8 [ceil(n / 8) * m]."""
    values = np.pad(gaps & np.uint16(2**m - 1), (0, -gaps.size % 8)).astype("<u8").reshape(-1, 8)
    words = np.zeros(len(values), "<u8")
    for place in range(8):
        words |= values[:, place] << np.uint64(m * place)
    return words.view(np.uint8).reshape(-1, 8)[:, :m].reshape(-1)


def _add_low(gaps: np.ndarray, plane: np.ndarray, m: int) -> None:
    """Adds the low plane to uint32 [n]. Raises RefusedError."""
    mask = np.uint64(2**m - 1)
    for start in range(0, gaps.size, CHUNK):
        part, groups = gaps[start : start + CHUNK], plane[start // 8 * m : (start + CHUNK) // 8 * m].reshape(-1, m)
        words = np.zeros((len(groups), 8), np.uint8)
        words[:, :m] = groups
        values = np.empty((len(groups), 8), np.uint32)
        for place in range(8):
            values[:, place] = (words.view("<u8")[:, 0] >> np.uint64(m * place)) & mask
        if values.reshape(-1)[part.size :].any():
            raise RefusedError("padding", "bits after the last low part are set")
        part += values.reshape(-1)[: part.size]


def _read_unary(plane: np.ndarray, count: int) -> tuple[np.ndarray, int]:
    """(uint32 [n] lengths of the runs of zeros before each of the first n ones, bytes that they take)."""
    high, found, last = np.empty(count, np.uint32), 0, -1
    for start in range(0, plane.size, CHUNK):
        bits = np.unpackbits(plane[start : start + CHUNK], bitorder="little").view(bool)
        ones = np.flatnonzero(bits)[: count - found] + 8 * start
        if ones.size:
            np.subtract(
                ones, np.concatenate([[last], ones[:-1]]), out=high[found : found + ones.size], casting="unsafe"
            )
            last, found = int(ones[-1]), found + ones.size
        if found == count:
            used = last // 8 + 1
            if int(plane[used - 1]) >> (last % 8 + 1):
                raise RefusedError("padding", "bits after the last index are set")
            return high - np.uint32(1), used
    raise RefusedError("size", "ends within the indices")
