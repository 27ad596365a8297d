"""The pieces of a Llama layer, as pure functions.

Letters: B batch, S sequence, D model dim, N query heads, K key-value heads, H head dim, F ffn dim.
"""

import jax
import jax.numpy as jnp
import numpy as np


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


def swiglu(gate_BSF: jax.Array, up_BSF: jax.Array) -> jax.Array:
    """silu(gate) * up. https://arxiv.org/abs/2002.05202"""
    return jax.nn.silu(gate_BSF) * up_BSF
