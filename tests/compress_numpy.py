"""The judge: compression and the outer step again in plain NumPy, f32 where the device uses f32, nothing shared.

Also small runs, parameters and contributions for the tests of compress and of the outer step.
"""

import dataclasses
import math

import jax
import numpy as np
from models import mesh_of

from templar_jax.compress.feedback import make_compressor
from templar_jax.config import CompressConfig, ModelConfig, OuterConfig, RunConfig
from templar_jax.sharding import shardings, table

TINY = np.float32(2.0**-100)
# Really sharded on fsdp 8 and on 4 x 2, except for the embedding's 320 rows and the 576 columns on 2.
MODEL = ModelConfig(vocab=320, dim=512, layers=2, heads=8, kv_heads=2, head_dim=64, ffn_dim=576)
SMALL = ModelConfig(vocab=320, dim=64, layers=2, heads=2, kv_heads=2, head_dim=32, ffn_dim=128)
MESHES = [(8, 1), (4, 2)]


def run_of(model: ModelConfig = MODEL, outer: dict | None = None, **compress) -> RunConfig:
    return RunConfig(
        name="test",
        model=model,
        compress=dataclasses.replace(CompressConfig(), **compress),
        outer=OuterConfig(**(outer or {})),
    )


def rough(run: RunConfig, seed: int, scale: float = 1e-3) -> dict[str, np.ndarray]:
    """Normal values, every parameter at a scale of its own, some elements exactly zero or tied."""
    rng = np.random.default_rng(seed)
    out = {}
    for param in table(run):
        value = rng.standard_normal(param.shape, np.float32) * np.float32(scale * 4.0 ** rng.integers(-3, 3))
        value[rng.random(param.shape) < 0.05] = 0
        ties = rng.random(param.shape) < 0.01
        value[ties] = np.float32(scale) * np.sign(value[ties])
        out[param.name] = value
    return out


