"""Cross-field checks of a configuration: what each value alone allows but the whole does not.

Each problem is one line: what does not fit, and what to change. `check_run` and `check_node` raise the first.
"""

import dataclasses
import re
from collections.abc import Iterable, Iterator
from typing import TypeVar

from templar_jax.config import MeshConfig, NodeConfig, RunConfig
from templar_jax.config_timetable import CHAIN_FINALITY, timetable_problems
from templar_jax.errors import ConfigError

GRAIN = 64  # model dims come in multiples of this, so that a shard never cuts a tile (sharding.GRAIN)
INDEX_VALUES = 4096  # elements of a tile: an index is a uint16, and sums of gaps must stay one
SINKS = ("wandb", "tensorboard")
OFFLOADS = ("parameters", "moments", "feedback", "snapshot")  # what they are: train/offload.py

T = TypeVar("T")


def check_run(run: RunConfig) -> RunConfig:
    """Returns `run` unchanged, or raises ConfigError with the first problem."""
    return _first(run, run_problems(run))


def check_node(run: RunConfig, node: NodeConfig) -> NodeConfig:
    """Returns `node` unchanged, or raises ConfigError with the first problem of the node within this run."""
    return _first(node, node_problems(run, node))


def check_data(run: RunConfig, n_pages: int) -> None:
    """Refuses a corpus too small for disjoint pages of all slots plus one range nobody trains on.

    Raises:
      ConfigError: (data.slots + 1) * pages_per_window > n_pages (training pages, held-out ones not counted).
    """
    needed = (run.data.slots + 1) * run.pages_per_window
    if needed > n_pages:
        fits = n_pages // run.pages_per_window - 1
        change = f"set data.slots to at most {fits}" if fits >= 1 else "lower inner.steps or inner.batch"
        raise ConfigError(
            f"the data has {n_pages} pages, but data.slots {run.data.slots} (+1 for evaluation) x "
            f"{run.pages_per_window} pages a window need {needed}: {change}, or prepare more text"
        )


