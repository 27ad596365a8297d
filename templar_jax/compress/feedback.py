"""Error feedback and compression: what a miner does to its pseudo-gradient before it sends it.

    e  = (start - end) + decay * feedback
    sent = decode(quantise(top-k of e))          tile by tile
    feedback' = e - sent

Everything runs where the shards lie, without collectives. With compress.dct the top-k is taken among each tile's
cosine coefficients. An element of e that is not finite is forgotten: nothing is sent for it.

DeMo (arXiv 2411.19870), SparseLoCo (arXiv 2508.15706).

Letters: T tiles of a unit, N elements of a tile, k values kept of each.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from templar_jax.compress import dct, quantize, select
from templar_jax.compress.exact import product
from templar_jax.compress.packed import Packed
from templar_jax.compress.tiles import Tiling, alike, fold, groups, place, split_rows, tilings, unfold
from templar_jax.config import RunConfig
from templar_jax.sharding import make_zeros, spec, to_devices, to_host
from templar_jax.train.offload import fetch, host_zeros, settle

Params = dict[str, jax.Array]
Arrays = list[jax.Array]


@dataclass(frozen=True)
class Compressor:
    """`init() -> feedback`: zeros, sharded like the parameters.
    `update(feedback, start, end) -> (feedback, {name: Packed})`: donates `feedback`; `start` and `end` stay as they
    are. The `Packed` arrays lie on the host (1/64 of the values, 3 bytes each), ready for the codec.
    """

    init: Callable[[], Params]
    update: Callable[[Params, Params, Params], tuple[Params, dict[str, Packed]]]


def make_compressor(run: RunConfig, mesh: Mesh, offload: tuple[str, ...] = ()) -> Compressor:
    """Builds the (init, update) pair of a run on a mesh.

    offload: classes that rest in pinned host memory (offload.py), among them perhaps "feedback".
    """
    make_group = _make_sign1 if run.compress.quantizer == "sign1" else _make_v213
    made = [(names, make_group(run, mesh, names)) for names in groups(run, mesh)]

    def update(feedback: Params, start: Params, end: Params) -> tuple[Params, dict[str, Packed]]:
        left: Params = {}
        packed: dict[str, Packed] = {}
        for names, compress in made:
            lying = [[params[name] for name in names] for params in (feedback, start, end)]
            new, sent = compress(*fetch(lying))
            left.update(zip(names, settle(new, lying[0]), strict=True))
            packed.update(zip(names, sent, strict=True))
        return left, packed

    return Compressor(partial(host_zeros, run, mesh) if "feedback" in offload else make_zeros(run, mesh), update)


def sign1_executable(run: RunConfig, mesh: Mesh, names: tuple[str, ...]) -> Callable:
    """Everything in one jit, on every shard by itself: (feedback, start, end, decay, 0) of these parameters ->
    (feedback, offsets, codes, scales), each a list; offsets and codes [*stack, *grid, k], scales [*stack, *grid]."""
    cut, chunk = [tilings(run)[name] for name in names], _chunk(mesh)
    whole, none = [spec(tiling.param, mesh) for tiling in cut], PartitionSpec()

    def on_shard(feedback: Arrays, start: Arrays, end: Arrays, decay: jax.Array, zero: jax.Array):
        totals = [pending(*parts, decay, zero) for parts in zip(feedback, start, end, strict=True)]
        domain = dct.transform_units(cut, totals, False, zero) if run.compress.dct else totals
        columns: list[list[Any]] = [[None] * len(cut) for _ in range(5)]
        for positions, offsets, values in keep(cut, domain, chunk):
            tiling = cut[positions[0]]
            codes, scales, sent = select.in_chunks(partial(_sign1, tiling.size), 16 * chunk, values)
            units = [totals[position] for position in positions]
            for column, rows in zip(columns, (offsets, codes, scales[:, None], values, sent), strict=True):
                for position, part in zip(positions, split_rows(rows, units, tiling.sides), strict=True):
                    column[position] = part
        offsets, codes, scales, values, sent = columns
        left = _subtract(run, cut, totals, offsets, values, sent, zero)
        return left, [offset.astype(jnp.uint16) for offset in offsets], codes, [scale[..., 0] for scale in scales]

    return jax.jit(
        jax.shard_map(
            on_shard,
            mesh=mesh,
            in_specs=(whole, whole, whole, none, none),
            out_specs=(whole, whole, whole, whole),  # tiles lie where their elements lie
            check_vma=False,
        ),
        donate_argnums=0,
    )


def _sign1(size: int, values: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    codes, scales = quantize.sign1(values, size)
    return codes, scales, quantize.sign1_decode(codes, scales, size)


def _make_sign1(run: RunConfig, mesh: Mesh, names: tuple[str, ...]) -> Callable:
    cut, compress = [tilings(run)[name] for name in names], sign1_executable(run, mesh, names)

    def run_group(feedback: Arrays, start: Arrays, end: Arrays) -> tuple[Arrays, list[Packed]]:
        left, *columns = compress(feedback, start, end, decay(run), np.uint32(0))
        rows = zip(cut, *to_host(columns), strict=True)
        return left, [Packed(*(unfold(tiling, array) for array in arrays)) for tiling, *arrays in rows]

    return run_group


def v213_executables(run: RunConfig, mesh: Mesh, names: tuple[str, ...]) -> tuple[Callable, Callable]:
    """Two jits, and between them the host: the quantiser's statistics span a unit, whatever its sharding.

    (feedback, start, end, decay, 0) -> (e, offsets, values), and (e, offsets, values, sent, 0) -> feedback.
    """
    cut, chunk = [tilings(run)[name] for name in names], _chunk(mesh)
    whole, none = [spec(tiling.param, mesh) for tiling in cut], PartitionSpec()

    def select_on_shard(feedback: Arrays, start: Arrays, end: Arrays, decay: jax.Array, zero: jax.Array):
        totals = [pending(*parts, decay, zero) for parts in zip(feedback, start, end, strict=True)]
        domain = dct.transform_units(cut, totals, False, zero) if run.compress.dct else totals
        columns: list[list[Any]] = [[None] * len(cut) for _ in range(2)]
        for positions, *kept in keep(cut, domain, chunk):
            units, sides = [totals[position] for position in positions], cut[positions[0]].sides
            for column, rows in zip(columns, kept, strict=True):
                for position, part in zip(positions, split_rows(rows, units, sides), strict=True):
                    column[position] = part
        return totals, *columns

    def subtract_on_shard(totals: Arrays, offsets: Arrays, values: Arrays, sent: Arrays, zero: jax.Array):
        return _subtract(run, cut, totals, offsets, values, sent, zero)

    mapped = partial(jax.shard_map, mesh=mesh, check_vma=False)
    choose = jax.jit(
        mapped(select_on_shard, in_specs=(whole, whole, whole, none, none), out_specs=(whole, whole, whole)),
        donate_argnums=0,
    )
    subtract = jax.jit(
        mapped(subtract_on_shard, in_specs=(whole, whole, whole, whole, none), out_specs=whole), donate_argnums=0
    )
    return choose, subtract


def _make_v213(run: RunConfig, mesh: Mesh, names: tuple[str, ...]) -> Callable:
    cut, (choose, subtract) = [tilings(run)[name] for name in names], v213_executables(run, mesh, names)

    def run_group(feedback: Arrays, start: Arrays, end: Arrays) -> tuple[Arrays, list[Packed]]:
        totals, offsets, values = choose(feedback, start, end, decay(run), np.uint32(0))
        rows = zip(cut, *to_host((offsets, values)), strict=True)
        packed = [_v213_packed(*row) for row in rows]
        sent = [
            to_devices(fold(tiling, _v213_decoded(tiling, one)), value.sharding)
            for tiling, one, value in zip(cut, packed, values, strict=True)
        ]
        return subtract(totals, offsets, values, sent, np.uint32(0)), packed

    return run_group


def decay(run: RunConfig) -> np.float32:
    """The error feedback's decay as the f32 that multiplies it."""
    return np.float32(run.compress.feedback_decay)


