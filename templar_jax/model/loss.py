"""Next-token cross-entropy in chunks of the sequence, gradients formed on the way forward.

Only one chunk's logits exist at a time. Under differentiation each chunk's gradients of the hidden states and of the
head are computed while its logits are at hand (a sum of losses has a known cotangent up to one scalar), so that the
backward pass neither stores nor recomputes them: three matmuls of the head's size instead of four.

Letters: B batch, S sequence, C positions of one chunk, D model dim, V vocabulary.
"""

import functools

import jax
import jax.numpy as jnp

from templar_jax.model.placement import Placement
from templar_jax.sharding import BATCH


def next_tokens(tokens_BS: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(targets_BS, weights_BS): position i predicts token i + 1; the last position has weight 0, the others 1."""
    targets_BS = jnp.roll(tokens_BS, -1, axis=1)
    positions = jax.lax.broadcasted_iota(jnp.int32, tokens_BS.shape, 1)
    return targets_BS, (positions < tokens_BS.shape[1] - 1).astype(jnp.float32)


def _chunks(sequence: int, chunk: int) -> int:
    """Number of equal chunks of at most `chunk` positions that the sequence divides into."""
    count = -(-sequence // chunk)
    while sequence % count:
        count += 1
    return count


def _split(x: jax.Array, count: int) -> jax.Array:
    """[B, S, ...] -> [count, B, C, ...]."""
    return jnp.moveaxis(x.reshape(x.shape[0], count, -1, *x.shape[2:]), 1, 0)


def _join(x: jax.Array) -> jax.Array:
    """[count, B, C, ...] -> [B, S, ...]."""
    x = jnp.moveaxis(x, 0, 1)
    return x.reshape(x.shape[0], -1, *x.shape[3:])


def _chunk_nats(h_BCD, head_DV, targets_BC, weights_BC, place: Placement):
    """(nats_BC, log-probabilities_BCV, one-hot targets_BCV) of one chunk, f32."""
    logits_BCV = jnp.matmul(h_BCD, head_DV, preferred_element_type=jnp.float32)
    logits_BCV = place.constrain(logits_BCV, BATCH, None, place.vocab)
    hit_BCV = targets_BC[..., None] == jax.lax.broadcasted_iota(jnp.int32, logits_BCV.shape, 2)
    lse_BC1 = jax.nn.logsumexp(logits_BCV, axis=-1, keepdims=True)
    if place.vocab is None:
        own_BC = jnp.take_along_axis(logits_BCV, targets_BC[..., None], -1)[..., 0]
    else:  # a gather over a sharded dim would collect the logits
        own_BC = jnp.where(hit_BCV, logits_BCV, 0.0).sum(-1)
    nats_BC = (lse_BC1[..., 0] - own_BC) * weights_BC
    return nats_BC, logits_BCV - lse_BC1, hit_BCV


def token_nats(h_BSD: jax.Array, head_DV: jax.Array, tokens_BS: jax.Array, place: Placement) -> jax.Array:
    """-log p(token i + 1) at each position i, 0 at the last, f32 [B, S]; not meant to be differentiated."""
    targets_BS, weights_BS = next_tokens(tokens_BS)
    count = _chunks(h_BSD.shape[1], place.loss_chunk)
    parts = tuple(_split(x, count) for x in (h_BSD, targets_BS, weights_BS))
    return _join(jax.lax.map(lambda p: _chunk_nats(p[0], head_DV, p[1], p[2], place)[0], parts))


def sum_nats(h_BSD: jax.Array, head_DV: jax.Array, tokens_BS: jax.Array, place: Placement) -> jax.Array:
    """Sum of the nats of all B * (S - 1) targets, f32 scalar; differentiable in the hidden states and the head."""
    return jnp.asarray(_sum_nats(h_BSD, head_DV, tokens_BS, place))


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _sum_nats(h_BSD: jax.Array, head_DV: jax.Array, tokens_BS: jax.Array, place: Placement) -> jax.Array:
    return token_nats(h_BSD, head_DV, tokens_BS, place).sum()


def _sum_nats_fwd(h_BSD, head_DV, tokens_BS, place):
    targets_BS, weights_BS = next_tokens(tokens_BS)
    count = _chunks(h_BSD.shape[1], place.loss_chunk)

    def chunk(d_head_DV, part):
        h_BCD, targets_BC, weights_BC = part
        nats_BC, log_p_BCV, hit_BCV = _chunk_nats(h_BCD, head_DV, targets_BC, weights_BC, place)
        d_logits_BCV = (jnp.exp(log_p_BCV) - hit_BCV.astype(jnp.float32)) * weights_BC[..., None]
        d_logits_BCV = d_logits_BCV.astype(h_BCD.dtype)
        d_h_BCD = place.constrain(d_logits_BCV @ head_DV.T, BATCH, None, None)
        d_head_DV += jnp.einsum("bcd,bcv->dv", h_BCD, d_logits_BCV, preferred_element_type=jnp.float32)
        return d_head_DV, (d_h_BCD, nats_BC.sum())

    parts = tuple(_split(x, count) for x in (h_BSD, targets_BS, weights_BS))
    d_head_DV, (d_h, nats) = jax.lax.scan(chunk, jnp.zeros(head_DV.shape, jnp.float32), parts)
    return nats.sum(), (_join(d_h), d_head_DV)


def _sum_nats_bwd(place, saved, g):
    d_h_BSD, d_head_DV = saved
    return (d_h_BSD * g.astype(d_h_BSD.dtype), (d_head_DV * g).astype(d_h_BSD.dtype), None)


_sum_nats.defvjp(_sum_nats_fwd, _sum_nats_bwd)
