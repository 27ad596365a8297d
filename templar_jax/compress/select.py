"""Exact top-k of every tile: the k largest magnitudes, ties at the k-th to the lower index; indices ascending.

No sort and no lax.top_k: magnitudes are compared as integers (the bits of a non-negative float order like it), the
k-th is found by bisection, and the chosen positions are read off a bit mask. All of it is elementwise work
and integer reductions, exact on every backend and fast on CPU and GPU alike.

A tile is searched in two steps. Cut it in groups of W neighbours; the k groups with the largest maxima (ties to the
lower group) hold the answer, ties included: with t the k-th largest maximum, at least k elements are
>= t, so nothing below t is chosen; and every element equal to t outside the chosen groups has as many equal
ones before it, one in each group chosen for a maximum of t, as there are places left.

Letters: N elements of a tile, G = N / W groups, k values kept.
"""

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from templar_jax.compress.tiles import largest_divisor, place, split_rows, to_tiles

GROUP = 8  # W at most: 512 maxima and then 512 candidates of a tile of 4096
WORD = 32


def magnitude_bits(x: jax.Array) -> jax.Array:
    """f32 -> int32 that orders like |x| (finite x)."""
    return jax.lax.bitcast_convert_type(x, jnp.int32) & jnp.int32(0x7FFFFFFF)


