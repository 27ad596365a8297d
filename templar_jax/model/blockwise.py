"""Causal attention in rows of queries, for backends without a flash kernel.

A block of query rows meets only the keys it may see: the blocks above the diagonal are never computed, and no more
than one block's scores of one sequence exist at a time (sequences are mapped over, so that what is in flight stays
in cache). The backward pass recomputes them from the saved log-sum-exp, as in FlashAttention
(https://arxiv.org/abs/2205.14135, https://arxiv.org/abs/2307.08691), instead of keeping probabilities.

Letters: B batch, S sequence, N query heads, K key-value heads, G = N // K queries per key-value head, H head dim,
Q rows of one query block, T keys that the block may see.
"""

import math

import jax
import jax.numpy as jnp

ROWS = 128  # query rows of a block, at least; measured: docs/decisions.md
BLOCKS = 8  # blocks of a sequence, at most: bounds the size of the compiled program


def block_edges(sequence: int) -> list[tuple[int, int]]:
    """[(first row, row after the last)] of the query blocks of a sequence."""
    rows = max(ROWS, -(-sequence // BLOCKS))
    return [(start, min(start + rows, sequence)) for start in range(0, sequence, rows)]


def _scores(q_KGQH: jax.Array, k_KTH: jax.Array, start: int) -> jax.Array:
    """Scaled scores of query rows start.. against keys 0..T-1, masked on the diagonal, f32 [K, G, Q, T]."""
    s_KGQT = jnp.einsum("kgqh,kth->kgqt", q_KGQH, k_KTH, preferred_element_type=jnp.float32)
    rows = start + jax.lax.broadcasted_iota(jnp.int32, s_KGQT.shape, 2)
    cols = jax.lax.broadcasted_iota(jnp.int32, s_KGQT.shape, 3)
    return jnp.where(cols <= rows, s_KGQT / math.sqrt(q_KGQH.shape[-1]), -jnp.inf)


def _forward(qkv: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
    """One sequence: output [K, G, S, H] and the log-sum-exp of the scores, f32 [K, G, S, 1]."""
    q_KGSH, k_KSH, v_KSH = qkv
    outs, lses = [], []
    for start, stop in block_edges(q_KGSH.shape[2]):
        s_KGQT = _scores(q_KGSH[:, :, start:stop], k_KSH[:, :stop], start)
        top = s_KGQT.max(-1, keepdims=True)
        p_KGQT = jnp.exp(s_KGQT - top)
        total = p_KGQT.sum(-1, keepdims=True)
        out_KGQH = jnp.einsum("kgqt,kth->kgqh", p_KGQT.astype(v_KSH.dtype), v_KSH[:, :stop])
        outs.append((out_KGQH / total).astype(q_KGSH.dtype))
        lses.append(top + jnp.log(total))
    return jnp.concatenate(outs, 2), jnp.concatenate(lses, 2)


def _backward(saved: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array, jax.Array]:
    """One sequence: the gradients of q, k and v from (q, k, v, output, log-sum-exp, gradient of the output)."""
    q_KGSH, k_KSH, v_KSH, out_KGSH, lse_KGS1, d_out_KGSH = saved
    delta_KGS1 = (d_out_KGSH.astype(jnp.float32) * out_KGSH.astype(jnp.float32)).sum(-1, keepdims=True)
    d_q, d_k_KSH, d_v_KSH = [], jnp.zeros(k_KSH.shape, jnp.float32), jnp.zeros(v_KSH.shape, jnp.float32)
    for start, stop in block_edges(q_KGSH.shape[2]):
        q_KGQH, d_out_KGQH = q_KGSH[:, :, start:stop], d_out_KGSH[:, :, start:stop]
        k_KTH, v_KTH = k_KSH[:, :stop], v_KSH[:, :stop]
        p_KGQT = jnp.exp(_scores(q_KGQH, k_KTH, start) - lse_KGS1[:, :, start:stop])
        d_p_KGQT = jnp.einsum("kgqh,kth->kgqt", d_out_KGQH, v_KTH, preferred_element_type=jnp.float32)
        d_s_KGQT = p_KGQT * (d_p_KGQT - delta_KGS1[:, :, start:stop]) / math.sqrt(q_KGSH.shape[-1])
        d_s_KGQT = d_s_KGQT.astype(q_KGSH.dtype)
        d_q.append(jnp.einsum("kgqt,kth->kgqh", d_s_KGQT, k_KTH))
        d_v_KTH = jnp.einsum("kgqt,kgqh->kth", p_KGQT.astype(v_KSH.dtype), d_out_KGQH)
        d_k_KTH = jnp.einsum("kgqt,kgqh->kth", d_s_KGQT, q_KGQH)
        d_v_KSH, d_k_KSH = d_v_KSH.at[:, :stop].add(d_v_KTH), d_k_KSH.at[:, :stop].add(d_k_KTH)
    return jnp.concatenate(d_q, 2), d_k_KSH.astype(k_KSH.dtype), d_v_KSH.astype(v_KSH.dtype)


def _heads_first(x: jax.Array, kv_heads: int) -> jax.Array:
    """Queries or outputs of one sequence: [S, N, H] -> [K, G, S, H]."""
    return x.reshape(x.shape[0], kv_heads, -1, x.shape[-1]).transpose(1, 2, 0, 3)


def _heads_last(x: jax.Array) -> jax.Array:
    """[K, G, S, H] -> [S, N, H]."""
    return x.transpose(2, 0, 1, 3).reshape(x.shape[2], -1, x.shape[3])


def _forward_of(qkv: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
    """One sequence in the caller's layout: output [S, N, H] and log-sum-exp [K, G, S, 1]."""
    q_SNH, k_SKH, v_SKH = qkv
    kv_heads = k_SKH.shape[1]
    out, lse = _forward((_heads_first(q_SNH, kv_heads), k_SKH.transpose(1, 0, 2), v_SKH.transpose(1, 0, 2)))
    return _heads_last(out), lse


def _backward_of(saved: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array, jax.Array]:
    """One sequence in the caller's layout: gradients of q [S, N, H], k and v [S, K, H]."""
    q, k, v, out, lse, d_out = saved
    kv_heads = k.shape[1]
    q, out, d_out = (_heads_first(x, kv_heads) for x in (q, out, d_out))
    d_q, d_k, d_v = _backward((q, k.transpose(1, 0, 2), v.transpose(1, 0, 2), out, lse, d_out))
    return _heads_last(d_q), d_k.transpose(1, 0, 2), d_v.transpose(1, 0, 2)


@jax.custom_vjp
def blockwise_attention(q_BSNH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array) -> jax.Array:
    """softmax(q k^T / sqrt(H), causal) v -> [B, S, N, H] in the dtype of q; scores, softmax and sums in f32."""
    return jax.lax.map(_forward_of, (q_BSNH, k_BSKH, v_BSKH))[0]


def _attention_fwd(q, k, v):
    out, lse = jax.lax.map(_forward_of, (q, k, v))
    return out, (q, k, v, out, lse)


def _attention_bwd(saved, d_out):
    return jax.lax.map(_backward_of, (*saved, d_out))


blockwise_attention.defvjp(_attention_fwd, _attention_bwd)
