"""The inner step: one optimiser step of a miner, as one donated executable.

Letters: B sequences of an inner step, M sequences of a micro-batch, S sequence.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding

from templar_jax.config import ComputeConfig, RunConfig
from templar_jax.errors import ConfigError
from templar_jax.model.llama import Llama
from templar_jax.model.loss import sum_nats
from templar_jax.model.moe import router_loss
from templar_jax.model.placement import Placement, batch_sharding, make_placement
from templar_jax.sharding import BATCH, shardings
from templar_jax.train.optimizer import make_optimizer, optimizer_shardings
from templar_jax.train.schedule import learning_rate
from templar_jax.train.state import Params, ordered


class Metrics(NamedTuple):
    """Device scalars, f32. Fetch those of step N after step N + 1 is dispatched."""

    loss: jax.Array  # mean nats per predicted token, before the step
    grad_norm: jax.Array  # global norm before clipping
    lr: jax.Array


@dataclass(frozen=True)
class Inner:
    """`init(params) -> opt`; `step(params, opt, batch_BS, step) -> (params, opt, Metrics)`, params and opt donated."""

    init: Callable[[Params], Any]
    step: Callable[[Params, Any, Any, int], tuple[Params, Any, Metrics]]
    batch_sharding: NamedSharding
    placement: Placement
    jitted: Any  # the step as jax.jit made it, index int32 and params in any order: to be lowered by plans and tests


def loss_and_grads(run: RunConfig, place: Placement, params: Params, tokens_BS: jax.Array) -> tuple[jax.Array, Params]:
    """(mean nats per target, gradients) of one batch in one forward and backward pass.

    The gradients of a mixture of experts are those of the nats and of the routers' losses, means over layers.
    """
    targets = tokens_BS.shape[0] * (tokens_BS.shape[1] - 1)

    def loss(params: Params) -> tuple[jax.Array, jax.Array]:
        model = Llama(params, run.model, place)
        hidden_BSD, stats = model.hidden_and_stats(tokens_BS)
        nats = sum_nats(hidden_BSD, model.head_weight(), tokens_BS, place) / targets
        return nats + router_loss(run.model, stats), nats

    (_, nats), grads = jax.value_and_grad(loss, has_aux=True)(params)
    return nats, grads


def accumulated(run: RunConfig, place: Placement, micro: int, params: Params, tokens_BS: jax.Array):
    """`loss_and_grads` over micro-batches of `micro` sequences, one at a time in memory."""
    if micro == tokens_BS.shape[0]:
        return loss_and_grads(run, place, params, tokens_BS)
    parts = place.constrain(tokens_BS.reshape(-1, micro, tokens_BS.shape[1]), None, BATCH, None)

    def add(total, part_MS):
        return jax.tree.map(jnp.add, total, loss_and_grads(run, place, params, part_MS)), None

    zero = jnp.zeros((), jnp.float32), jax.tree.map(jnp.zeros_like, params)
    total, _ = jax.lax.scan(add, zero, parts)
    return jax.tree.map(lambda x: x / parts.shape[0], total)


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
    optimizer = make_optimizer(run)
    params_at, opt_at = shardings(run, mesh), optimizer_shardings(run, optimizer, mesh)

    def step(params, opt, tokens_BS, index):
        loss, grads = accumulated(run, place, micro, params, tokens_BS)
        grads = {name: jax.lax.with_sharding_constraint(grad, params_at[name]) for name, grad in grads.items()}
        norm = optax.tree.norm(grads)
        scale = jnp.minimum(1.0, run.inner.clip / (norm + 1e-6))
        directions, opt = optimizer.update(jax.tree.map(lambda g: g * scale, grads), opt, params)
        rate = learning_rate(run.inner, index)
        params = jax.tree.map(lambda p, d: p - rate * d, params, directions)
        return params, opt, Metrics(loss, norm, rate)

    compiled = jax.jit(step, donate_argnums=(0, 1), out_shardings=(params_at, opt_at, None))
    start = jax.jit(optimizer.init, out_shardings=opt_at)

    def run_step(params, opt, batch_BS, step):
        tokens_BS = jax.device_put(batch_BS, tokens_at)
        params, opt, metrics = compiled(params, opt, tokens_BS, np.int32(step))
        return ordered(run, params), opt, metrics

    return Inner(start, run_step, tokens_at, place, compiled)
