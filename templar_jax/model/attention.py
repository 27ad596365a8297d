"""Causal grouped-query attention by an explicit path; nothing falls back in silence.

Letters: B batch, S sequence, N query heads, K key-value heads, G = N // K queries per key-value head, H head dim,
Q rows of one query block, T keys that the block may see.

| path | what it is | where |
|---|---|---|
| xla | `jax.nn.dot_product_attention`, full score matrix | anywhere |
| cudnn | the same call on cuDNN's flash kernel | GPU, bfloat16 |
| blockwise | rows of queries against the keys they may see, own backward pass | CPU (and anywhere) |
"""

import jax
from jax.sharding import Mesh, PartitionSpec

from templar_jax.errors import ConfigError
from templar_jax.model.blockwise import blockwise_attention
from templar_jax.sharding import BATCH


def resolve_attention(choice: str, platform: str, dtype: str) -> str:
    """The path that `choice` means on this platform ("cpu", "gpu", ...).

    "auto" is cudnn on a GPU in bfloat16, xla on other accelerators and blockwise on CPU (measured: docs/decisions.md).

    Raises:
      ConfigError: the choice cannot run here.
    """
    flash = platform in ("gpu", "cuda") and dtype == "bfloat16"
    if choice == "auto":
        return "cudnn" if flash else "blockwise" if platform == "cpu" else "xla"
    if choice not in ("xla", "blockwise", "cudnn"):
        raise ConfigError(f"compute.attention {choice!r} is unknown: use auto, xla, blockwise or cudnn")
    if choice == "cudnn" and not flash:
        raise ConfigError(
            f"compute.attention cudnn needs a CUDA GPU and compute.dtype bfloat16, here are {platform} and {dtype}: "
            "set compute.attention to auto"
        )
    return choice


def attend(
    q_BSNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    path: str,
    mesh: Mesh | None = None,
    heads: str | None = None,
) -> jax.Array:
    """softmax(q k^T / sqrt(H), causal) v -> [B, S, N, H] in the dtype of q; softmax in f32.

    `mesh` and `heads` (the mesh axis that the heads are laid over) matter to the blockwise path only.
    """
    if path != "blockwise":
        implementation = "cudnn" if path == "cudnn" else "xla"
        return jax.nn.dot_product_attention(q_BSNH, k_BSKH, v_BSKH, is_causal=True, implementation=implementation)
    if mesh is None or mesh.size == 1:
        return blockwise_attention(q_BSNH, k_BSKH, v_BSKH)
    # Every sequence and head stands alone: no collectives, and the map over sequences sees its own shard only.
    spec = PartitionSpec(BATCH, None, heads, None)
    sharded = jax.shard_map(blockwise_attention, mesh=mesh, in_specs=(spec, spec, spec), out_specs=spec)
    return sharded(q_BSNH, k_BSKH, v_BSKH)
