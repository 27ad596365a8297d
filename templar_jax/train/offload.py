"""Where arrays rest while nobody works on them: on the device, or in pinned host memory (`compute.offload`).

| class | what | bytes a parameter |
|---|---|---|
| parameters | the f32 parameters that the inner steps train; on the device only a copy in the compute dtype | 4 |
| moments | the inner optimiser's state | 8 (AdamW), 4 (Muon) |
| feedback | error feedback | 4 |
| snapshot | theta_w, the window's start, and the outer momentum | 4 (8 with momentum) |

Whoever works on many arrays takes one group of parameters after the other to the device (`fetch`) and puts what it
made where its predecessor lay (`settle`): the arrays themselves say where that is, so that only what creates arrays
looks at the configuration. No program has an operand in host memory (but those of `compute.remat = "offload-names"`):
the transfers are plain copies, and every program is the same with and without offloading, and so is every bit.
"""

from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh

from templar_jax.config import RunConfig
from templar_jax.sharding import shardings, table

HOST, DEVICE = "pinned_host", "device"

Tree = TypeVar("Tree")


def rest(at: Tree, offloaded: bool) -> Tree:
    """The tree of shardings `at`, in pinned host memory if offloaded."""
    return jax.tree.map(lambda where: where.with_memory_kind(HOST), at) if offloaded else at


def on_host(array: Any) -> bool:
    """True for an array (or its shape with a sharding) in pinned host memory."""
    return array.sharding.memory_kind == HOST


def fetch(tree: Tree) -> Tree:
    """Copies on the device of what lies on the host; what lies on the device is passed through."""

    def one(array: jax.Array) -> jax.Array:
        return jax.device_put(array, array.sharding.with_memory_kind(DEVICE)) if on_host(array) else array

    return jax.tree.map(one, tree)


def settle(tree: Tree, like: Any) -> Tree:
    """Arrays on the device moved to where those of `like` (or its shapes with shardings) lie.

    Returns when they have arrived, so that the device has room for the next group; arrays that stay are not waited for.
    """

    def one(array: jax.Array, old: Any) -> jax.Array:
        return jax.device_put(array, array.sharding.with_memory_kind(HOST)) if on_host(old) else array

    moved = jax.tree.map(one, tree, like)
    return jax.block_until_ready(moved) if any(map(on_host, jax.tree.leaves(like))) else moved


def copy(tree: Tree, offloaded: bool) -> Tree:
    """A second copy, in pinned host memory if offloaded; one array at a time on the device."""

    def one(array: jax.Array) -> jax.Array:
        twin = fetch(array) if on_host(array) else array.copy()
        return jax.block_until_ready(jax.device_put(twin, twin.sharding.with_memory_kind(HOST))) if offloaded else twin

    return jax.tree.map(one, tree)


def parameters_like(run: RunConfig, mesh: Mesh, offloaded: bool) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of the f32 parameters, with where they rest."""
    at = rest(shardings(run, mesh), offloaded)
    return {p.name: jax.ShapeDtypeStruct(p.shape, np.float32, sharding=at[p.name]) for p in table(run)}


def host_zeros(run: RunConfig, mesh: Mesh) -> dict[str, jax.Array]:
    """f32 zeros like the parameters in pinned host memory; the device sees none of them."""
    zeros = {}
    for name, like in parameters_like(run, mesh, True).items():
        of_shard = np.zeros(like.sharding.shard_shape(like.shape), np.float32)
        zeros[name] = jax.make_array_from_callback(like.shape, like.sharding, lambda _index, shard=of_shard: shard)
    return zeros
