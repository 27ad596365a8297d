"""A contribution as bytes: one fixed binary schema, host only. Whatever a peer sends is checked here.

    header (16 bytes)   magic "TJXC", version u16, quantiser u8, coder u8, bytes that follow u64; little-endian
    per parameter, in the order of the table:
      scales            sign1: u8 per tile; v213: four f32 per unit
      codes             2 bits each, the first in the lowest bits of a byte
      indices           by the coder; absent where tiles are full

Every count follows from the run's config; nothing is allocated before the length has been checked. Coder 0 writes
12-bit indices, two in three bytes, and knows its size exactly; a coder at the entropy bound takes the next
number in `CODERS`.

Letters: T tiles of a unit, k values kept of each.
"""

import math
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from templar_jax.compress.packed import Packed
from templar_jax.compress.quantize import CODES
from templar_jax.compress.tiles import Tiling, tilings
from templar_jax.config import RunConfig
from templar_jax.errors import RefusedError

MAGIC = b"TJXC"
VERSION = 1
HEADER = struct.Struct("<4sHBBQ")
QUANTIZERS = {"sign1": 0, "v213": 1}
FIXED = 0  # the coder that `encode` uses
MAX_VALUE = np.float32(2.0**32)  # of a v213 table


@dataclass(frozen=True)
class Coder:
    """How the indices of one parameter are written.

    encode: (indices uint16 [rows, k], size) -> uint8 [n].
    decode: (everything that is left uint8 [>= n], rows, k, size) -> (uint16 [rows, k], n); RefusedError where the
      bytes are not what encode writes.
    bounds: (rows, k, size) -> fewest and most bytes.
    """

    encode: Callable[[np.ndarray, int], np.ndarray]
    decode: Callable[[np.ndarray, int, int, int], tuple[np.ndarray, int]]
    bounds: Callable[[int, int, int], tuple[int, int]]


def pack_12_bits(values: np.ndarray) -> np.ndarray:
    """uint16 [n] below 4096 -> uint8 [ceil(1.5 n)]; an odd last value is padded with four zero bits."""
    pairs = values.astype(np.uint16)
    if pairs.size % 2:
        pairs = np.append(pairs, np.uint16(0))
    first, second = pairs[0::2], pairs[1::2]
    packed = np.empty((first.size, 3), np.uint8)
    packed[:, 0] = first & 0xFF
    packed[:, 1] = (first >> 8) | ((second & 0xF) << 4)
    packed[:, 2] = second >> 4
    return packed.reshape(-1)[: _bytes_12_bits(values.size)]


def unpack_12_bits(data: np.ndarray, count: int) -> np.ndarray:
    """The inverse of `pack_12_bits`.

    Raises:
      RefusedError: "padding", bits beyond the last value are set.
    """
    if count % 2:
        if data[-1] >> 4:
            raise RefusedError("padding", "bits after the last index are set")
        data = np.append(data, np.uint8(0))
    triples = data.reshape(-1, 3).astype(np.uint16)
    pairs = np.empty((triples.shape[0], 2), np.uint16)
    pairs[:, 0] = triples[:, 0] | ((triples[:, 1] & 0xF) << 8)
    pairs[:, 1] = (triples[:, 1] >> 4) | (triples[:, 2] << 4)
    return pairs.reshape(-1)[:count]


def _bytes_12_bits(count: int) -> int:
    return (3 * count + 1) // 2


def _encode_fixed(indices: np.ndarray, size: int) -> np.ndarray:
    return pack_12_bits(indices.reshape(-1))


def _decode_fixed(data: np.ndarray, rows: int, k: int, size: int) -> tuple[np.ndarray, int]:
    used = _bytes_12_bits(rows * k)
    if used > data.size:
        raise RefusedError("size", "ends within the indices")
    indices = unpack_12_bits(data[:used], rows * k).reshape(rows, k)
    if not (indices[:, 1:] > indices[:, :-1]).all():
        raise RefusedError("indices", "not strictly ascending within a tile")
    if not (indices[:, -1] < size).all():
        raise RefusedError("indices", f"beyond a tile of {size} elements")
    return indices, used


def _fixed_bounds(rows: int, k: int, size: int) -> tuple[int, int]:
    return _bytes_12_bits(rows * k), _bytes_12_bits(rows * k)


CODERS: Mapping[int, Coder] = {FIXED: Coder(_encode_fixed, _decode_fixed, _fixed_bounds)}


def pack_codes(codes: np.ndarray) -> np.ndarray:
    """uint8 [n] of 0..3 -> uint8 [ceil(n / 4)], padded with zero bits."""
    quads = np.pad(codes, (0, -codes.size % 4)).reshape(-1, 4)
    return quads[:, 0] | (quads[:, 1] << 2) | (quads[:, 2] << 4) | (quads[:, 3] << 6)


