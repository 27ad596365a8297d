"""Arithmetic that XLA may not rewrite: what NumPy's f32 gives, bit for bit, on every backend and sharding."""

import jax
import jax.numpy as jnp
import numpy as np

TINY = np.float32(2.0**-100)  # magnitudes below are set to 0: no subnormal can ever arise from a sum


def product(a: jax.Array, b: jax.Array, zero: jax.Array) -> jax.Array:
    """a * b, rounded and flushed, never contracted with an addition that follows into a fused multiply-add.

    XLA contracts `a*b + c` even across its own optimisation barriers; it cannot look through an xor with a number
    that it does not know.

    Args:
      a, b: f32.
      zero: uint32 scalar 0 that is an argument of the jitted function, not a constant in it.
    """
    bits = jax.lax.bitcast_convert_type(jnp.multiply(a, b), jnp.uint32)
    return flush(jax.lax.bitcast_convert_type(bits ^ zero, jnp.float32))


def flush(x: jax.Array) -> jax.Array:
    """Magnitudes below 2**-100 become +0."""
    return jnp.where(jnp.abs(x) < TINY, np.float32(0), x)