def kth_largest(bits: jax.Array, k: int) -> jax.Array:
    """A threshold t per row: int32 [..., N] >= 0 -> [...] such that count(bits > t) < k <= count(bits >= t).

    t is the k-th largest value, or any integer between it and the next smaller one (the search stops there).
    """
    n = bits.shape[-1]
    high = bits.max(-1) + 1
    low = jnp.zeros_like(high)
    if n % k == 0:  # k disjoint parts with a maximum >= low each
        low = bits.reshape(*bits.shape[:-1], k, n // k).max(-1).min(-1)

    def narrow(bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = bounds
        middle = low + (high - low) // 2
        count = (bits >= middle[..., None]).astype(jnp.int32).sum(-1)
        enough = count >= k
        low = jnp.where(enough, middle, low)
        return low, jnp.where(count == k, low + 1, jnp.where(enough, high, middle))

    low, _ = jax.lax.while_loop(lambda bounds: (bounds[1] - bounds[0] > 1).any(), narrow, (low, high))
    return low


def _words(mask: jax.Array) -> jax.Array:
    """bool [..., N], 32 dividing N -> uint32 [..., N / 32], lowest bit first."""
    lanes = mask.reshape(*mask.shape[:-1], -1, WORD).astype(jnp.uint32)
    return (lanes << jnp.arange(WORD, dtype=jnp.uint32)).sum(-1, dtype=jnp.uint32)


def _bit_position(word: jax.Array, rank: jax.Array) -> jax.Array:
    """Position of the set bit number `rank` (from 0) of each word, uint32; meaningless where there is none."""
    position = jnp.zeros_like(word)
    for step in (16, 8, 4, 2, 1):
        below = jax.lax.population_count((word >> position) & jnp.uint32((1 << step) - 1))
        beyond = rank >= below
        rank = jnp.where(beyond, rank - below, rank)
        position = jnp.where(beyond, position + step, position)
    return position


def _before(counts: jax.Array) -> jax.Array:
    """Exclusive prefix sums along the last, short dim."""
    n = counts.shape[-1]
    lower = jnp.arange(n)[:, None] > jnp.arange(n)
    return jnp.where(lower, counts[..., None, :], 0).sum(-1, dtype=counts.dtype)


def _keep_lowest(words: jax.Array, most: jax.Array) -> jax.Array:
    """Clears all but the `most` lowest set bits of a row of words. words uint32 [..., n], most uint32 [...]."""
    counts = jax.lax.population_count(words)
    before = _before(counts)
    left = jnp.where(most[..., None] > before, most[..., None] - before, 0)
    cut = _bit_position(words, left)  # the first bit that goes
    return jnp.where(left >= counts, words, words & ((jnp.uint32(1) << cut) - 1))


def _set_positions(words: jax.Array, k: int) -> jax.Array:
    """Positions of the k set bits of a row, ascending: uint32 [..., n] -> int32 [..., k]."""
    counts = jax.lax.population_count(words)
    upto = _before(counts) + counts
    rank = jnp.arange(k, dtype=jnp.uint32)
    passed = upto[..., None, :] <= rank[:, None]  # [..., k, n]
    word = passed.sum(-1, dtype=jnp.int32)
    inside = rank - jnp.where(passed, upto[..., None, :], 0).max(-1)
    position = _bit_position(jnp.take_along_axis(words, word, -1), inside)
    return word * WORD + position.astype(jnp.int32)


def top_positions(bits: jax.Array, k: int) -> jax.Array:
    """Positions of the k largest of each row, ties to the lower position, ascending.

    Args:
      bits: int32 [..., N], all >= 0, k <= N.

    Returns:
      int32 [..., k].
    """
    n = bits.shape[-1]
    threshold = kth_largest(bits, k)[..., None]
    padding = [(0, 0)] * (bits.ndim - 1) + [(0, -n % WORD)]
    above = _words(jnp.pad(bits > threshold, padding))
    equal = _words(jnp.pad(bits == threshold, padding))
    missing = jnp.uint32(k) - jax.lax.population_count(above).sum(-1, dtype=jnp.uint32)
    return _set_positions(above | _keep_lowest(equal, missing), k)


def group_width(sides: tuple[int, ...], k: int) -> int:
    """W: neighbours in a tile's last dim that are searched by their maximum first; 1 where that gains nothing."""
    width = largest_divisor(sides[-1], GROUP)
    return width if math.prod(sides) >= 2 * k * width else 1


def top_k(units: Sequence[jax.Array], sides: tuple[int, ...], k: int, chunk: int) -> jax.Array:
    """Offsets of the k largest magnitudes of every tile of arrays that are cut alike.

    All tiles are searched together: one loop in the executable, however many parameters there are.

    Args:
      units: each f32 [*stack, *unit], finite; any number of stack dims.
      sides: extents of a tile; each divides the unit's extent.
      k: values kept of a tile, at most prod(sides).
      chunk: tiles searched at once: few on a CPU, so that they stay in its cache, many elsewhere.

    Returns:
      int32 [tiles of all arrays in turn, k], strictly ascending.
    """
    size, width = math.prod(sides), group_width(sides, k)
    if k == size:
        tiles = sum(math.prod(unit.shape) // size for unit in units)
        return jnp.broadcast_to(jnp.arange(k, dtype=jnp.int32), (tiles, k))
    bits = [magnitude_bits(unit) for unit in units]
    if width == 1:
        rows = jnp.concatenate([_rows(one, sides) for one in bits])
        return in_chunks(lambda some: top_positions(some, k), chunk, rows)
    grouped = [one.reshape(*one.shape[:-1], -1, width) for one in bits]
    cut = (*sides[:-1], sides[-1] // width)  # a tile's extents in groups
    maxima = jnp.concatenate([_rows(one.max(-1), cut) for one in grouped])
    group = in_chunks(lambda some: top_positions(some, k), chunk, maxima)
    candidates = []
    for one, chosen in zip(grouped, split_rows(group, units, sides), strict=True):
        candidates.append(one[place(cut, chosen, one.ndim - 1 - len(sides))].reshape(-1, k * width))

    def among_candidates(some: jax.Array, chosen: jax.Array) -> jax.Array:
        position = top_positions(some, k)  # candidates stand in ascending order of offset
        return jnp.take_along_axis(chosen, position // width, -1) * width + position % width

    return in_chunks(among_candidates, chunk, jnp.concatenate(candidates), group)


def _rows(x: jax.Array, sides: tuple[int, ...]) -> jax.Array:
    """[*stack, *unit] -> [tiles, elements of a tile]"""
    return to_tiles(x, sides, x.ndim - len(sides)).reshape(-1, math.prod(sides))


def in_chunks(function: Callable, chunk: int, *rows: jax.Array):
    """function(*rows) for a function of each row by itself, at most `chunk` rows at a time.

    Always in a loop: XLA writes down what a loop yields, whereas it would compute what `function` yields anew in
    every fusion that reads it (on CPU it removes optimisation barriers before it fuses).
    """
    count = rows[0].shape[0]
    if count == 1:
        return function(*rows)
    chunks = max(2, -(-count // chunk))
    each = -(-count // chunks)
    padded = [jnp.pad(x, [(0, chunks * each - count)] + [(0, 0)] * (x.ndim - 1)) for x in rows]
    done = jax.lax.map(lambda some: function(*some), tuple(x.reshape(chunks, each, *x.shape[1:]) for x in padded))
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:count], done)
