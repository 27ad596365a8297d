"""The inner step: one optimiser step of a miner, in two parts: the gradients of a batch, then the update by groups.

Letters: B sequences of an inner step, M sequences of a micro-batch, S sequence.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from templar_jax.config import ComputeConfig, RunConfig
from templar_jax.errors import ConfigError
from templar_jax.model.placement import Placement, batch_sharding, make_placement
from templar_jax.sharding import shardings, to_devices
from templar_jax.train.accumulate import accumulated
from templar_jax.train.offload import copy, parameters_like
from templar_jax.train.schedule import learning_rate
from templar_jax.train.state import Params, ordered
from templar_jax.train.update import Update, make_update
from templar_jax.train.working import make_working


class Metrics(NamedTuple):
    """Device scalars, f32. Fetch those of step N after step N + 1 is dispatched."""

    loss: jax.Array  # mean nats per predicted token, before the step
    grad_norm: jax.Array  # global norm before clipping
    lr: jax.Array


@dataclass(frozen=True)
class Inner:
    """begin(theta) -> params: the copy of a window's start that the inner steps train.
    like: shapes of what it yields, with where it lies.
    init() -> opt
    step(params, opt, batch_BS, step) -> (params, opt, Metrics): params and opt are given up.
    gradients: the jitted first part, (working params, tokens, index int32) -> (grads, scale, Metrics), and `update`
      the second: to be lowered by plans and tests.
    """

    begin: Callable[[Params], Params]
    like: dict[str, jax.ShapeDtypeStruct]
    init: Callable[[], Any]
    step: Callable[[Params, Any, Any, int], tuple[Params, Any, Metrics]]
    batch_sharding: NamedSharding
    placement: Placement
    gradients: Any
    update: Update


def make_inner(run: RunConfig, compute: ComputeConfig, mesh: Mesh) -> Inner:
    """The inner step of `run` on `mesh`.

    Raises:
      ConfigError: batch and micro-batch do not divide, or the attention path cannot run here.
    """
    micro = compute.micro_batch or run.inner.batch
    if run.inner.batch % micro:
        raise ConfigError(
            f"compute.micro_batch {micro} does not divide inner.batch {run.inner.batch}: choose a divisor"
        )
    batch_sharding(mesh, micro, "compute.micro_batch" if compute.micro_batch else "inner.batch")
    tokens_at = batch_sharding(mesh, run.inner.batch, "inner.batch")
    place = make_placement(run, compute, mesh)
    gradients = _gradients(run, place, micro, mesh)
    update, working = make_update(run, mesh, compute.offload), make_working(run, compute, mesh)

    def step(params: Params, opt: Any, batch_BS: Any, step: int) -> tuple[Params, Any, Metrics]:
        tokens_BS = to_devices(batch_BS, tokens_at)
        grads, scale, metrics = gradients(working(params), tokens_BS, np.int32(step))
        params, opt = update.apply(params, opt, grads, scale, metrics.lr)
        return ordered(run, params), opt, metrics

    offloaded = "parameters" in compute.offload

    def begin(theta: Params) -> Params:
        return copy(theta, offloaded)

    return Inner(begin, parameters_like(run, mesh, offloaded), update.init, step, tokens_at, place, gradients, update)


def _gradients(run: RunConfig, place: Placement, micro: int, mesh: Mesh) -> Any:
    at, everywhere = shardings(run, mesh), NamedSharding(mesh, PartitionSpec())

    def gradients(params: Params, tokens_BS: jax.Array, index: jax.Array) -> tuple[Params, jax.Array, Metrics]:
        loss, grads = accumulated(run, place, micro, params, tokens_BS)
        grads = {name: jax.lax.with_sharding_constraint(grad, at[name]) for name, grad in grads.items()}
        norm = optax.tree.norm(grads)
        scale = jnp.minimum(1.0, run.inner.clip / (norm + 1e-6))
        return grads, scale, Metrics(loss, norm, learning_rate(run.inner, index))

    return jax.jit(gradients, out_shardings=(at, everywhere, everywhere))
