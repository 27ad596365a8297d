"""What would make a configuration fit: one change of this node's own settings, or more GPUs; tried, not guessed."""

import dataclasses
from collections.abc import Iterator

from templar_jax.config import NodeConfig, RunConfig
from templar_jax.config_check import micro_batch, node_problems
from templar_jax.errors import ConfigError
from templar_jax.plan.gpus import Gpu
from templar_jax.plan.memory import Memory, plan_memory, plan_mesh
from templar_jax.sharding import BATCH, shards

MOST_GPUS = 1024
HOST_GPUS = 8
GIB = 2**30


def find_knob(run: RunConfig, node: NodeConfig, gpu: Gpu, gpus: int) -> str:
    """The first change that fits by the estimate, least invasive first; "" where none of those known does."""
    for text, changed, count in candidates(run, node, gpus):
        try:
            memory = plan_memory(run, changed, plan_mesh(run, changed, count), None)
        except ConfigError:
            continue
        if memory.peak(memory.worst) <= gpu.usable and not list(node_problems(run, changed)):
            return f"{text} ({memory.peak(memory.worst) / GIB:.1f} GiB a GPU, estimated)"
    return ""


def candidates(run: RunConfig, node: NodeConfig, gpus: int) -> Iterator[tuple[str, NodeConfig, int]]:
    """(what to change, the node with it, GPUs)."""
    mesh = plan_mesh(run, node, gpus)
    parts, micro = shards(mesh, BATCH), micro_batch(run, node)
    others = mesh.shape["tensor"] * mesh.shape["expert"]
    remat = _compute(node, remat="full")
    if node.compute.remat != "full":
        yield "--node.compute.remat full", remat, gpus
    while micro > parts and micro % 2 == 0 and micro // 2 % parts == 0:
        micro //= 2
        flags = "" if node.compute.remat == "full" else "--node.compute.remat full "
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
        flags = f"--node.mesh.fsdp {wide} --node.compute.micro_batch {micro}"
        hosts = " on several hosts (not built yet)" if count > HOST_GPUS else ""
        yield f"{count} GPUs{hosts}: --gpus {count} {flags} --node.compute.remat full", changed, count


def _compute(node: NodeConfig, **values: object) -> NodeConfig:
    return dataclasses.replace(node, compute=dataclasses.replace(node.compute, **values))


def with_offload(memory: Memory) -> tuple[int, int, int]:
    """What offloading would leave on a GPU, with f32 and with bfloat16 parameters and gradients, and put on the host.

    Bytes for each GPU. Optimizer, error feedback, outer momentum and the window's snapshot lie in pinned host memory;
    on the device remain the parameters in training and the step's temporaries. Offloading does not exist yet.
    """
    state = memory.state["train"]
    stays = state["parameters in training"]
    device = stays + memory.temporaries["train"]
    gradients = memory.parts.get("gradients", stays)
    return device, device - stays // 2 - gradients // 2, sum(state.values()) - stays
