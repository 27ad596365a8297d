"""Bytes of a device and of the host, by class: exact from the table where it is state, estimated where it is XLA's.

The phases of a window and what lies on a device in each (node/miner.py, train/offload.py):

  gradients  what rests on the device; the copy of the parameters in the compute dtype if they rest on the host; the
             gradients, f32; the temporaries of forward and backward pass
  update     what rests on the device; the gradients; one group's parameters and moments, of those that rest on the host
  compress   what rests on the device; one group's feedback, start and end, of those that rest on the host; what is sent
  apply      what rests on the device, without the parameters in training; one group's contributions; theta' where
             theta rests on the device, else one group of both

Letters: B sequences of a micro-batch on a device, S sequence, D model dim, F ffn dim, V vocabulary, L layers.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
from jax.sharding import AbstractMesh

from templar_jax.compress.tiles import groups, tilings
from templar_jax.config import NodeConfig, RunConfig
from templar_jax.config_check import fit_mesh, micro_batch
from templar_jax.model.attention import resolve_attention
from templar_jax.sharding import AXES, BATCH, shardings, shards, table
from templar_jax.train.optimizer import state_shapes

F32 = 4
# Temporaries of the largest group over its f32 bytes, rounded up (deviceless compile: docs/decisions.md).
GROUP_TEMPORARIES = {"update": 0.02, "compress": 0.35, "apply": 0.1}
PHASES = ("gradients", "update", "compress", "apply")


@dataclass(frozen=True)
class Memory:
    """Bytes of one device; `state` is exact, `temporaries` as `source` says."""

    state: dict[str, dict[str, int]]  # phase -> class -> bytes
    temporaries: dict[str, int]  # phase -> bytes
    parts: dict[str, int]  # of the temporaries of the gradients, where they were estimated
    arguments: dict[str, int]  # phase -> bytes of the arguments of its (largest) program
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


def plan_memory(
    run: RunConfig, node: NodeConfig, mesh: AbstractMesh, temporaries: tuple[Mapping[str, int], str] | None = None
) -> Memory:
    """The memory plan; `temporaries` of each phase from a compiler with its name, or None: estimated."""
    parts = step_temporaries(run, node, mesh)
    names = largest_group(run, mesh)
    if temporaries is None:
        size = parameter_bytes(run, mesh, names)
        estimates = {phase: int(factor * size) for phase, factor in GROUP_TEMPORARIES.items()}
        temporaries = {"gradients": sum(parts.values()), **estimates}, "estimated"
    else:
        parts = {}
    return Memory(
        state=_state(run, node, mesh, names),
        temporaries={phase: temporaries[0][phase] for phase in PHASES},
        parts=parts,
        arguments=_arguments(run, node, mesh, names),
        source=temporaries[1],
        host=host_bytes(run, node),
    )


def _state(run: RunConfig, node: NodeConfig, mesh: Any, names: Sequence[str]) -> dict[str, dict[str, int]]:
    """phase -> class -> bytes of a device that are not temporaries."""
    offload, params = node.compute.offload, parameter_bytes(run, mesh)
    momentum = params if run.outer.momentum else 0
    group, moments = parameter_bytes(run, mesh, names), optimizer_bytes(run, mesh, names)

    def resting(what: str, size: int) -> int:
        return 0 if what in offload else size

    def visiting(what: str, size: int) -> int:
        return size if what in offload else 0

    always = {
        "parameters at window start": resting("snapshot", params),
        "outer momentum": resting("snapshot", momentum),
        "optimizer": resting("moments", optimizer_bytes(run, mesh)),
        "error feedback": resting("feedback", params),
    }
    training = always | {"parameters in training": resting("parameters", params)}
    copy = visiting("parameters", params // F32 * width(node))
    apply_new = {
        "parameters after the outer step": resting("snapshot", params),
        "outer momentum after the outer step": resting("snapshot", momentum),
        "a group's parameters and momentum, before and after": visiting("snapshot", 2 * group * (2 if momentum else 1)),
        "a group's contributions": contribution_bytes(run, mesh, names),
    }
    return {
        "gradients": training | {f"copy of the parameters in {node.compute.dtype}": copy, "gradients": params},
        "update": training
        | {
            "gradients": params,
            "a group's parameters": visiting("parameters", group),
            "a group's moments": visiting("moments", moments),
        },
        "compress": training
        | {
            "a group's start": visiting("snapshot", group),
            "a group's end": visiting("parameters", group),
            "a group's feedback": visiting("feedback", group),
            "what a group sends": sent_bytes(run, mesh, names),
        },
        "apply": always | apply_new,
    }


def _arguments(run: RunConfig, node: NodeConfig, mesh: Any, names: Sequence[str]) -> dict[str, int]:
    """phase -> bytes of its program's arguments on a device: what the compiled program must agree with."""
    group, momentum = parameter_bytes(run, mesh, names), 1 if run.outer.momentum else 0
    working = width(node) if "parameters" in node.compute.offload else F32
    return {
        "gradients": parameter_bytes(run, mesh) // F32 * working + token_bytes(run, mesh),
        "update": 2 * group + optimizer_bytes(run, mesh, names) + 2 * F32,
        "compress": 3 * group + 2 * F32,
        "apply": (1 + momentum) * group + contribution_bytes(run, mesh, names),
    }