def unpack_codes(data: np.ndarray, count: int) -> np.ndarray:
    """The inverse of `pack_codes`.

    Raises:
      RefusedError: "padding", bits beyond the last code are set.
    """
    quads = np.empty((data.size, 4), np.uint8)
    for place in range(4):
        quads[:, place] = (data >> (2 * place)) & 3
    codes = quads.reshape(-1)
    if codes[count:].any():
        raise RefusedError("padding", "bits after the last code are set")
    return codes[:count]


def _scale_bytes(run: RunConfig, tiling: Tiling) -> int:
    units = tiling.param.units
    return units * tiling.tiles if run.compress.quantizer == "sign1" else units * CODES * 4


def _code_bytes(tiling: Tiling) -> int:
    return (tiling.kept + 3) // 4


def plaintext_bounds(run: RunConfig) -> tuple[int, int]:
    """Fewest and most bytes of an encoded contribution of this run, over all coders."""
    totals = []
    for coder in CODERS.values():
        low = high = HEADER.size
        for tiling in tilings(run).values():
            fixed = _scale_bytes(run, tiling) + _code_bytes(tiling)
            least, most = (
                (0, 0) if tiling.full else coder.bounds(tiling.param.units * tiling.tiles, tiling.k, tiling.size)
            )
            low, high = low + fixed + least, high + fixed + most
        totals.append((low, high))
    return min(low for low, _ in totals), max(high for _, high in totals)


def encode(run: RunConfig, packed: Mapping[str, Packed]) -> bytes:
    """The contribution's bytes. `packed` is what a compressor of the same run returned."""
    coder = CODERS[FIXED]
    parts = []
    for name, tiling in tilings(run).items():
        one = packed[name]
        scales = np.asarray(one.scales)
        parts.append(scales.astype("<f4" if scales.dtype == np.float32 else np.uint8).tobytes())
        parts.append(pack_codes(np.asarray(one.codes).reshape(-1)).tobytes())
        if not tiling.full:
            parts.append(coder.encode(np.asarray(one.indices).reshape(-1, tiling.k), tiling.size).tobytes())
    length = sum(len(part) for part in parts)
    return HEADER.pack(MAGIC, VERSION, QUANTIZERS[run.compress.quantizer], FIXED, length) + b"".join(parts)


def decode(run: RunConfig, data: bytes) -> dict[str, Packed]:
    """The contribution that a peer's bytes stand for; equal bytes if encoded again.

    Raises:
      RefusedError: with reason "size", "version", "quantizer", "coder", "padding", "indices" or "scales": the bytes
        are not what `encode` writes for this run. Nothing else is raised, whatever the bytes.
    """
    least, most = plaintext_bounds(run)
    if not least <= len(data) <= most:
        raise RefusedError("size", f"{len(data)} bytes, this run's contributions have {least} to {most}")
    magic, version, quantizer, coder, length = HEADER.unpack_from(data)
    if magic != MAGIC or version != VERSION:
        raise RefusedError("version", f"{magic!r} {version}, expected {MAGIC!r} {VERSION}")
    if quantizer != QUANTIZERS[run.compress.quantizer]:
        raise RefusedError("quantizer", f"{quantizer}, this run uses {run.compress.quantizer}")
    if coder not in CODERS:
        raise RefusedError("coder", f"{coder} is unknown here")
    if length != len(data) - HEADER.size:
        raise RefusedError("size", f"header says {length} bytes, {len(data) - HEADER.size} follow")
    reader = _Reader(np.frombuffer(data, np.uint8, offset=HEADER.size))
    packed = {name: _decode_param(run, tiling, CODERS[coder], reader) for name, tiling in tilings(run).items()}
    if reader.left:
        raise RefusedError("size", f"{reader.left} bytes too many")
    return packed


class _Reader:
    """Takes bytes off the front."""

    def __init__(self, data: np.ndarray) -> None:
        self.data = data

    @property
    def left(self) -> int:
        return self.data.size

    def take(self, count: int) -> np.ndarray:
        if count > self.data.size:
            raise RefusedError("size", "ends early")
        taken, self.data = self.data[:count], self.data[count:]
        return taken


def _decode_param(run: RunConfig, tiling: Tiling, coder: Coder, reader: _Reader) -> Packed:
    shape, stack = tiling.packed_shape, tiling.param.shape[: tiling.param.stack]
    scales = reader.take(_scale_bytes(run, tiling))
    if run.compress.quantizer == "sign1":
        scales = scales.reshape(*stack, tiling.tiles)
    else:
        scales = scales.copy().view("<f4").astype(np.float32).reshape(*stack, CODES)
        if not (np.abs(scales) <= MAX_VALUE).all():  # also refuses what is not a number
            raise RefusedError("scales", f"a value is not a number of at most {MAX_VALUE}")
    codes = unpack_codes(reader.take(_code_bytes(tiling)), tiling.kept).reshape(shape)
    if tiling.full:
        indices = np.broadcast_to(np.arange(tiling.k, dtype=np.uint16), shape)
    else:
        indices, used = coder.decode(reader.data, math.prod(shape[:-1]), tiling.k, tiling.size)
        reader.take(used)
        indices = indices.reshape(shape)
    return Packed(indices, codes, scales)
