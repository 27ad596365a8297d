"""The programs of a window's phases, lowered from shapes: nothing is run or allocated. Of groups the largest."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from templar_jax.compress.feedback import sign1_executable, v213_executables
from templar_jax.compress.quantize import CODES, SCALES
from templar_jax.compress.tiles import Tiling
from templar_jax.config import ComputeConfig, RunConfig
from templar_jax.model.placement import batch_sharding
from templar_jax.plan.memory import largest_group
from templar_jax.train.inner import make_inner
from templar_jax.train.offload import parameters_like
from templar_jax.train.optimizer import state_shapes
from templar_jax.train.outer import Group

Shape = jax.ShapeDtypeStruct


def lowered(run: RunConfig, compute: ComputeConfig, mesh: Mesh) -> dict[str, Any]:
    """phase -> its program, to be compiled.

    Raises:
      ConfigError: this mesh cannot run the configuration.
    """
    names = largest_group(run, mesh)
    like = parameters_like(run, mesh, offloaded=False)
    group = [like[name] for name in names]
    inner, everywhere = make_inner(run, compute, mesh), NamedSharding(mesh, PartitionSpec())
    scalar = Shape((), np.float32, sharding=everywhere)
    update = next(jitted for some, jitted in inner.update.executables if some == names)
    params = {name: like[name] for name in names}
    sign1 = run.compress.quantizer == "sign1"
    compress = sign1_executable(run, mesh, names) if sign1 else v213_executables(run, mesh, names)[0]
    outer = Group(run, mesh, names)
    return {
        "gradients": inner.gradients.lower(*gradients_shapes(run, compute, mesh)),
        "update": update.lower(params, state_shapes(run, mesh, names), params, scalar, scalar),
        "compress": compress.lower(group, group, group, np.float32(0), np.uint32(0)),
        "apply": outer.step_jit.lower(
            group, group if run.outer.momentum else [], _placed(run, outer), outer.constants(), np.uint32(0)
        ),
    }


def gradients_shapes(run: RunConfig, compute: ComputeConfig, mesh: Mesh) -> tuple[dict[str, Shape], Shape, Shape]:
    """Arguments of the gradients' program: parameters as they lie on the device meanwhile, tokens, index."""
    dtype = jnp.dtype(compute.dtype if "parameters" in compute.offload else "float32")
    like = parameters_like(run, mesh, offloaded=False)
    params = {name: Shape(x.shape, dtype, sharding=x.sharding) for name, x in like.items()}
    tokens_at = batch_sharding(mesh, run.inner.batch, "inner.batch")
    tokens_BS = Shape((run.inner.batch, run.data.sequence), np.int32, sharding=tokens_at)
    return params, tokens_BS, Shape((), np.int32)


def _placed(run: RunConfig, outer: Group) -> tuple[Any, list[dict[str, Shape]]]:
    """What `Group.place` makes of max_contributors contributions."""
    sent = []
    for tiling, where in zip(outer.cut, outer.where, strict=True):
        shapes = _sent_shapes(run, tiling)
        sent.append({part: Shape(*shapes[part], sharding=at) for part, at in where.items()})
    return Shape((), np.int32), sent


def _sent_shapes(run: RunConfig, tiling: Tiling) -> dict[str, tuple[tuple[int, ...], Any]]:
    stack, width = tiling.param.shape[: tiling.param.stack], run.max_contributors
    tiles = (*stack, width, *tiling.grid)
    entries = SCALES * CODES if run.compress.quantizer == "sign1" else CODES
    return {
        "indices": ((*tiles, tiling.k), np.uint16),
        "codes": ((*tiles, tiling.k), np.uint8),
        "scales": (tiles, np.uint8),
        "table": ((*stack, width, entries), np.float32),
    }
