"""Loss of given sequences under given parameters.

Letters: B sequences, S tokens of a sequence.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from templar_jax.config import ComputeConfig, RunConfig
from templar_jax.model.llama import Llama
from templar_jax.model.loss import token_nats
from templar_jax.model.placement import batch_sharding, make_placement
from templar_jax.sharding import BATCH, shards, to_devices
from templar_jax.train.state import Params
from templar_jax.train.working import make_working


def make_evaluate(
    run: RunConfig, compute: ComputeConfig, mesh: Mesh
) -> Callable[[Params, jax.Array | np.ndarray], jax.Array]:
    """`evaluate(params, tokens_BS int32) -> losses_B`: nats summed over the S - 1 predicted positions, f32.

    Any number of sequences: rows are added until they spread over the devices, and dropped again.

    Raises:
      ConfigError: the attention path cannot run here.
    """
    place = make_placement(run, compute, mesh)
    parts = shards(mesh, BATCH)
    tokens_at = batch_sharding(mesh, parts, "evaluation")
    working = make_working(run, compute, mesh)

    @functools.partial(jax.jit, out_shardings=NamedSharding(mesh, PartitionSpec()))  # every process reads them
    def losses(params: Params, tokens_BS: jax.Array) -> jax.Array:
        model = Llama(params, run.model, place)
        return token_nats(model.hidden(tokens_BS), model.head_weight(), tokens_BS, place).sum(-1)

    def evaluate(params: Params, tokens_BS: jax.Array | np.ndarray) -> jax.Array:
        count = tokens_BS.shape[0]
        padded = np.pad(np.asarray(tokens_BS, np.int32), ((0, -count % parts), (0, 0)))
        return jnp.asarray(losses(working(params), to_devices(padded, tokens_at)))[:count]

    return evaluate
