"""Loss and gradients of a batch, in one forward and backward pass or in several that are added up.

Gradients are f32, also of parameters that lie on the device in bfloat16 (offload.py): the model takes the gradient
of each weight from a tap in f32. Those of several micro-batches are added in place, layer by layer, while the backward
pass runs (`jax.vjp(...).with_refs`), so there is one set of them in memory, not two.

Letters: B sequences of an inner step, M sequences of a micro-batch, S sequence.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from templar_jax.config import RunConfig
from templar_jax.model.llama import TAP, Llama
from templar_jax.model.loss import sum_nats
from templar_jax.model.moe import router_loss
from templar_jax.model.placement import Placement
from templar_jax.sharding import BATCH
from templar_jax.train.state import Params


def _loss(run: RunConfig, place: Placement, params: Params, tokens_BS: jax.Array) -> tuple[Callable, Params]:
    """(loss, x): loss(x) -> (what is minimised, mean nats per target), and x, what is to be differentiated.

    What a mixture of experts minimises are the nats and the routers' losses, means over layers.
    """
    targets = tokens_BS.shape[0] * (tokens_BS.shape[1] - 1)

    def loss(params: Params) -> tuple[jax.Array, jax.Array]:
        model = Llama(params, run.model, place)
        hidden_BSD, stats = model.hidden_and_stats(tokens_BS)
        nats = sum_nats(hidden_BSD, model.head_weight(), tokens_BS, place) / targets
        return nats + router_loss(run.model, stats), nats

    if all(value.dtype == jnp.float32 for value in params.values()):
        return loss, params
    taps = {name: jnp.zeros(value.shape, jnp.float32) for name, value in params.items()}  # not made: nobody reads them
    return lambda taps: loss(params | {name + TAP: tap for name, tap in taps.items()}), taps


def loss_and_grads(run: RunConfig, place: Placement, params: Params, tokens_BS: jax.Array) -> tuple[jax.Array, Params]:
    """(mean nats per target, gradients f32 of what is minimised) of one batch in one forward and backward pass."""
    loss, x = _loss(run, place, params, tokens_BS)
    (_, nats), grads = jax.value_and_grad(loss, has_aux=True)(x)
    return nats, grads


def accumulated(
    run: RunConfig, place: Placement, micro: int, params: Params, tokens_BS: jax.Array
) -> tuple[jax.Array, Params]:
    """`loss_and_grads` over micro-batches of `micro` sequences, one at a time in memory."""
    if micro == tokens_BS.shape[0]:
        return loss_and_grads(run, place, params, tokens_BS)
    parts = place.constrain(tokens_BS.reshape(-1, micro, tokens_BS.shape[1]), None, BATCH, None)
    sums = {name: jax.new_ref(jnp.zeros(value.shape, jnp.float32)) for name, value in params.items()}

    def add(total: jax.Array, part_MS: jax.Array) -> tuple[jax.Array, None]:
        loss, x = _loss(run, place, params, part_MS)
        minimised, backward, nats = jax.vjp(loss, x, has_aux=True)
        backward.with_refs(sums)(jnp.ones_like(minimised))
        return total + nats, None

    total, _ = jax.lax.scan(add, jnp.zeros((), jnp.float32), parts)
    count = parts.shape[0]
    return total / count, {name: jax.freeze(value) / count for name, value in sums.items()}
