"""From kept values to 2-bit codes and back.

`sign1`, the default: a sign, one magnitude bit, and an 8-bit logarithmic scale per tile. The scale is the mean kept
magnitude, summed as integers; the two levels and the threshold between them are fixed fractions of it (Lloyd's
optimum for the tail of a normal distribution). No step depends on the order of a sum or on a fused
multiply-add, so the codes are the same on any mesh and backend.

`v213`: four bins per unit over six standard deviations around the mean, decoded to the mean of each bin. Its
statistics span the whole unit, so it runs on the host in f64, over kept values only (1/64 of the parameters).

Letters: N elements of a tile, k values kept of each, C = 4 codes.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from templar_jax.compress.exact import TINY
from templar_jax.compress.select import magnitude_bits

CODES = 4
SCALES = 256
STEPS = 8  # scale codes per octave
UNIT_CODE = 200  # the scale code of a mean magnitude of 1; code 0 is a tile that decodes to zeros
LEVEL_GRAIN = 1024  # levels are rounded to such fractions, so that no library's erf can move them
BINS_SIGMA = 6.0  # v213: the range of the four bins in standard deviations


@functools.cache
def levels(k: int, size: int) -> tuple[float, float, float]:
    """(low level, high level, threshold) of sign1, in units of the mean kept magnitude.

    Lloyd's two-level quantiser of |z|, z normal, given that it is among the largest k of `size`.
    """
    z = np.linspace(0.0, 12.0, 240_001)
    density = np.exp(-0.5 * z * z)
    beyond = np.cumsum(density[::-1])[::-1] / density.sum()
    weight = np.where(beyond <= k / size, density, 0.0)
    mean = float((weight * z).sum() / weight.sum())
    low, high = 0.9 * mean, 1.4 * mean
    for _ in range(200):
        is_high = z >= (low + high) / 2
        low = float((weight * z)[~is_high].sum() / weight[~is_high].sum())
        high = float((weight * z)[is_high].sum() / weight[is_high].sum())
    low, high = (round(level / mean * LEVEL_GRAIN) / LEVEL_GRAIN for level in (low, high))
    return low, high, (low + high) / 2


def _octaves(steps: int) -> float:
    """2**(steps / 8) from correctly rounded operations only: a library's pow may differ in the last bit."""
    whole, part = divmod(steps, STEPS)
    value = 1.0
    for _ in range(part):
        value *= math.sqrt(math.sqrt(math.sqrt(2.0)))
    return math.ldexp(value, whole)


@functools.cache
def scale_values() -> np.ndarray:
    """f64 [256]: the mean magnitude that each scale code stands for."""
    return np.array([0.0] + [_octaves(code - UNIT_CODE) for code in range(1, SCALES)])


@functools.cache
def sign1_table(k: int, size: int) -> np.ndarray:
    """f32 [256, 4]: decoded value of (scale code, code); code = 2 * negative + high."""
    low, high, _ = levels(k, size)
    return np.outer(scale_values(), (low, high, -low, -high)).astype(np.float32) + np.float32(0)


@functools.cache
def _sign1_thresholds(k: int, size: int) -> np.ndarray:
    return (scale_values() * levels(k, size)[2]).astype(np.float32)


@functools.cache
def _mantissa_steps(k: int) -> tuple[int, tuple[int, ...]]:
    """How to read round(8 log2(total / k)) off an integer total without a logarithm.

    With total = mantissa * 2**(octave - 31), mantissa in [2**31, 2**32): the result is
    8 * octave + first + count(mantissa >= steps).
    """
    shift = STEPS * math.log2(k) - 0.5  # the floor of 8 log2(total) - shift is wanted
    first = math.floor(-shift)
    half_step = math.sqrt(math.sqrt(math.sqrt(math.sqrt(2.0))))
    edges = [math.ldexp(k * _octaves(code) / half_step, 31) for code in range(first + 1, first + STEPS + 1)]
    steps = [math.ceil(edge) for edge in edges if math.ceil(edge) < 2**32]
    return first, tuple(steps)


def _log_scale(values: jax.Array) -> jax.Array:
    """The scale code of each tile's mean magnitude, by integer arithmetic only: f32 [..., k] -> int32 [...]."""
    k = values.shape[-1]
    kept_bits = min(24, 30 - math.ceil(math.log2(k)))  # of each mantissa, so that k of them fit an int32
    bits = magnitude_bits(values)
    exponent = bits >> 23
    top = exponent.max(-1)
    shift = (24 - kept_bits) + top[..., None] - exponent
    mantissa = (bits & 0x7FFFFF) | 0x800000
    total = jnp.where((exponent > 0) & (shift < 32), mantissa >> jnp.minimum(shift, 31), 0).sum(-1, dtype=jnp.int32)
    leading = jax.lax.clz(total)
    mantissa_total = total.astype(jnp.uint32) << jnp.minimum(leading, 31).astype(jnp.uint32)
    first, steps = _mantissa_steps(k)
    part = sum(((mantissa_total >= np.uint32(step)).astype(jnp.int32) for step in steps), jnp.zeros_like(total))
    octave = (31 - leading) + top - 126 - kept_bits
    code = UNIT_CODE + STEPS * octave + first + part
    return jnp.where(total == 0, 0, jnp.clip(code, 0, SCALES - 1))


def sign1(values: jax.Array, size: int) -> tuple[jax.Array, jax.Array]:
    """Quantises the kept values of tiles of `size` elements.

    Args:
      values: f32 [..., k], finite.
      size: N.

    Returns:
      codes uint8 [..., k] = 2 * negative + high, and scales uint8 [...].
    """
    scale = _log_scale(values)
    threshold = jnp.asarray(_sign1_thresholds(values.shape[-1], size))[scale]
    high = jnp.abs(values) >= threshold[..., None]
    negative = jax.lax.bitcast_convert_type(values, jnp.uint32) >> 31
    live = (scale > 0)[..., None]
    codes = jnp.where(live, 2 * negative.astype(jnp.uint8) + high.astype(jnp.uint8), jnp.uint8(0))
    return codes, scale.astype(jnp.uint8)


def sign1_decode(codes: jax.Array, scales: jax.Array, size: int) -> jax.Array:
    """f32 [..., k]: what the codes stand for, from the same table that every receiver uses."""
    table = jnp.asarray(sign1_table(codes.shape[-1], size))
    levels_of_tile = table[scales.astype(jnp.int32)]  # [..., 4]
    magnitude = jnp.where(codes & 1, levels_of_tile[..., 1:2], levels_of_tile[..., 0:1])
    return jnp.where(codes & 2, -magnitude, magnitude)


def v213(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Quantises the kept values of one unit, on the host.

    Bins of a quarter of six standard deviations around the mean; a bin decodes to the mean of its values, an
    empty one to the mean of all.

    Args:
      values: f32 of any shape.

    Returns:
      codes uint8 of the same shape, and the table f32 [4] of decoded values.
    """
    exact = values.astype(np.float64).ravel()
    shift = math.fsum(exact) / exact.size
    centred = exact - shift
    deviation = math.sqrt(math.fsum(centred * centred) / max(exact.size - 1, 1))
    width = BINS_SIGMA * deviation / CODES or 1.0
    codes = np.clip(np.rint(centred / width) + CODES // 2, 0, CODES - 1).astype(np.uint8)
    means = [math.fsum(centred[codes == code]) / max(int((codes == code).sum()), 1) for code in range(CODES)]
    table = (np.array(means) + shift).astype(np.float32)
    table[np.abs(table) < TINY] = 0
    return codes.reshape(values.shape), table
