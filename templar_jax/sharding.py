"""The one table of parameters, and the mesh.

Every fact about a parameter stands here once: shape, mesh axes, init, weight decay, units, Hugging Face name.
Parameters travel through the code as a flat dict `{name: array}` in the order of the table.

Letters: L layers, D model dim, N query heads, K key-value heads, H head dim, F ffn dim, V vocabulary, E experts.
A parameter with `stack` > 0 has that many leading dims (layer, expert); each slice is one *unit*: what is tiled,
quantised, clipped and rooted together. Beside "expert", which holds the experts, sequences and all other parameters
are laid over "fsdp" and "expert" as if they were one axis.
"""

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from templar_jax.config import MeshConfig, RunConfig
from templar_jax.errors import ConfigError

GRAIN = 64  # a dim is sharded only in multiples of this, so that no tile is cut
AXES = ("fsdp", "expert", "tensor")  # of every mesh
BATCH = ("fsdp", "expert")  # axes over which sequences are laid
LAYERS = "layers/"  # in front of the names of parameters that are stacked by layer


@dataclass(frozen=True)
class Param:
    """One row of the table. `axes` names a mesh axis (or None) per dim of `shape`."""

    name: str
    shape: tuple[int, ...]
    axes: tuple[str | None, ...]
    init_std: float | None  # None: ones
    decay: bool
    hf: str  # "{}" stands for the layer, a second one for the expert
    hf_transposed: bool = False
    stack: int = 0

    @property
    def unit_shape(self) -> tuple[int, ...]:
        return self.shape[self.stack :]

    @property
    def routed(self) -> bool:
        """Only the tokens that the router sends there meet it."""
        return "expert" in self.axes

    @property
    def units(self) -> int:
        return math.prod(self.shape[: self.stack])


@dataclass(frozen=True)
class Unit:
    """One layer's, or one expert's, matrix (or vector): `index` addresses the slice in the stacked parameter."""

    param: Param
    index: tuple[int, ...]

    @property
    def name(self) -> str:
        return self.param.name + "".join(f".{i}" for i in self.index)


@functools.lru_cache(maxsize=16)  # read many times a window
def table(run: RunConfig) -> tuple[Param, ...]:
    """All parameters of the run's model, in the order in which they are hashed, sent and printed."""
    m = run.model
    q_dim, kv_dim = m.heads * m.head_dim, m.kv_heads * m.head_dim
    std = m.dim**-0.5
    out_std = std / math.sqrt(2 * m.layers)
    layer = "model.layers.{}."

    def matrix(name: str, rows: int, cols: int, axes: tuple[str, str | None], std: float, hf: str) -> Param:
        shape = m.layers, rows, cols
        return Param(LAYERS + name, shape, (None, *axes), std, True, layer + hf, hf_transposed=True, stack=1)

    def ffn(dim: int, make: Callable[..., Param], prefix: str, hf: tuple[str, str, str]) -> list[Param]:
        down_std = dim**-0.5 / math.sqrt(2 * m.layers)
        return [
            make(f"{prefix}gate", m.dim, dim, ("fsdp", "tensor"), std, hf[0]),
            make(f"{prefix}up", m.dim, dim, ("fsdp", "tensor"), std, hf[1]),
            make(f"{prefix}down", dim, m.dim, ("tensor", "fsdp"), down_std, hf[2]),
        ]

    def experts(name: str, rows: int, cols: int, axes: tuple[str, str], std: float, hf: str) -> Param:
        shape, axes_of = (m.layers, m.experts, rows, cols), (None, "expert", *axes)
        return Param(LAYERS + name, shape, axes_of, std, True, layer + hf, hf_transposed=True, stack=2)

    feed_forward = []
    if m.ffn_dim:  # beside experts: the shared one, for which the Hugging Face class of this model has no name
        shared = ("mlp.gate_proj.weight", "mlp.up_proj.weight", "mlp.down_proj.weight")
        feed_forward += ffn(m.ffn_dim, matrix, "", shared)
    if m.experts:
        feed_forward.append(matrix("router", m.dim, m.experts, ("fsdp", None), std, "block_sparse_moe.gate.weight"))
        names = [f"block_sparse_moe.experts.{{}}.{name}.weight" for name in ("w1", "w3", "w2")]
        feed_forward += ffn(m.expert_ffn_dim, experts, "expert_", (names[0], names[1], names[2]))
    rows = [
        Param("embed", (m.vocab, m.dim), ("tensor", "fsdp"), std, False, "model.embed_tokens.weight"),
        Param("layers/attn_norm", (m.layers, m.dim), (None, None), None, False, layer + "input_layernorm.weight", stack=1),
        matrix("q", m.dim, q_dim, ("fsdp", "tensor"), std, "self_attn.q_proj.weight"),
        matrix("k", m.dim, kv_dim, ("fsdp", "tensor"), std, "self_attn.k_proj.weight"),
        matrix("v", m.dim, kv_dim, ("fsdp", "tensor"), std, "self_attn.v_proj.weight"),
        matrix("o", q_dim, m.dim, ("tensor", "fsdp"), out_std, "self_attn.o_proj.weight"),
        Param(
            "layers/mlp_norm", (m.layers, m.dim), (None, None), None, False,
            layer + "post_attention_layernorm.weight", stack=1,
        ),
        *feed_forward,
        Param("norm", (m.dim,), (None,), None, False, "model.norm.weight"),
    ]  # fmt: skip
    if not m.tied:
        rows.append(
            Param("head", (m.dim, m.vocab), ("fsdp", "tensor"), std, True, "lm_head.weight", hf_transposed=True)
        )
    return tuple(rows)


