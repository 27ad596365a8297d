"""Bytes of a device and of the host, by class: exact from the table where it is state, estimated where it is XLA's.

The phases of a window and what lies on a device in each (node/miner.py):

  train      theta, a copy of it that is trained, optimizer, error feedback, outer momentum; the step's temporaries
  compress   the same; the temporaries of the largest group of parameters
  apply      theta, theta', optimizer, error feedback, outer momentum before and after; the dense sum of a group

Letters: B sequences of a micro-batch on a device, S sequence, D model dim, F ffn dim, V vocabulary, L layers.
"""

import math
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh

from templar_jax.compress.tiles import groups, tilings
from templar_jax.config import NodeConfig, RunConfig
from templar_jax.config_check import fit_mesh, micro_batch
from templar_jax.model.attention import resolve_attention
from templar_jax.sharding import AXES, BATCH, shardings, shards, table
from templar_jax.train.optimizer import make_optimizer, optimizer_shardings

F32 = 4
COMPRESS_FACTOR = 0.3  # temporaries of compression per byte of the group (deviceless compile: docs/decisions.md)


@dataclass(frozen=True)
class Memory:
    """Bytes of one device; `state` is exact, `temporaries` as `source` says."""

    state: dict[str, dict[str, int]]  # phase -> class -> bytes
    temporaries: dict[str, int]  # phase -> bytes
    parts: dict[str, int]  # of the step's temporaries, where they were estimated
    arguments: int  # of the compiled inner step
    source: str
    host: dict[str, int]  # bytes of the host by class, all devices together

    def peak(self, phase: str) -> int:
        return sum(self.state[phase].values()) + self.temporaries[phase]

    @property
    def worst(self) -> str:
        """The phase that needs most."""
        return max(self.state, key=self.peak)


def plan_mesh(run: RunConfig, node: NodeConfig, gpus: int) -> AbstractMesh:
    """The mesh that a host with so many GPUs makes. Raises ConfigError as the node would."""
    mesh = fit_mesh(run, node, gpus)
    return AbstractMesh((mesh.fsdp, mesh.expert, mesh.tensor), AXES)


def plan_memory(run: RunConfig, node: NodeConfig, mesh: AbstractMesh, temporaries: tuple[int, str] | None) -> Memory:
    """The memory plan; `temporaries` of the inner step from a compiler with its name, or None: estimated."""
    params = parameter_bytes(run, mesh)
    opt = optimizer_bytes(run, mesh)
    momentum = params if run.outer.momentum else 0
    largest = largest_group(run, mesh)
    parts = step_temporaries(run, node, mesh)
    step, source = temporaries or (sum(parts.values()), "estimated")
    always = {"parameters at window start": params, "optimizer": opt, "error feedback": params}
    training = {**always, "parameters in training": params, "outer momentum": momentum}
    applying = {**always, "parameters after the outer step": params, "outer momentum, before and after": 2 * momentum}
    senders = largest // F32 if run.outer.mean == "contributors" else 0
    return Memory(
        state={"train": training, "compress": training, "apply": applying},
        temporaries={"train": step, "compress": int(COMPRESS_FACTOR * largest), "apply": largest + senders},
        parts={} if temporaries else parts,
        arguments=params + opt + token_bytes(run, mesh),
        source=source,
        host=host_bytes(run),
    )


def parameter_bytes(run: RunConfig, mesh: Any) -> int:
    """One f32 copy of the parameters on a device; dims that do not divide are replicated, as `sharding.spec` says."""
    at = shardings(run, mesh)
    return sum(F32 * math.prod(at[param.name].shard_shape(param.shape)) for param in table(run))


def optimizer_bytes(run: RunConfig, mesh: Any) -> int:
    """The optimiser's state on a device: exact, from its own shapes."""
    optimizer = make_optimizer(run)
    shapes = jax.eval_shape(optimizer.init, {p.name: jax.ShapeDtypeStruct(p.shape, np.float32) for p in table(run)})
    places = optimizer_shardings(run, optimizer, mesh)
    sizes = jax.tree.map(lambda x, at: math.prod(at.shard_shape(x.shape)) * x.dtype.itemsize, shapes, places)
    return sum(jax.tree.leaves(sizes))


def token_bytes(run: RunConfig, mesh: Any) -> int:
    """An inner step's tokens and its index on a device."""
    return run.inner.batch * run.data.sequence * 4 // shards(mesh, BATCH) + 4


def largest_group(run: RunConfig, mesh: Any) -> int:
    """f32 bytes on a device of the parameters that compression and outer step work on at once."""
    at = shardings(run, mesh)
    size = {param.name: F32 * math.prod(at[param.name].shard_shape(param.shape)) for param in table(run)}
    return max(sum(size[name] for name in names) for names in groups(run, mesh))


def step_temporaries(run: RunConfig, node: NodeConfig, mesh: Any) -> dict[str, int]:
    """An estimate of what XLA allocates during an inner step, beside its arguments, by cause. On the high side."""
    m, compute = run.model, node.compute
    c = 2 if compute.dtype == "bfloat16" else 4
    tensor = mesh.shape["tensor"]
    sequences = -(-micro_batch(run, node) // shards(mesh, BATCH))
    tokens = sequences * run.data.sequence
    q, kv = m.heads * m.head_dim, m.kv_heads * m.head_dim
    layer_params = sum(
        math.prod(p.shape[1:]) // (mesh.shape["expert"] if p.routed else 1) for p in table(run) if p.stack
    )
    layer_params //= tensor
    residuals = tokens * (4 * m.dim + (2 * q + 2 * kv + 3 * m.ffn_dim) // tensor) * c  # of one layer
    vocab_matrix = m.vocab * m.dim // tensor
    chunk = sequences * min(compute.loss_chunk, run.data.sequence) * m.vocab // tensor
    accumulates = micro_batch(run, node) < run.inner.batch
    saved = m.layers * tokens * m.dim * c
    if compute.remat == "none":
        saved = m.layers * (residuals + layer_params * c)  # the gathered weights are residuals too
    parts = {
        "gradients": parameter_bytes(run, mesh) * (2 if accumulates else 1),
        "saved for the backward pass": saved,
        "one layer: activations, gathered weights and their gradients": 2 * residuals + layer_params * (2 * c + F32),
        "embedding and head gathered, and their gradients": vocab_matrix * ((1 if m.tied else 2) * c + 2 * F32),
        "logits of a chunk": 3 * chunk * F32,
    }
    if m.experts:  # the worst case: all tokens of the axis expert choose this device's
        copies = tokens * mesh.shape["expert"] * m.experts_per_token
        parts["tokens in blocks for the experts"] = copies * (3 * m.dim + 2 * m.expert_ffn_dim // tensor) * c
    if resolve_attention(compute.attention, "gpu", compute.dtype) == "xla":
        parts["attention scores"] = 2 * sequences * m.heads * run.data.sequence**2 * F32 // tensor
    return parts


def host_bytes(run: RunConfig) -> dict[str, int]:
    """What the host holds: the copies of a checkpoint being written, and the contributions of an outer step."""
    params = sum(F32 * math.prod(param.shape) for param in table(run))
    alone = AbstractMesh((1, 1, 1), AXES)
    kept = sum(tiling.kept for tiling in tilings(run).values())
    public = params * (2 if run.outer.momentum else 1)
    return {
        "a checkpoint being written": public + params + optimizer_bytes(run, alone),
        f"{run.max_contributors} opened contributions": run.max_contributors * kept * 3,
    }
