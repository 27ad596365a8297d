"""A contribution as bytes: one fixed binary schema, host only. Whatever a peer sends is checked here.

    header (16 bytes)   magic "TJXC", version u16, quantiser u8, zero u8, bytes that follow u64; little-endian
    per parameter, in the order of the table:
      scales            sign1: u8 per tile; v213: four f32 per unit
      codes             2 bits each, the first in the lowest bits of a byte
      indices           gaps as Rice codes (rice.py); absent where tiles are full

Every count follows from the run's config; nothing is allocated before the length has been checked against the bounds
that follow from it.

Letters: T tiles of a unit, k values kept of each.
"""

import functools
import struct
from collections.abc import Mapping

import numpy as np

from templar_jax.compress import rice
from templar_jax.compress.packed import Packed
from templar_jax.compress.quantize import CODES
from templar_jax.compress.tiles import Tiling, tilings
from templar_jax.config import RunConfig
from templar_jax.errors import RefusedError

MAGIC = b"TJXC"
VERSION = 2
HEADER = struct.Struct("<4sHBBQ")
QUANTIZERS = {"sign1": 0, "v213": 1}
MAX_VALUE = np.float32(2.0**32)  # of a v213 table


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


@functools.lru_cache(maxsize=16)
def plaintext_bounds(run: RunConfig) -> tuple[int, int]:
    """Fewest and most bytes of an encoded contribution of this run."""
    low = high = HEADER.size
    for tiling in tilings(run).values():
        fixed = _scale_bytes(run, tiling) + _code_bytes(tiling)
        least, most = (0, 0) if tiling.full else rice.bounds(*_index_shape(tiling))
        low, high = low + fixed + least, high + fixed + most
    return low, high


def expected_bytes(run: RunConfig) -> int:
    """Bytes of a contribution whose indices lie anywhere: what to plan with."""
    return HEADER.size + sum(
        _scale_bytes(run, tiling) + _code_bytes(tiling) + (0 if tiling.full else rice.expected(*_index_shape(tiling)))
        for tiling in tilings(run).values()
    )


def _index_shape(tiling: Tiling) -> tuple[int, int, int]:
    """(rows, k, N) of a parameter's index sets."""
    return tiling.param.units * tiling.tiles, tiling.k, tiling.size


def encode(run: RunConfig, packed: Mapping[str, Packed]) -> bytes:
    """The contribution's bytes. `packed` is what a compressor of the same run returned."""
    return join_streams(run, {name: encode_stream(tiling, packed[name]) for name, tiling in tilings(run).items()})


def encode_stream(tiling: Tiling, one: Packed) -> bytes:
    """The bytes of one parameter."""
    scales = np.asarray(one.scales)
    parts = [
        scales.astype("<f4" if scales.dtype == np.float32 else np.uint8).tobytes(),
        pack_codes(np.asarray(one.codes).reshape(-1)).tobytes(),
    ]
    if not tiling.full:
        parts.append(rice.encode(np.asarray(one.indices).reshape(-1, tiling.k), tiling.size).tobytes())
    return b"".join(parts)


def join_streams(run: RunConfig, streams: Mapping[str, bytes]) -> bytes:
    """The contribution's bytes from those of every parameter."""
    length = sum(map(len, streams.values()))
    header = HEADER.pack(MAGIC, VERSION, QUANTIZERS[run.compress.quantizer], 0, length)
    return b"".join([header, *(streams[name] for name in tilings(run))])


def decode(run: RunConfig, data: bytes) -> dict[str, Packed]:
    """The contribution that a peer's bytes stand for; equal bytes if encoded again.

    Raises:
      RefusedError: with reason "size", "version", "quantizer", "padding", "indices" or "scales": the bytes
        are not what `encode` writes for this run. Nothing else is raised, whatever the bytes.
    """
    least, most = plaintext_bounds(run)
    if not least <= len(data) <= most:
        raise RefusedError("size", f"{len(data)} bytes, this run's contributions have {least} to {most}")
    magic, version, quantizer, zero, length = HEADER.unpack_from(data)
    if magic != MAGIC or version != VERSION or zero:
        raise RefusedError("version", f"{magic!r} {version}, expected {MAGIC!r} {VERSION}")
    if quantizer != QUANTIZERS[run.compress.quantizer]:
        raise RefusedError("quantizer", f"{quantizer}, this run uses {run.compress.quantizer}")
    if length != len(data) - HEADER.size:
        raise RefusedError("size", f"header says {length} bytes, {len(data) - HEADER.size} follow")
    reader = _Reader(np.frombuffer(data, np.uint8, offset=HEADER.size))
    packed = {name: _decode_param(run, tiling, reader) for name, tiling in tilings(run).items()}
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


def _decode_param(run: RunConfig, tiling: Tiling, reader: _Reader) -> Packed:
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
        indices, used = rice.decode(reader.data, *_index_shape(tiling))
        reader.take(used)
        indices = indices.reshape(shape)
    return Packed(indices, codes, scales)
