"""Index sets as Rice codes: round trip, one encoding each, bounds, and bytes that nobody wrote."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from templar_jax.compress import rice
from templar_jax.errors import RefusedError

SHAPES = st.tuples(st.integers(1, 40), st.integers(1, 70), st.sampled_from([64, 100, 1024, 4096])).filter(
    lambda shape: shape[1] < shape[2]
)


def sets(rows: int, k: int, size: int, seed: int) -> np.ndarray:
    order = np.argsort(np.random.default_rng(seed).random((rows, size)), -1)
    return np.sort(order[:, :k], -1).astype(np.uint16)


def plain_bits(indices: np.ndarray, size: int) -> int:
    """Bits of the textbook's Rice code, value by value."""
    m = rice.low_bits(indices.shape[1], size)
    return sum(m + 1 + (gap >> m) for row in indices.astype(int) for gap in np.diff(row, prepend=-1) - 1)


@given(shape=SHAPES, seed=st.integers(0, 2**32 - 1), chunk=st.sampled_from([8, 64, 2**16]))
def test_round_trip_in_any_chunks(shape, seed, chunk):
    indices, kept = sets(*shape, seed), rice.CHUNK
    rice.CHUNK = chunk
    try:
        data = rice.encode(indices, shape[2])
        again, used = rice.decode(np.append(data, np.uint8(0xFF)), *shape)
    finally:
        rice.CHUNK = kept
    assert used == data.size and again.dtype == np.uint16 and np.array_equal(again, indices)
    least, most = rice.bounds(*shape)
    assert least <= data.size <= most
    m, values = rice.low_bits(*shape[1:]), indices.size
    assert data.size == -(-values // 8) * m + -(-(plain_bits(indices, shape[2]) - m * values) // 8)


@pytest.mark.parametrize("shape", [(5, 64, 4096), (3, 33, 64), (7, 1, 4096)])
def test_the_bounds_are_reached(shape):
    rows, k, size = shape
    first = np.tile(np.arange(k, dtype=np.uint16), (rows, 1))
    last = first + np.uint16(size - k)
    assert rice.encode(first, size).size == rice.bounds(*shape)[0]
    assert rice.encode(last, size).size == rice.bounds(*shape)[1]
    assert np.array_equal(rice.decode(rice.encode(last, size), *shape)[0], last)


@pytest.mark.parametrize("k", [16, 32, 64, 128, 256])
def test_within_three_percent_of_the_entropy_bound(k):
    indices = sets(400, k, 4096, 0)
    bits = 8 * rice.encode(indices, 4096).size / indices.size
    assert bits < 1.03 * math.log2(math.comb(4096, k)) / k
    assert rice.expected(400, k, 4096) == pytest.approx(bits * indices.size / 8, rel=0.01)


@settings(max_examples=200)
@given(
    shape=SHAPES,
    seed=st.integers(0, 2**32 - 1),
    changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), min_size=1, max_size=4),
)
def test_other_bytes_are_refused_or_the_one_encoding_of_a_set(shape, seed, changes):
    data = rice.encode(sets(*shape, seed), shape[2]).copy()
    for where, change in changes:
        data[int(where * data.size)] ^= change
    try:
        indices, used = rice.decode(data, *shape)
    except RefusedError as error:
        assert error.reason in ("size", "padding", "indices")
        return
    assert (np.diff(indices.astype(int), axis=1) > 0).all() and indices.max() < shape[2]
    assert np.array_equal(rice.encode(indices, shape[2]), data[:used])


def test_each_refusal():
    shape = rows, k, size = 3, 5, 64
    m = rice.low_bits(k, size)
    assert m == 2
    data = rice.encode(sets(*shape, 0), size)
    low = -(-rows * k // 8) * m

    def refused(data: np.ndarray) -> str:
        with pytest.raises(RefusedError) as caught:
            rice.decode(data, *shape)
        return caught.value.reason

    assert refused(data[: low - 1]) == "size"
    assert refused(data[:low]) == "size"
    assert refused(np.append(data[:low], np.zeros(100, np.uint8))) == "size"  # no ones
    padded = data.copy()
    padded[low - 1] |= 0x80  # the sixteenth low part of fifteen values
    assert refused(padded) == "padding"
    all_set = np.append(data[:low], np.full(2, 0xFF, np.uint8))  # fifteen ones, and a sixteenth
    assert refused(all_set) == "padding"
    far = np.append(np.zeros(low, np.uint8), np.packbits([0] * 16 + [1] * 15, bitorder="little"))
    assert refused(far) == "indices"  # one gap beyond the tile
    near = np.append(np.zeros(low, np.uint8), np.packbits([0] * 15 + [1] * 15, bitorder="little"))
    assert refused(near) == "indices"  # 60, and four more: the last is 64
