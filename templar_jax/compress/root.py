"""The state root: 32 bytes that are equal exactly where the global parameters are, bit for bit (drift aside forgers).

Per unit four 32-bit lanes, each the sum modulo 2**32 of mixed(bits of an element ^ mixed(its position in the unit)).
Sums of integers do not depend on order, so each shard sums its own part and the host adds the parts;
then sha256 over (name, shape, dtype, lanes) of every unit. With a salt, known only after the parameters are fixed,
the same function is the state challenge (node/challenge.py). It detects drift; it is additive, so it does not stop a
forger.
"""

import functools
import hashlib
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from templar_jax.compress.tiles import groups
from templar_jax.config import RunConfig
from templar_jax.sharding import Param, spec, table, to_host
from templar_jax.train.offload import fetch

LANES = 4


def make_root(run: RunConfig, mesh: Mesh, salt: int = 0) -> Callable[[dict[str, jax.Array]], bytes]:
    """Builds `root(params) -> 32 bytes`. Any salt uses the same executable. salt: 0 <= salt < 2**256."""
    seed = hashlib.sha256(b"templar root" + salt.to_bytes(32, "little")).digest()
    lane_salts = np.frombuffer(seed, "<u4")[:LANES]
    sums = [(names, _make_sums(run, mesh, names)) for names in groups(run, mesh)]

    def root(params: dict[str, jax.Array]) -> bytes:
        parts = []
        for names, sums_of_group in sums:
            parts += to_host(sums_of_group(fetch([params[name] for name in names]), lane_salts))
        digest = hashlib.sha256(seed)
        for param, part in zip(table(run), parts, strict=True):
            lanes = part.sum(axis=tuple(range(part.ndim - 1 - param.stack)), dtype=np.uint32)  # over shards of units
            lanes = lanes.reshape(-1, LANES)
            for number, index in enumerate(np.ndindex(param.shape[: param.stack])):
                name = param.name + "".join(f".{i}" for i in index)
                digest.update(f"{name} {param.unit_shape} float32 ".encode() + lanes[number].astype("<u4").tobytes())
        return digest.digest()

    return root


@functools.lru_cache(maxsize=128)
def _make_sums(run: RunConfig, mesh: Mesh, names: tuple[str, ...]) -> Callable:
    """(params, salts uint32 [LANES]) -> per parameter uint32 [shards of a unit by dim..., *stack, LANES].

    Lanes leave as the shards' own sums: nothing is sent between devices.
    """
    rows = [param for param in table(run) if param.name in names]
    specs = [spec(param, mesh) for param in rows]

    def on_shard(params: list[jax.Array], salts: jax.Array) -> list[jax.Array]:
        return [_unit_sums(*item, salts) for item in zip(rows, specs, params, strict=True)]

    outs = [
        PartitionSpec(*(axis for axis in where[param.stack :] if axis), *where[: param.stack])
        for param, where in zip(rows, specs, strict=True)
    ]
    return jax.jit(
        jax.shard_map(on_shard, mesh=mesh, in_specs=(specs, PartitionSpec()), out_specs=outs, check_vma=False)
    )


def _unit_sums(param: Param, where: PartitionSpec, shard: jax.Array, salts: jax.Array) -> jax.Array:
    extents = shard.shape[param.stack :]
    position = jnp.zeros(extents, jnp.uint32)  # row-major in the whole unit; a unit has fewer than 2**32 elements
    for dim, extent in enumerate(extents):
        step = math.prod(param.unit_shape[dim + 1 :])
        axis = where[param.stack + dim]
        first = jax.lax.axis_index(axis).astype(jnp.uint32) * extent if axis else jnp.uint32(0)
        position += (jax.lax.broadcasted_iota(jnp.uint32, extents, dim) + first) * jnp.uint32(step)
    bits = jax.lax.bitcast_convert_type(shard, jnp.uint32)
    dims = tuple(range(param.stack, shard.ndim))
    lanes = [mix(bits ^ mix(position ^ salts[lane])).sum(dims, dtype=jnp.uint32) for lane in range(LANES)]
    sums = jnp.stack(lanes, -1)  # [*stack, LANES]
    return sums.reshape(*(1 for axis in where[param.stack :] if axis), *sums.shape)


def mix(x: jax.Array) -> jax.Array:
    """A bijection of uint32 in which every input bit moves every output bit (Murmur3's finaliser)."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)
