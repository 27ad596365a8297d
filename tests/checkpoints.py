"""What the tests of checkpoints save: trees of every kind of leaf, on a mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from templar_jax.store.checkpoint import Meta

RUN = "ab" * 16
META = Meta(RUN, 7, 5, bytes(range(32)), bytes(32))


def tree(mesh: Mesh, seed: int = 0):
    """(public, private) on the mesh: stacked, sharded, replicated, bfloat16 and scalar leaves, optax states."""
    keys = iter(jax.random.split(jax.random.key(seed), 8))

    def put(array, *axes):
        return jax.device_put(array, NamedSharding(mesh, PartitionSpec(*axes)))

    public = {
        "layers/q": put(jax.random.normal(next(keys), (2, 64, 16)), None, "fsdp"),
        "embed": put(jax.random.normal(next(keys), (64, 8)), "fsdp"),
        "norm": put(jnp.ones((5,)) * seed),
        "momentum/embed": put(jax.random.normal(next(keys), (64, 8), jnp.bfloat16), "fsdp"),
    }
    params = {name: public[name] for name in ("layers/q", "embed")}
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))
    feedback = jax.tree.map(lambda x: x * 2, params)
    private = {"opt": jax.jit(optimizer.init)(params), "feedback": feedback, "empty": {}, "none": None}
    return public, private


def mesh_of(devices, count: int) -> Mesh:
    return Mesh(np.array(devices[:count]), ("fsdp",))


def same(a, b) -> bool:
    leaves_a, leaves_b = jax.tree.leaves(a), jax.tree.leaves(b)
    equal = [np.array_equal(np.asarray(x), np.asarray(y)) for x, y in zip(leaves_a, leaves_b, strict=True)]
    return jax.tree.structure(a) == jax.tree.structure(b) and all(equal)