def width(node: NodeConfig) -> int:
    """Bytes of a number in the compute dtype."""
    return 2 if node.compute.dtype == "bfloat16" else F32


def parameter_bytes(run: RunConfig, mesh: Any, names: Sequence[str] = ()) -> int:
    """One f32 copy of the parameters (all where `names` is empty) on a device.

    Dims that do not divide are replicated, as `sharding.spec` says.
    """
    at = shardings(run, mesh)
    rows = [param for param in table(run) if not names or param.name in names]
    return sum(F32 * math.prod(at[param.name].shard_shape(param.shape)) for param in rows)


def optimizer_bytes(run: RunConfig, mesh: Any, names: Sequence[str] = ()) -> int:
    """The optimiser's state of these parameters on a device: exact, from its own shapes."""
    leaves = jax.tree.leaves(state_shapes(run, mesh, names))
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves)


def _kept(run: RunConfig, mesh: Any, names: Sequence[str]) -> tuple[int, int, int]:
    """(values kept, of those with an index, tiles) of these parameters on a device."""
    at, cut = shardings(run, mesh), tilings(run)
    kept = indexed = tiles = 0
    for name in names:
        tiling = cut[name]
        here = math.prod(at[name].shard_shape(tiling.param.shape)) // tiling.size
        kept, tiles = kept + here * tiling.k, tiles + here
        indexed += 0 if tiling.full else here * tiling.k
    return kept, indexed, tiles


def sent_bytes(run: RunConfig, mesh: Any, names: Sequence[str]) -> int:
    """What compression leaves on a device for the host: an offset uint16 and a code uint8 a value, a scale a tile."""
    kept, _, tiles = _kept(run, mesh, names)
    return 3 * kept + tiles


def contribution_bytes(run: RunConfig, mesh: Any, names: Sequence[str]) -> int:
    """What the outer step takes of max_contributors contributions, with their value tables, on a device."""
    kept, indexed, tiles = _kept(run, mesh, names)
    sign1 = run.compress.quantizer == "sign1"
    entries = sum(tilings(run)[name].param.units for name in names) * F32 * (1024 if sign1 else 4)
    return run.max_contributors * (kept + 2 * indexed + (tiles if sign1 else 0) + entries)


def token_bytes(run: RunConfig, mesh: Any) -> int:
    """An inner step's tokens and its index on a device."""
    return run.inner.batch * run.data.sequence * 4 // shards(mesh, BATCH) + 4


def largest_group(run: RunConfig, mesh: Any) -> tuple[str, ...]:
    """The parameters that update, compression and outer step work on at once; of several groups the largest."""
    return max(groups(run, mesh), key=lambda names: parameter_bytes(run, mesh, names))


def step_temporaries(run: RunConfig, node: NodeConfig, mesh: Any) -> dict[str, int]:
    """An estimate of what XLA allocates during an inner step, beside its arguments, by cause. On the high side."""
    m, compute = run.model, node.compute
    c = width(node)
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
    kept = {
        "none": residuals + layer_params * c,  # the gathered weights are residuals too
        "save-names": tokens * (2 * m.dim + (q + 2 * kv + 2 * m.ffn_dim) // tensor) * c,
    }
    saved = m.layers * kept.get(compute.remat, tokens * m.dim * c)
    parts = {
        "saved for the backward pass": saved,
        "one layer: activations, gathered weights and their gradients": 2 * residuals + layer_params * (2 * c + F32),
        "embedding and head gathered, and their gradients": vocab_matrix * ((2 if m.tied else 3) * c + F32),
        "logits of a chunk": 3 * chunk * F32,
    }
    if m.experts:  # the worst case: all tokens of the axis expert choose this device's
        copies = tokens * mesh.shape["expert"] * m.experts_per_token
        parts["tokens in blocks for the experts"] = copies * (3 * m.dim + 2 * m.expert_ffn_dim // tensor) * c
    if resolve_attention(compute.attention, "gpu", compute.dtype) == "xla":
        parts["attention scores"] = 2 * sequences * m.heads * run.data.sequence**2 * F32 // tensor
    return parts


def host_bytes(run: RunConfig, node: NodeConfig) -> dict[str, int]:
    """What the host holds: what rests there, the copies of a checkpoint being written, and an outer step's input."""
    alone = AbstractMesh((1, 1, 1), AXES)
    params, optimizer = parameter_bytes(run, alone), optimizer_bytes(run, alone)
    public = params * (2 if run.outer.momentum else 1)
    kept = sum(tiling.kept for tiling in tilings(run).values())
    resting = {"parameters": params, "moments": optimizer, "feedback": params, "snapshot": public}
    return {
        **{f"{what} (offloaded)": size for what, size in resting.items() if what in node.compute.offload},
        "a checkpoint being written": public + params + optimizer,
        f"{run.max_contributors} opened contributions": run.max_contributors * kept * 3,
    }