def placed(run: RunConfig, mesh, params: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    where = shardings(run, mesh)
    return {name: jax.device_put(value, where[name]) for name, value in params.items()}


def contributions(run: RunConfig, uids=(7, 1, 3, 12)) -> dict:
    """What peers of very different norms would send, in the given order of arrival."""
    mesh = mesh_of(1)
    compressor = make_compressor(run, mesh)
    zeros = {param.name: np.zeros(param.shape, np.float32) for param in table(run)}
    out = {}
    for uid in uids:
        start, end = placed(run, mesh, rough(run, uid, 1e-3 * 1.7**uid)), placed(run, mesh, zeros)
        _, out[uid] = compressor.update(compressor.init(), start, end)
    return out


def sides_of(unit_shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(max(side for side in range(1, min(extent, 64) + 1) if extent % side == 0) for extent in unit_shape)


def tiles_of(x: np.ndarray, sides: tuple[int, ...]) -> np.ndarray:
    """One unit -> [T, N], tile by tile in a plain loop."""
    corners = np.ndindex(*(extent // side for extent, side in zip(x.shape, sides, strict=True)))
    cut = [x[tuple(slice(c * s, c * s + s) for c, s in zip(corner, sides, strict=True))].ravel() for corner in corners]
    return np.stack(cut)


def untile(tiles: np.ndarray, shape: tuple[int, ...], sides: tuple[int, ...]) -> np.ndarray:
    x = np.zeros(shape, tiles.dtype)
    corners = np.ndindex(*(extent // side for extent, side in zip(shape, sides, strict=True)))
    for tile, corner in zip(tiles, corners, strict=True):
        x[tuple(slice(c * s, c * s + s) for c, s in zip(corner, sides, strict=True))] = tile.reshape(sides)
    return x


def top_k(row: np.ndarray, k: int) -> list[int]:
    """The oracle of the tie rule: sort by (magnitude descending, index ascending), take k, ascending."""
    return sorted(sorted(range(row.size), key=lambda i: (-abs(float(row[i])), i))[:k])


def flush(x: np.ndarray) -> np.ndarray:
    assert x.dtype == np.float32
    return np.where(np.abs(x) < TINY, np.float32(0), x)


def product(a, b) -> np.ndarray:
    return flush(np.multiply(a, b, dtype=np.float32))


def decoded(run: RunConfig, name: str, packed) -> np.ndarray:
    """What a contribution says of one parameter: f32 [units, T, k], from the definitions of the quantisers."""
    param = next(param for param in table(run) if param.name == name)
    codes = np.asarray(packed.codes)
    codes = codes.reshape(param.units, *codes.shape[param.stack :])
    if run.compress.quantizer == "v213":
        unit_tables = np.asarray(packed.scales).reshape(param.units, 4)
        return np.stack([unit_table[unit] for unit_table, unit in zip(unit_tables, codes, strict=True)])
    size = math.prod(sides_of(param.unit_shape))
    low, high = (581 / 1024, 1938 / 1024) if size == run.compress.k else (972 / 1024, 1189 / 1024)
    scales = np.asarray(packed.scales).reshape(param.units, -1).astype(np.float64)
    mean = np.where(scales > 0, 2.0 ** ((scales - 200) / 8), 0)[..., None]
    magnitude = np.where(codes & 1, high, low) * mean
    return np.where(codes & 2, -magnitude, magnitude).astype(np.float32)


def dense_unit(packed_indices: np.ndarray, values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    sides = sides_of(shape)
    tiles = np.zeros((values.shape[0], math.prod(sides)), values.dtype)
    np.put_along_axis(tiles, packed_indices.astype(np.int64), values, -1)
    return untile(tiles, shape, sides)


def outer_step(run: RunConfig, params: dict, momentum: dict, sent: dict) -> tuple[dict, dict]:
    """The outer step from the definition: dense decoded contributions, f64 tables, f32 operations one by one."""
    new_params, new_momentum = {}, {}
    outer = run.outer
    for param in table(run):
        name, shape = param.name, param.unit_shape
        units = params[name].reshape(param.units, *shape)
        values = {uid: decoded(run, name, sent[uid][name]).astype(np.float64) for uid in sorted(sent)}
        out, moving = np.zeros_like(units), np.zeros_like(units)
        for unit in range(param.units):
            norm = {uid: math.sqrt(math.fsum(np.square(values[uid][unit]).ravel())) for uid in values}
            limit = sorted(norm.values())[(len(norm) - 1) // 2]
            total, senders = np.zeros(shape, np.float32), np.zeros(shape, np.int64)
            for uid in sorted(sent):
                factor = limit / norm[uid] if outer.clip and norm[uid] > limit else 1.0
                step = outer.lr if outer.mean == "contributors" else outer.lr / len(sent)
                rounded = flush((values[uid][unit] * (factor * step)).astype(np.float32))
                indices = np.asarray(sent[uid][name].indices).reshape(param.units, *rounded.shape)[unit]
                part = dense_unit(indices, rounded, shape)
                total, senders = total + part, senders + (part != 0)
            if outer.mean == "contributors":
                total = product(total, (1 / np.maximum(senders, 1)).astype(np.float32))
            if outer.momentum:
                mu = np.float32(outer.momentum)
                moving[unit] = flush(product(mu, momentum[name].reshape(units.shape)[unit]) + total)
                total = product(mu, moving[unit]) + total if outer.nesterov else moving[unit]
            out[unit] = flush(units[unit] - total)
        new_params[name] = out.reshape(param.shape)
        if outer.momentum:
            new_momentum[name] = moving.reshape(param.shape)
    return new_params, new_momentum


def same_bits(a: dict, b: dict) -> None:
    """Every parameter equal bit for bit."""
    assert a.keys() == b.keys()
    for name in a:
        x, y = np.asarray(a[name]), np.asarray(b[name])
        assert x.dtype == y.dtype == np.float32
        assert (x.view(np.uint32) == y.view(np.uint32)).all(), f"{name}: {(x != y).mean():.2%} of the elements differ"


COLLECTIVES = ("all-reduce", "all-gather", "all-to-all", "collective-permute", "reduce-scatter", "collective-broadcast")


def assert_no_collectives(lowered) -> None:
    text = lowered.compile().as_text()
    assert "num_partitions=8" in text, "compiled for one device, so this shows nothing"
    found = [name for name in COLLECTIVES if name in text]
    assert not found, f"compression must stay on its shard, but its HLO has {found}"
