"""A miner's private state (optimizer moments, error feedback) as one string of bytes, for the full audit.

Every array's bytes one after the other, little-endian, row-major: the optimizer's leaves in JAX's order, then the
error feedback's in the table's. Shapes and dtypes follow from the run, so nothing else stands in it.
"""

import math
from functools import lru_cache
from typing import Any

import jax
import numpy as np

from templar_jax.config import RunConfig
from templar_jax.node.engine import Engine, Params
from templar_jax.sharding import table
from templar_jax.train.optimizer import make_optimizer

Leaves = list[np.ndarray]


@lru_cache(maxsize=8)
def _shapes(run: RunConfig) -> tuple[jax.ShapeDtypeStruct, ...]:
    shapes = {param.name: jax.ShapeDtypeStruct(param.shape, "float32") for param in table(run)}
    return (*jax.tree.leaves(jax.eval_shape(make_optimizer(run).init, shapes)), *shapes.values())


def state_bytes(run: RunConfig) -> int:
    """Length of the private state of a miner of `run`."""
    return sum(math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize for leaf in _shapes(run))


def leaves(run: RunConfig, opt: Any, feedback: Params) -> Leaves:
    """Every array, on the host, in the order of the bytes."""
    return [np.asarray(x) for x in (*jax.tree.leaves(opt), *(feedback[param.name] for param in table(run)))]


def to_bytes(run: RunConfig, opt: Any, feedback: Params) -> bytes:
    """`state_bytes(run)` bytes."""
    return b"".join(
        leaf.astype(leaf.dtype.newbyteorder("<"), copy=False).tobytes() for leaf in leaves(run, opt, feedback)
    )


def fresh(engine: Engine) -> bytes:
    """Of a miner that has not trained yet."""
    return to_bytes(engine.run, engine.inner.init(), engine.compressor.init())


def views(run: RunConfig, state: bytes | memoryview) -> Leaves:
    """Every array of `state`, which has `state_bytes(run)` bytes, without a copy."""
    found, start = [], 0
    for leaf in _shapes(run):
        dtype = np.dtype(leaf.dtype).newbyteorder("<")
        found.append(np.frombuffer(state, dtype, math.prod(leaf.shape), start).reshape(leaf.shape))
        start += found[-1].nbytes
    assert start == len(state)
    return found


def from_bytes(engine: Engine, state: bytes | memoryview) -> tuple[Any, Params]:
    """(optimizer state, error feedback) on the engine's devices; `state` has `state_bytes(run)` bytes."""
    like, structure = jax.tree.flatten(engine.inner.init())
    feedback, names = engine.compressor.init(), [param.name for param in table(engine.run)]
    lying = [leaf.sharding for leaf in (*like, *(feedback[name] for name in names))]
    arrays = list(map(jax.device_put, views(engine.run, state), lying))
    return jax.tree.unflatten(structure, arrays[: len(like)]), dict(zip(names, arrays[len(like) :], strict=True))