def _chunk(mesh: Mesh) -> int:
    """Tiles searched at once: on a CPU few enough for its cache (measured: docs/decisions.md)."""
    return 64 if mesh.devices.flat[0].platform == "cpu" else 2**14


def _v213_packed(tiling: Tiling, offsets: np.ndarray, values: np.ndarray) -> Packed:
    offsets, values = unfold(tiling, offsets), unfold(tiling, values)
    units = [quantize.v213(unit) for unit in values.reshape(-1, tiling.tiles, tiling.k)]
    codes = np.stack([codes for codes, _ in units]).reshape(values.shape)
    tables = np.stack([unit_table for _, unit_table in units]).reshape(*values.shape[: tiling.param.stack], 4)
    return Packed(offsets.astype(np.uint16), codes, tables)


def _v213_decoded(tiling: Tiling, packed: Packed) -> np.ndarray:
    """f32 [*stack, T, k]"""
    codes = np.asarray(packed.codes).reshape(tiling.param.units, -1).astype(np.intp)
    unit_tables = np.asarray(packed.scales).reshape(-1, 4)
    return np.take_along_axis(unit_tables, codes, -1).reshape(tiling.packed_shape)


def pending(feedback: jax.Array, start: jax.Array, end: jax.Array, decay: jax.Array, zero: jax.Array) -> jax.Array:
    """e = (start - end) + decay * feedback, each operation rounded by itself; what is not finite becomes 0."""
    total = (start - end) + product(decay, feedback, zero)
    return jnp.where(jnp.isfinite(total), total, 0)


def keep(cut: list[Tiling], arrays: Arrays, chunk: int) -> list[tuple[list[int], jax.Array, jax.Array]]:
    """The top-k of every tile of a shard's parameters, those that are cut alike together.

    Args:
      cut: how each parameter is cut.
      arrays: f32 [*stack, *unit] of each parameter.
      chunk: tiles searched at once.

    Returns:
      Per way of cutting: the positions in `cut`, offsets int32 [tiles, k], values f32 [tiles, k].
    """
    kept = []
    for (sides, k), positions in alike(cut).items():
        units = [arrays[position] for position in positions]
        offsets = select.top_k(units, sides, k, chunk)
        values = [
            unit[place(sides, chosen, unit.ndim - len(sides))].reshape(-1, k)
            for unit, chosen in zip(units, split_rows(offsets, units, sides), strict=True)
        ]
        kept.append((positions, offsets, jnp.concatenate(values)))
    return kept


def _subtract(
    run: RunConfig, cut: list[Tiling], totals: Arrays, offsets: Arrays, values: Arrays, sent: Arrays, zero: jax.Array
) -> Arrays:
    """feedback' = e - sent, on one shard."""
    where = [place(t.sides, offset, t.param.stack) for t, offset in zip(cut, offsets, strict=True)]

    def put(x: jax.Array, at: tuple[jax.Array, ...], new: jax.Array) -> jax.Array:
        return x.at[at].set(new, unique_indices=True, mode="promise_in_bounds")

    if not run.compress.dct:
        rows = zip(totals, where, values, sent, strict=True)
        return [put(total, at, value - decoded) for total, at, value, decoded in rows]
    coefficients = [put(jnp.zeros_like(x), at, new) for x, at, new in zip(totals, where, sent, strict=True)]
    decoded = dct.transform_units(cut, coefficients, True, zero)
    return [total - part for total, part in zip(totals, decoded, strict=True)]
