"""The learning rate: a pure function of the global inner step."""

import jax
import jax.numpy as jnp

from templar_jax.config import InnerConfig


def learning_rate(config: InnerConfig, step: jax.Array | int) -> jax.Array:
    """Learning rate of global inner step `step` (0 is the first): linear warm-up, cosine, then constant. f32 scalar.

    Step `warmup - 1` is the first at full rate, so that no step is wasted at rate 0; from `decay_steps` on it is
    `min_lr_ratio` of the full rate. https://arxiv.org/abs/1608.03983
    """
    step = jnp.asarray(step, jnp.float32)
    warm = jnp.minimum(1.0, (step + 1) / max(config.warmup, 1))
    span = max(config.decay_steps - config.warmup, 1)
    progress = jnp.clip((step - config.warmup) / span, 0.0, 1.0)
    cosine = 0.5 * (1 + jnp.cos(jnp.pi * progress))
    return config.lr * warm * (config.min_lr_ratio + (1 - config.min_lr_ratio) * cosine)