def fit_mesh(run: RunConfig, node: NodeConfig, devices: int) -> MeshConfig:
    """The mesh with fsdp = 0 resolved: the most devices over which the sequences of one forward pass spread.

    Raises:
      ConfigError: mesh.tensor and mesh.expert alone need more than `devices`.
    """
    mesh = node.mesh
    if mesh.tensor * mesh.expert > devices:
        raise ConfigError(
            f"mesh.tensor {mesh.tensor} x mesh.expert {mesh.expert} needs more than the {devices} devices here: "
            "lower node.mesh.tensor or node.mesh.expert"
        )
    if mesh.fsdp:
        return mesh
    sequences = micro_batch(run, node) // mesh.expert
    fsdp = max(n for n in range(1, devices // (mesh.tensor * mesh.expert) + 1) if sequences % n == 0)
    return dataclasses.replace(mesh, fsdp=fsdp)


def micro_batch(run: RunConfig, node: NodeConfig) -> int:
    """Sequences of one forward pass."""
    return node.compute.micro_batch or run.inner.batch


def run_problems(run: RunConfig) -> Iterator[str]:
    """Everything wrong with a run, most basic first."""
    ranges = list(_ranges(run))
    yield from ranges
    if ranges:
        return  # the rest divides by these values
    yield from _model(run)
    yield from _compress(run)
    yield from _inner_and_outer(run)
    yield from _data(run)
    yield from timetable_problems(run.window, finality=1)


def node_problems(run: RunConfig, node: NodeConfig) -> Iterator[str]:
    """Everything wrong with a node within a run."""
    for path, value, least in (
        ("mesh.fsdp", node.mesh.fsdp, 0),
        ("mesh.tensor", node.mesh.tensor, 1),
        ("mesh.expert", node.mesh.expert, 1),
        ("mesh.cpu_devices", node.mesh.cpu_devices, 0),
        ("compute.micro_batch", node.compute.micro_batch, 0),
        ("compute.loss_chunk", node.compute.loss_chunk, 1),
        ("network.netuid", node.network.netuid, 0),
        ("network.finality", node.network.finality, 1),
        ("checkpoint_every", node.checkpoint_every, 1),
        ("checkpoint_keep", node.checkpoint_keep, 1),
        ("eval_sequences", node.eval_sequences, 1),
        ("score_sequences", node.score_sequences, 2),
        ("weights_blocks", node.weights_blocks, 1),
        ("profile_window", node.profile_window, -1),
    ):
        if value < least:
            yield f"node.{path} is {value}: set it to {least} or more"
            return
    yield from _hosts(node)
    if node.hosts.count > 1 and run.audit_bytes_max:
        yield "audit_bytes_max is not 0, and a miner on several hosts cannot show its whole state: use one host"
    if node.network.block_seconds <= 0:
        yield f"node.network.block_seconds is {node.network.block_seconds}: set it above 0"
    if node.start and not run.start:
        yield (
            f"node.start names the model {node.start}, but the run starts from its seed: set start to the model's "
            "state root (scripts/export.py --import FOLDER prints it), or leave node.start out"
        )
    if not re.fullmatch(r"[A-Za-z0-9_.-]*", node.hotkey) or node.hotkey.startswith("."):
        yield f'node.hotkey {node.hotkey!r} is a file name under home/wallet: use letters, digits, "_", "-" and "."'
    for sink in node.sinks:
        if sink not in SINKS:
            yield f"node.sinks has {sink!r}: choose from {', '.join(SINKS)}"
    for what in node.compute.offload:
        if what not in OFFLOADS:
            yield f"node.compute.offload has {what!r}: choose from {', '.join(OFFLOADS)}"
    replay = node.checkpoint_every * node.checkpoint_keep
    if node.keep_windows < replay:
        yield (
            f"node.keep_windows {node.keep_windows} is less than the {replay} windows since the oldest checkpoint "
            f"(checkpoint_every x checkpoint_keep), and nobody could catch up from it: set it to {replay} or more"
        )
    yield from _batch_and_mesh(run, node)
    yield from timetable_problems(
        run.window, node.network.finality if node.network.chain == "local" else CHAIN_FINALITY
    )


def _hosts(node: NodeConfig) -> Iterator[str]:
    hosts = node.hosts
    if hosts.count < 1 or not 0 <= hosts.index < hosts.count:
        yield f"node.hosts.index {hosts.index} of node.hosts.count {hosts.count}: count processes from 0"
    if hosts.heartbeat_seconds < 5:
        yield f"node.hosts.heartbeat_seconds is {hosts.heartbeat_seconds}: set it to 5 or more"
    port = hosts.coordinator.rpartition(":")[2]
    if hosts.count > 1 and not (re.fullmatch(r"\S+:[0-9]{1,5}", hosts.coordinator) and 0 < int(port) < 65535):
        yield f'node.hosts.coordinator is "{hosts.coordinator}": name process 0 as "host:port", port at most 65534'


def _ranges(run: RunConfig) -> Iterator[str]:
    for path, value, least in (
        ("model.vocab", run.model.vocab, 1),
        ("model.dim", run.model.dim, 1),
        ("model.layers", run.model.layers, 1),
        ("model.heads", run.model.heads, 1),
        ("model.kv_heads", run.model.kv_heads, 1),
        ("model.head_dim", run.model.head_dim, 1),
        ("model.ffn_dim", run.model.ffn_dim, 0 if run.model.experts else 1),
        ("model.experts", run.model.experts, 0),
        ("model.expert_ffn_dim", run.model.expert_ffn_dim, 1 if run.model.experts else 0),
        ("window.blocks", run.window.blocks, 2),
        ("inner.steps", run.inner.steps, 1),
        ("inner.batch", run.inner.batch, 1),
        ("inner.warmup", run.inner.warmup, 0),
        ("compress.tile", run.compress.tile, 1),
        ("compress.k", run.compress.k, 1),
        ("compress.expert_k", run.compress.expert_k, 0),
        ("data.sequence", run.data.sequence, 2),
        ("data.page", run.data.page, 1),
        ("data.slots", run.data.slots, 1),
        ("max_contributors", run.max_contributors, 1),
        ("audit_bytes_max", run.audit_bytes_max, 0),
    ):
        if value < least:
            yield f"{path} is {value}: set it to {least} or more"
    for path, value in (
        ("inner.lr", run.inner.lr),
        ("inner.eps", run.inner.eps),
        ("inner.clip", run.inner.clip),
        ("outer.lr", run.outer.lr),
        ("model.rope_theta", run.model.rope_theta),
        ("model.norm_eps", run.model.norm_eps),
    ):
        if value <= 0:
            yield f"{path} is {value}: set it above 0"
    for path, value in (
        ("inner.beta1", run.inner.beta1),
        ("inner.beta2", run.inner.beta2),
        ("outer.momentum", run.outer.momentum),
        ("outer.standing", run.outer.standing),
    ):
        if not 0 <= value < 1:
            yield f"{path} is {value}: set it to 0 or more and below 1"
    for path, value in (
        ("inner.min_lr_ratio", run.inner.min_lr_ratio),
        ("compress.feedback_decay", run.compress.feedback_decay),
    ):
        if not 0 <= value <= 1:
            yield f"{path} is {value}: set it between 0 and 1"
    for path, value in (
        ("inner.weight_decay", run.inner.weight_decay),
        ("model.load_balance", run.model.load_balance),
        ("model.z_loss", run.model.z_loss),
    ):
        if value < 0:
            yield f"{path} is {value}: set it to 0 or more"
    if not 0 <= run.seed < 2**32:
        yield f"seed is {run.seed}: set it between 0 and 2**32 - 1"
    if run.start and not re.fullmatch(r"[0-9a-f]{64}", run.start):
        yield f"start {run.start!r} is no state root in hex: scripts/export.py --import FOLDER prints that of a model"


def _model(run: RunConfig) -> Iterator[str]:
    m = run.model
    if m.kv_heads < 1 or m.heads % m.kv_heads:
        yield f"model.heads {m.heads} is no multiple of model.kv_heads {m.kv_heads}: use a divisor for kv_heads"
    if m.head_dim % 2:
        yield f"model.head_dim {m.head_dim} is odd, but rotary embedding turns pairs: use an even number"
    for path, value in (
        ("model.vocab", m.vocab),
        ("model.dim", m.dim),
        ("model.ffn_dim", m.ffn_dim),
        ("model.expert_ffn_dim", m.expert_ffn_dim),
        ("model.heads x model.head_dim", m.heads * m.head_dim),
        ("model.kv_heads x model.head_dim", m.kv_heads * m.head_dim),
    ):
        if value % GRAIN:
            near = max(GRAIN, round(value / GRAIN) * GRAIN)
            yield f"{path} is {value}, no multiple of {GRAIN} (tiles are cut from whole {GRAIN}s): use {near}"
    if m.experts and not 2 <= m.experts_per_token <= m.experts:
        yield (
            f"model.experts_per_token is {m.experts_per_token}: choose 2 to model.experts {m.experts} (gates sum to 1, "
            "so that with a single expert its gate is always 1 and the router cannot learn from the loss)"
        )


def _compress(run: RunConfig) -> Iterator[str]:
    c = run.compress
    if c.dct and run.audit_bytes_max:
        yield "no audits of what is sent as cosines: set audit_bytes_max = 0, or compress.dct = false"
    if GRAIN % c.tile:
        yield f"compress.tile {c.tile} does not divide {GRAIN}: use 64, 32, 16 or 8"
    elif c.tile**2 > INDEX_VALUES:
        yield f"compress.tile {c.tile} makes tiles of more than {INDEX_VALUES} elements: use 64 or less"
    for name, k in (("k", c.k), ("expert_k", c.expert_k)):
        if k > c.tile**2:
            yield f"compress.{name} {k} is more than a tile has ({c.tile**2} values): lower it or raise compress.tile"


def _inner_and_outer(run: RunConfig) -> Iterator[str]:
    if run.inner.warmup >= run.inner.decay_steps:
        yield (
            f"inner.warmup {run.inner.warmup} does not end before inner.decay_steps {run.inner.decay_steps}: "
            "lower warmup or raise decay_steps"
        )
    if run.outer.nesterov and run.outer.momentum != 0.875:
        yield (
            f"outer.nesterov needs outer.momentum 0.875 (m - m/8 is exact on every device), not {run.outer.momentum}: "
            "set it so, or set outer.nesterov to false"
        )


def _data(run: RunConfig) -> Iterator[str]:
    d = run.data
    if d.tokenizer not in ("", "bytes") and not re.fullmatch(r"[0-9a-f]{64}", d.tokenizer):
        yield f'data.tokenizer {d.tokenizer!r} must be "bytes", or the sha256 in hex of a tokenizer.json'
    if d.tokenizer == "bytes" and run.model.vocab < 256:
        yield f"model.vocab {run.model.vocab} is too small for the bytes tokenizer: use 320"
    if d.manifest and not re.fullmatch(r"[0-9a-f]{64}", d.manifest):
        yield f"data.manifest {d.manifest!r} is no sha256 in hex: leave it empty, or take that of the prepared pages"


def _batch_and_mesh(run: RunConfig, node: NodeConfig) -> Iterator[str]:
    sequences = micro_batch(run, node)
    if run.inner.batch % sequences:
        yield (
            f"inner.batch {run.inner.batch} is no multiple of node.compute.micro_batch {sequences}: "
            f"use a divisor of {run.inner.batch}, or 0 for the whole batch"
        )
    mesh = node.mesh
    if sequences % ((mesh.fsdp or 1) * mesh.expert):
        over = f"node.mesh.fsdp {mesh.fsdp}" + (f" x node.mesh.expert {mesh.expert}" if mesh.expert > 1 else "")
        yield (
            f"{sequences} sequences of one forward pass (node.compute.micro_batch, else inner.batch) do not spread "
            f"over {over}: use a divisor, or fsdp 0 for as many devices as fit"
        )
    if mesh.expert > 1 and (run.model.experts == 0 or run.model.experts % mesh.expert):
        yield f"model.experts {run.model.experts} do not divide over node.mesh.expert {mesh.expert}: use a divisor"
    if run.model.heads % node.mesh.tensor:
        yield f"model.heads {run.model.heads} is no multiple of node.mesh.tensor {node.mesh.tensor}: use a divisor"


def _first(value: T, problems: Iterable[str]) -> T:
    found = list(problems)
    if found:
        raise ConfigError(found[0] + (f" (and {len(found) - 1} more)" if len(found) > 1 else ""))
    return value
