"""The pieces of a Llama layer, as pure functions.

Letters: B batch, S sequence, D model dim, N query heads, K key-value heads, H head dim, F ffn dim.
"""

import jax
import jax.numpy as jnp
import numpy as np


@jax.custom_vjp
def linear(x_BSI: jax.Array, weights_IO: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
    """x @ w for each w. The backward pass is written out because XLA on CPU has only row-major matmuls.

    A weight's gradient contracts over tokens, so one operand is transposed in memory. Left alone, XLA transposes the
    gradient of the output, once per weight, and computes whatever made it inside that strided copy (half of a step's
    time, measured: docs/decisions.md). Here the gradient is made first, and the input is transposed once for all
    weights, or the gradient where it is narrower.
    """
    return tuple(x_BSI @ w_IO for w_IO in weights_IO)


def _linear_fwd(x_BSI, weights_IO):
    return linear(x_BSI, weights_IO), (x_BSI, weights_IO)


def _linear_bwd(saved, d_ys_BSO):
    x_BSI, weights_IO = saved
    x_BSI, *d_ys_BSO = jax.lax.optimization_barrier((x_BSI, *d_ys_BSO))
    d_x_BSI = sum(d_y @ w.T for d_y, w in zip(d_ys_BSO, weights_IO, strict=True))
    if len(weights_IO) == 1 and weights_IO[0].shape[0] > weights_IO[0].shape[1]:
        d_w_OI = jnp.einsum("bso,bsi->oi", d_ys_BSO[0], x_BSI)
        return d_x_BSI, (jax.lax.optimization_barrier(d_w_OI).T,)  # else folded into a slower, transposed matmul
    return d_x_BSI, tuple(jnp.einsum("bsi,bso->io", x_BSI, d_y) for d_y in d_ys_BSO)


linear.defvjp(_linear_fwd, _linear_bwd)


def rms_norm(x_BSD: jax.Array, weight_D: jax.Array, eps: float) -> jax.Array:
    """x / sqrt(mean(x^2) + eps) * weight over the last dim, computed in f32, returned in the dtype of x.

    https://arxiv.org/abs/1910.07467
    """
    x = x_BSD.astype(jnp.float32)
    scale = jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + eps)
    return (x * scale * weight_D.astype(jnp.float32)).astype(x_BSD.dtype)


def rope_angles(sequence: int, head_dim: int, theta: float) -> tuple[jax.Array, jax.Array]:
    """(cos, sin) of position * theta^(-2i / H) for i < H / 2, f32 [S, H / 2]. https://arxiv.org/abs/2104.09864"""
    rate = (theta ** (-np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)).astype(np.float32)
    angle_SH = jnp.arange(sequence, dtype=jnp.float32)[:, None] * rate
    return jnp.cos(angle_SH), jnp.sin(angle_SH)


def rope(x_BSNH: jax.Array, angles: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Rotates the pairs (i, i + H / 2) of each head (the half-split order of Hugging Face's Llama), in f32."""
    cos, sin = (a[:, None, :] for a in angles)
    low, high = jnp.split(x_BSNH.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([low * cos - high * sin, high * cos + low * sin], -1).astype(x_BSNH.dtype)


@jax.custom_vjp
def swiglu(gate_BSF: jax.Array, up_BSF: jax.Array) -> jax.Array:
    """silu(gate) * up. https://arxiv.org/abs/2002.05202 Saves its two inputs for the backward pass and nothing else."""
    return gate_BSF * jax.nn.sigmoid(gate_BSF) * up_BSF


def _swiglu_fwd(gate_BSF, up_BSF):
    return swiglu(gate_BSF, up_BSF), (gate_BSF, up_BSF)


def _swiglu_bwd(saved, d_BSF):
    gate_BSF, up_BSF = saved
    on_BSF = jax.nn.sigmoid(gate_BSF)
    d_gate_BSF = d_BSF * up_BSF * on_BSF * (1 + gate_BSF * (1 - on_BSF))
    return d_gate_BSF, d_BSF * gate_BSF * on_BSF


swiglu.defvjp(_swiglu_fwd, _swiglu_bwd)
