"""The one table of parameters, and the mesh.

Every fact about a parameter stands here once: shape, mesh axes, init, weight decay, units, Hugging Face name.
Parameters travel through the code as a flat dict `{name: array}` in the order of the table.

Letters: L layers, D model dim, N query heads, K key-value heads, H head dim, F ffn dim, V vocabulary.
A parameter with `stack` > 0 has that many leading dims (layer, later expert); each slice is one *unit*: what
is tiled, quantised, clipped and rooted together.
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


@dataclass(frozen=True)
class Param:
    """One row of the table. `axes` names a mesh axis (or None) per dim of `shape`."""

    name: str
    shape: tuple[int, ...]
    axes: tuple[str | None, ...]
    init_std: float | None  # None: ones
    decay: bool
    hf: str  # "{}" stands for the layer
    hf_transposed: bool = False
    stack: int = 0

    @property
    def unit_shape(self) -> tuple[int, ...]:
        return self.shape[self.stack :]

    @property
    def units(self) -> int:
        return math.prod(self.shape[: self.stack])


@dataclass(frozen=True)
class Unit:
    """One layer's matrix (or vector): `index` addresses the slice in the stacked parameter."""

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

    def matrix(name: str, rows: int, cols: int, axes: tuple[str, str], std: float, hf: str) -> Param:
        return Param(
            f"layers/{name}", (m.layers, rows, cols), (None, *axes), std, True, layer + hf, hf_transposed=True, stack=1
        )

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
        matrix("gate", m.dim, m.ffn_dim, ("fsdp", "tensor"), std, "mlp.gate_proj.weight"),
        matrix("up", m.dim, m.ffn_dim, ("fsdp", "tensor"), std, "mlp.up_proj.weight"),
        matrix("down", m.ffn_dim, m.dim, ("tensor", "fsdp"), m.ffn_dim**-0.5 / math.sqrt(2 * m.layers), "mlp.down_proj.weight"),
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
    """Mesh with the axes fsdp and tensor over `devices` (default: all local ones), axis types Auto.

    Raises:
      ConfigError: the axes do not multiply to the number of devices.
    """
    devices = list(devices) if devices is not None else jax.local_devices()
    fsdp = config.fsdp or len(devices) // config.tensor
    if fsdp * config.tensor > len(devices) or fsdp == 0:
        raise ConfigError(
            f"mesh.fsdp {fsdp} x mesh.tensor {config.tensor} does not fit {len(devices)} devices: "
            "lower one of them, or set mesh.cpu_devices on a CPU host"
        )
    grid = np.array(devices[: fsdp * config.tensor]).reshape(fsdp, config.tensor)
    return Mesh(grid, ("fsdp", "tensor"), axis_types=(AxisType.Auto,) * 2)


def spec(param: Param, mesh: Mesh) -> PartitionSpec:
    """The parameter's PartitionSpec on this mesh: a dim is sharded only where each shard is a multiple of GRAIN."""
    axes = [
        axis if axis and mesh.shape[axis] > 1 and extent % (mesh.shape[axis] * GRAIN) == 0 else None
        for extent, axis in zip(param.shape, param.axes, strict=True)
    ]
    return PartitionSpec(*axes)


def shardings(run: RunConfig, mesh: Mesh) -> dict[str, NamedSharding]:
    """{name: NamedSharding} for the whole parameter dict."""
    return {param.name: NamedSharding(mesh, spec(param, mesh)) for param in table(run)}


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