def units(run: RunConfig) -> Iterator[Unit]:
    """Every unit in the order of the table, then of the stack."""
    for param in table(run):
        for index in np.ndindex(param.shape[: param.stack]):
            yield Unit(param, index)


def make_mesh(config: MeshConfig, devices: Sequence[Any] | None = None) -> Mesh:
    """Mesh with the axes fsdp, expert and tensor over `devices` (default: all local ones), axis types Auto.

    Raises:
      ConfigError: the axes do not multiply to the number of devices.
    """
    devices = list(devices) if devices is not None else jax.local_devices()
    fsdp = config.fsdp or len(devices) // (config.tensor * config.expert)
    shape = fsdp, config.expert, config.tensor
    if math.prod(shape) > len(devices) or fsdp == 0:
        raise ConfigError(
            f"mesh.fsdp {fsdp} x mesh.expert {config.expert} x mesh.tensor {config.tensor} does not fit "
            f"{len(devices)} devices: lower one of them, or set mesh.cpu_devices on a CPU host"
        )
    return Mesh(np.array(devices[: math.prod(shape)]).reshape(shape), AXES, axis_types=(AxisType.Auto,) * 3)


Axis = str | tuple[str, ...] | None  # what a PartitionSpec says of one dim


def shards(mesh: Any, axis: Axis) -> int:
    """Number of parts into which the mesh cuts a dim that lies over `axis`."""
    return math.prod(mesh.shape[name] for name in ((axis,) if isinstance(axis, str) else axis or ()))


def spec(param: Param, mesh: Any) -> PartitionSpec:
    """The parameter's PartitionSpec on this mesh: a dim is sharded only where each shard is a multiple of GRAIN.

    What is not laid over "expert" lies over "fsdp" and "expert" together, or over "fsdp" where it does not divide.
    """
    joint = not param.routed

    def choose(dim: int, extent: int, axis: str | None) -> Axis:
        grain = 1 if dim < param.stack else GRAIN
        for choice in (BATCH, axis) if axis == "fsdp" and joint and mesh.shape["expert"] > 1 else (axis,):
            if shards(mesh, choice) > 1 and extent % (shards(mesh, choice) * grain) == 0:
                return choice
        return None

    axes = zip(param.shape, param.axes, strict=True)
    return PartitionSpec(*(choose(dim, *of_dim) for dim, of_dim in enumerate(axes)))


def shardings(run: RunConfig, mesh: Mesh) -> dict[str, NamedSharding]:
    """{name: NamedSharding} for the whole parameter dict."""
    return {param.name: NamedSharding(mesh, spec(param, mesh)) for param in table(run)}


def to_devices(tree: Any, at: Any) -> Any:
    """Host arrays on the devices of `at` (a tree of shardings). Every process of a mesh has the whole of them.

    An array that lies on devices of several processes already is taken as it is.
    """
    if all(sharding.is_fully_addressable for sharding in jax.tree.leaves(at)):
        return jax.device_put(tree, at)

    def put(x: Any, to: NamedSharding) -> jax.Array:
        if isinstance(x, jax.Array) and not x.is_fully_addressable:
            return x
        return jax.make_array_from_callback(np.shape(x), to, np.asarray(x).__getitem__)

    return jax.tree.map(put, tree, at)


def to_host(tree: Any) -> Any:
    """NumPy arrays of device arrays; the whole of them in every process of a mesh, which all call this together."""
    if all(array.is_fully_addressable for array in jax.tree.leaves(tree)):
        return jax.device_get(tree)
    everywhere = jax.tree.map(lambda array: NamedSharding(array.sharding.mesh, PartitionSpec()), tree)
    whole = jax.jit(_same, out_shardings=everywhere)(tree)
    return jax.tree.map(lambda array: np.asarray(array.addressable_data(0)), whole)


def _same(tree: Any) -> Any:
    return tree


def make_zeros(run: RunConfig, mesh: Mesh) -> Callable[[], dict[str, jax.Array]]:
    """`zeros()`: f32 arrays keyed, ordered, shaped and sharded like the parameters. Compiled once."""
    shapes = {param.name: param.shape for param in table(run)}
    make = jax.jit(
        lambda: {name: jnp.zeros(shape, jnp.float32) for name, shape in shapes.items()},
        out_shardings=shardings(run, mesh),
    )

    def zeros() -> dict[str, jax.Array]:
        made = make()  # a jit returns its dicts sorted by key
        return {name: made[name] for name in shapes}

    return zeros
