"""What would make a configuration fit: one change of this node's own settings, or more GPUs; tried, not guessed."""

import dataclasses
from collections.abc import Iterator

from templar_jax.config import NodeConfig, RunConfig
from templar_jax.config_check import micro_batch, node_problems
from templar_jax.errors import ConfigError
from templar_jax.plan.gpus import Gpu
from templar_jax.plan.memory import plan_memory, plan_mesh
from templar_jax.sharding import BATCH, shards

MOST_GPUS = 1024
GIB = 2**30
OFFLOADS = ("feedback", "snapshot", "moments", "parameters")  # what costs least time first


def find_knob(run: RunConfig, node: NodeConfig, gpu: Gpu, gpus: int, per_host: int = 8) -> str:
    """The first change that fits by the estimate, least invasive first; "" where none of those known does."""
    for text, changed, count in candidates(run, node, gpus, per_host):
        try:
            memory = plan_memory(run, changed, plan_mesh(run, changed, count))
        except ConfigError:
            continue
        if memory.peak(memory.worst) <= gpu.usable and not list(node_problems(run, changed)):
            return f"{text} ({memory.peak(memory.worst) / GIB:.1f} GiB a GPU, estimated)"
    return ""


def candidates(run: RunConfig, node: NodeConfig, gpus: int, per_host: int) -> Iterator[tuple[str, NodeConfig, int]]:
    """(what to change, the node with it, GPUs in all)."""
    mesh = plan_mesh(run, node, gpus)
    parts, micro = shards(mesh, BATCH), micro_batch(run, node)
    others = mesh.shape["tensor"] * mesh.shape["expert"]
    remat, flags = _compute(node, remat="full"), ""
    if node.compute.remat != "full":
        flags = "--node.compute.remat full "
        yield flags.strip(), remat, gpus
    present = set(node.compute.offload)
    offloads = [OFFLOADS[:n] for n in range(1, len(OFFLOADS) + 1) if not set(OFFLOADS[:n]) <= present]
    for offload in offloads:  # costs time on the host's bus, and its memory; no bit
        changed = _compute(remat, offload=offload)
        yield f"{flags}--node.compute.offload {','.join(offload)}", changed, gpus
    if offloads:
        remat, flags = _compute(remat, offload=OFFLOADS), f"{flags}--node.compute.offload {','.join(OFFLOADS)} "
    while micro > parts and micro % 2 == 0 and micro // 2 % parts == 0:
        micro //= 2
        yield f"{flags}--node.compute.micro_batch {micro}", _compute(remat, micro_batch=micro), gpus
    count = mesh.size
    while count < MOST_GPUS:
        count *= 2
        wide = count // others
        micro = max(micro, wide * mesh.shape["expert"])
        if run.inner.batch % micro:
            return
        changed = dataclasses.replace(
            _compute(remat, micro_batch=micro), mesh=dataclasses.replace(node.mesh, fsdp=wide)
        )
        several = count > per_host and count % per_host == 0
        hosts = " on several hosts (docs/hosts.md)" if count > per_host else ""
        wider = f"--hosts {count // per_host}" if several else f"--gpus {count}"
        wider += f" --node.mesh.fsdp {wide} --node.compute.micro_batch {micro}"
        yield f"{count} GPUs{hosts}: {flags}{wider}", changed, count


def _compute(node: NodeConfig, **values: object) -> NodeConfig:
    return dataclasses.replace(node, compute=dataclasses.replace(node.compute, **values))
