"""Bytes: round trip, exact size, and everything a peer might send instead."""

import functools
import hashlib
import math
import struct

import numpy as np
import pytest
from compress_numpy import SMALL, run_of
from hypothesis import given
from hypothesis import strategies as st

from templar_jax.compress import codec
from templar_jax.compress.packed import Packed
from templar_jax.compress.tiles import tilings
from templar_jax.config import RunConfig
from templar_jax.errors import RefusedError

QUANTIZERS = ("sign1", "v213")
REASONS = {"size", "version", "quantizer", "padding", "indices", "scales"}


def any_packed(run: RunConfig, seed: int) -> dict[str, Packed]:
    """Random valid content; no device needed."""
    rng = np.random.default_rng(seed)
    out = {}
    for name, tiling in tilings(run).items():
        shape, stack = tiling.packed_shape, tiling.param.shape[: tiling.param.stack]
        order = np.argsort(rng.random((*shape[:-1], tiling.size)), -1)[..., : tiling.k]
        scales = (
            rng.integers(0, 256, shape[:-1]).astype(np.uint8)
            if run.compress.quantizer == "sign1"
            else rng.standard_normal((*stack, 4)).astype(np.float32)
        )
        out[name] = Packed(np.sort(order, -1).astype(np.uint16), rng.integers(0, 4, shape).astype(np.uint8), scales)
    return out


@functools.cache
def example(quantizer: str) -> tuple[RunConfig, bytes]:
    run = run_of(SMALL, quantizer=quantizer, k=33)
    return run, codec.encode(run, any_packed(run, 0))


def equal(a: dict[str, Packed], b: dict[str, Packed]) -> bool:
    return a.keys() == b.keys() and all(
        x.dtype == y.dtype and x.shape == y.shape and (x == y).all()
        for name in a
        for x, y in zip(a[name], b[name], strict=True)
    )


def refused(run: RunConfig, data: bytes) -> str:
    with pytest.raises(RefusedError) as caught:
        codec.decode(run, data)
    return caught.value.reason


@given(
    quantizer=st.sampled_from(QUANTIZERS),
    tile=st.sampled_from([8, 16, 64]),
    k=st.sampled_from([1, 3, 31, 64]),
    seed=st.integers(0, 2**32 - 1),
)
def test_round_trip_within_the_bounds(quantizer, tile, k, seed):
    run = run_of(SMALL, quantizer=quantizer, tile=tile, k=k)
    packed = any_packed(run, seed)
    data = codec.encode(run, packed)
    least, most = codec.plaintext_bounds(run)
    assert least <= len(data) <= most
    again = codec.decode(run, data)
    assert equal(packed, again)
    assert codec.encode(run, again) == data


@given(st.lists(st.integers(0, 3), max_size=9))
def test_2_bit_codes(values):
    data = codec.pack_codes(np.array(values, np.uint8))
    assert int.from_bytes(data.tobytes(), "little") == sum(value << 2 * i for i, value in enumerate(values))
    np.testing.assert_array_equal(codec.unpack_codes(data, len(values)), values)


def test_golden_bytes():
    digests = {name: hashlib.sha256(example(name)[1]).hexdigest()[:16] for name in QUANTIZERS}
    assert digests == {"sign1": "71bf07a67ed8f4d7", "v213": "775367a04abdb216"}, (
        "the wire format changed: old and new nodes would refuse each other. If it was meant, raise codec.VERSION "
        "and put the new digests here."
    )


def test_the_payload_is_within_three_percent_of_the_entropy_bound():
    """log2 C(N, k) bits of a tile's index set, 2 bits a value, 8 bits a tile; at 64 of 4096 and for random sets."""
    run = run_of()
    cut = tilings(run).values()
    sets = sum(t.kept // t.k * math.log2(math.comb(t.size, t.k)) for t in cut if not t.full)
    bound = (sets + sum(2 * t.kept + 8 * t.kept // t.k for t in cut)) / 8
    size = len(codec.encode(run, any_packed(run, 0)))
    assert bound < size < 1.03 * bound, f"{size / bound:.4f} times the bound"
    assert size == pytest.approx(codec.expected_bytes(run), rel=0.01)


@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_each_refusal(quantizer):
    run, data = example(quantizer)
    other = QUANTIZERS[1 - QUANTIZERS.index(quantizer)]
    header = list(codec.HEADER.unpack_from(data))

    def with_header(place: int, value) -> bytes:
        changed = [*header]
        changed[place] = value
        return codec.HEADER.pack(*changed) + data[codec.HEADER.size :]

    assert refused(run, b"") == "size"
    assert refused(run, data[:-1]) == "size"
    assert refused(run, data + b"\0") == "size"
    assert refused(run, with_header(0, b"ZZZZ")) == "version"
    assert refused(run, with_header(1, codec.VERSION + 1)) == "version"
    assert refused(run, with_header(2, codec.QUANTIZERS[other])) == "quantizer"
    assert refused(run, with_header(3, 1)) == "version"
    assert refused(run, with_header(4, header[4] + 1)) == "size"
    assert refused(run_of(SMALL, quantizer=quantizer, k=34), data) in REASONS  # what was meant lies elsewhere


def test_index_beyond_a_small_tile():
    run = run_of(SMALL, tile=16, k=4)
    packed = any_packed(run, 0)
    indices = packed["layers/q"].indices.copy()
    indices[1, 2, -1] = 256
    bad = {**packed, "layers/q": packed["layers/q"]._replace(indices=indices)}
    assert refused(run, codec.encode(run, bad)) == "indices"


def test_padding_bits():
    with pytest.raises(RefusedError, match="padding"):
        codec.unpack_codes(np.array([0b01000000], np.uint8), 3)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e30])
def test_values_that_are_no_numbers(value):
    run = run_of(SMALL, quantizer="v213")
    packed = any_packed(run, 0)
    packed["embed"].scales[1] = value
    assert refused(run, codec.encode(run, packed)) == "scales"


@given(
    quantizer=st.sampled_from(QUANTIZERS),
    changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), min_size=1, max_size=4),
    head=st.booleans(),
)
def test_mutated_bytes_are_refused_or_valid(quantizer, changes, head):
    """Nothing but RefusedError, and what is accepted is the one encoding of what it decodes to."""
    run, data = example(quantizer)
    mutated = bytearray(data)
    for where, change in changes:
        mutated[int(where * (codec.HEADER.size if head else len(data)))] ^= change
    accepted_or_refused(run, bytes(mutated))


@given(quantizer=st.sampled_from(QUANTIZERS), seed=st.integers(0, 2**32 - 1), good_header=st.booleans())
def test_random_bytes_are_refused_or_valid(quantizer, seed, good_header):
    run, data = example(quantizer)
    noise = np.random.default_rng(seed).bytes(len(data))
    accepted_or_refused(run, data[: codec.HEADER.size] + noise[codec.HEADER.size :] if good_header else noise)


def accepted_or_refused(run: RunConfig, data: bytes) -> None:
    try:
        packed = codec.decode(run, data)
    except RefusedError as error:
        assert error.reason in REASONS
        return
    assert codec.encode(run, packed) == data
    for name, tiling in tilings(run).items():
        indices, codes, _ = packed[name]
        assert indices.shape == codes.shape == tiling.packed_shape
        assert (np.diff(indices.astype(int)) > 0).all() and indices.max() < tiling.size and codes.max() < 4


def test_header_is_little_endian():
    _, data = example("sign1")
    assert data[:4] == b"TJXC" and struct.unpack("<H", data[4:6]) == (codec.VERSION,) and data[6:8] == b"\0\0"
