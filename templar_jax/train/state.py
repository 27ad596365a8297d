"""theta_0: the initial parameters, the same bits on every mesh, backend and library version.

Element `position` of unit `u` of a parameter is threefry2x32(key, (u, position)): 64 bits, taken as four 16-bit
lanes. Their sum minus its mean is an exact integer, nearly normal (Irwin-Hall of order 4, within 3.5 standard
deviations); one f32 multiply gives it its size. Nothing else is rounded, so nothing can differ.
"""

import hashlib
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from templar_jax.config import RunConfig
from templar_jax.sharding import Param, shardings, table

Params = dict[str, jax.Array]
LANE_STD = math.sqrt(4 * (65536**2 - 1) / 12)  # standard deviation of the sum of four uniform 16-bit integers
LANE_SUM = 4 * 65535 // 2  # its mean
ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))


def threefry2x32(key: tuple[int, int], counter: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
    """Threefry-2x32 with 20 rounds: a keyed bijection of pairs of uint32, elementwise.

    Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC11. Written out here because theta_0 must not
    move when a library changes how it draws.
    """
    keys = [jnp.uint32(word) for word in (*key, key[0] ^ key[1] ^ 0x1BD11BDA)]
    x, y = counter[0] + keys[0], counter[1] + keys[1]
    for group in range(5):
        for turn in ROTATIONS[group % 2]:
            x = x + y
            y = (y << jnp.uint32(turn)) | (y >> jnp.uint32(32 - turn))
            y = x ^ y
        x = x + keys[(group + 1) % 3]
        y = y + keys[(group + 2) % 3] + jnp.uint32(group + 1)
    return x, y


def parameter_key(seed: int, name: str) -> tuple[int, int]:
    """The threefry key of one parameter of a run: 64 bits of sha256("templar theta_0 {seed} {name}")."""
    digest = hashlib.sha256(f"templar theta_0 {seed} {name}".encode()).digest()
    return int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:8], "little")


def _init_param(param: Param, seed: int) -> jax.Array:
    if param.init_std is None:
        return jnp.ones(param.shape, jnp.float32)

    def ravelled(first: int, last: int) -> jax.Array:
        """Row-major position over dims first..last - 1, as uint32 of the whole shape (nothing is reshaped)."""
        position = jnp.zeros(param.shape, jnp.uint32)
        for dim in range(first, last):
            step = math.prod(param.shape[dim + 1 : last])
            position += jax.lax.broadcasted_iota(jnp.uint32, param.shape, dim) * jnp.uint32(step)
        return position

    counter = ravelled(0, param.stack), ravelled(param.stack, len(param.shape))
    x, y = threefry2x32(parameter_key(seed, param.name), counter)
    lanes = [lane.astype(jnp.int32) for lane in (x & 0xFFFF, x >> 16, y & 0xFFFF, y >> 16)]
    total = lanes[0] + lanes[1] + lanes[2] + lanes[3] - LANE_SUM
    return total.astype(jnp.float32) * np.float32(param.init_std / LANE_STD)


def init_params(run: RunConfig, mesh: Mesh) -> Params:
    """theta_0 of the run: f32, keyed and ordered as the table, created in its shards. Bit-identical on any mesh."""
    rows = table(run)
    make = jax.jit(
        lambda: {param.name: _init_param(param, run.seed) for param in rows}, out_shardings=shardings(run, mesh)
    )
    return ordered(run, make())


def ordered(run: RunConfig, params: Params) -> Params:
    """The same dict in the order of the table (a jit returns its dicts sorted by key)."""
    return {param.name: params[param.name] for param in table(run)}
