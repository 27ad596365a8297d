"""How a model is placed and computed: what of the computation is this node's own choice, never agreed upon."""

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from templar_jax.config import ComputeConfig, RunConfig
from templar_jax.errors import ConfigError
from templar_jax.model.attention import resolve_attention
from templar_jax.sharding import BATCH, LAYERS, Axis, shards, spec, table

# On CPU the residuals that a scan stacks for the backward pass cost 15 to 20 % of a step in page faults and copies.
CPU_UNROLL = 16


@dataclass(frozen=True)
class Placement:
    """Static facts that the forward pass closes over. Hashable.

    `weights` gives, per parameter and without its layer dim, the PartitionSpec under which a weight is *used*: the
    axis fsdp gathered, tensor and that of the experts kept. A `mesh` of None (or of one device) means: no constraints.
    """

    mesh: Mesh | None = None
    dtype: str = "float32"
    attention: str = "xla"  # resolved: never "auto"
    remat: str = "none"
    loss_chunk: int = 512
    unroll: int = 1  # layers that one turn of the scan holds
    heads: str | None = None  # mesh axis of the attention heads
    vocab: str | None = None  # mesh axis of the logits
    weights: tuple[tuple[str, PartitionSpec], ...] = field(default=())
    resting: tuple[tuple[str, PartitionSpec], ...] = field(default=())  # the same as the parameter lies in memory

    def constrain(self, x: jax.Array, *axes: Axis) -> jax.Array:
        """`x` with its dims laid over the named mesh axes."""
        if self.mesh is None or self.mesh.size == 1:
            return x
        return jax.lax.with_sharding_constraint(x, NamedSharding(self.mesh, PartitionSpec(*axes)))

    def weight(self, name: str, value: jax.Array, tap: jax.Array | None = None) -> jax.Array:
        """One unit's weight in the compute dtype, gathered over fsdp (cast first: half the traffic in bfloat16).

        `tap`: f32 zeros like `value`, which receive its gradient in f32 where `value` itself is narrower.
        """
        value = value.astype(jnp.dtype(self.dtype))
        if tap is not None:
            value = tapped(value, tap)
        for key, axes in self.weights:
            if key == name:
                return self.constrain(value, *axes)
        return value


@jax.custom_vjp
def tapped(weight: jax.Array, tap: jax.Array) -> jax.Array:
    """`weight`; its gradient goes to `tap`, in f32."""
    return weight


def _tapped_fwd(weight, tap):
    return weight, None


def _tapped_bwd(_, d_weight):
    return jnp.zeros_like(d_weight), d_weight.astype(jnp.float32)


tapped.defvjp(_tapped_fwd, _tapped_bwd)

ALONE = Placement()  # one device, f32, plain attention


def make_placement(run: RunConfig, compute: ComputeConfig, mesh: Mesh) -> Placement:
    """The placement of `run`'s model on `mesh`.

    Raises:
      ConfigError: an attention path that this machine does not have.
    """

    gathered, resting = [], []
    for param in table(run):
        axes = spec(param, mesh)[1 if param.name.startswith(LAYERS) else 0 :]
        kept = (axis if axis in ("tensor", "expert") else None for axis in axes)
        gathered.append((param.name.removeprefix(LAYERS), PartitionSpec(*kept)))
        resting.append((param.name.removeprefix(LAYERS), PartitionSpec(*axes)))
    tensor, platform = mesh.shape["tensor"], mesh.devices.flat[0].platform
    by_heads = tensor > 1 and run.model.heads % tensor == 0 and run.model.kv_heads % tensor == 0
    return Placement(
        mesh=mesh,
        dtype=compute.dtype,
        attention=resolve_attention(compute.attention, platform, compute.dtype),
        remat=compute.remat,
        loss_chunk=compute.loss_chunk,
        unroll=run.model.layers if platform == "cpu" and run.model.layers <= CPU_UNROLL else 1,
        heads="tensor" if by_heads else None,
        vocab="tensor" if tensor > 1 and run.model.vocab % tensor == 0 else None,
        weights=tuple(gathered),
        resting=tuple(resting),
    )


def batch_sharding(mesh: Mesh, batch: int, what: str) -> NamedSharding:
    """Sharding of tokens_BS: sequences over the axes fsdp and expert.

    Raises:
      ConfigError: `batch` (named `what` in the message) does not divide over them.
    """
    parts = shards(mesh, BATCH)
    if batch % parts:
        raise ConfigError(f"{what} {batch} does not divide over {parts} devices: set mesh.fsdp to a divisor of it")
    return NamedSharding(mesh, PartitionSpec(BATCH, None))
