"""Bytes between the hosts of one miner's mesh in an inner step, counted from where every parameter lies.

GPUs fill the mesh host by host: tensor fastest, then expert, then fsdp. What a host receives, whatever the number of
its GPUs, if each shard crosses to it once and spreads over NVLink there (as NCCL's rings and trees do):

  weights    every micro-batch gathers each layer for the forward pass and again for the backward pass
  gradients  every micro-batch sums each layer's over the devices that hold a part, f32
  tokens     where the axis expert spans hosts: tokens are gathered along it and partial sums scattered, in the forward
             pass, again where that is computed again, and in the backward pass (model/moe.py)
"""

import math
from typing import Any

from templar_jax.config import NodeConfig, RunConfig
from templar_jax.config_check import micro_batch
from templar_jax.plan.memory import F32, width
from templar_jax.sharding import BATCH, shards, table


def fabric_bytes(run: RunConfig, node: NodeConfig, mesh: Any, per_host: int) -> dict[str, int]:
    """What the busiest host receives in an inner step, bytes by cause; all 0 on one host."""
    hosts = -(-mesh.size // per_host)
    if hosts == 1:
        return {"weights": 0, "gradients": 0, "tokens": 0}
    spanned = max(1, mesh.shape["expert"] * mesh.shape["tensor"] // per_host)  # hosts that share a layer's experts
    micro = micro_batch(run, node)
    passes, c = run.inner.batch // micro, width(node)
    elements = 0.0  # of all parameters, less what a host has of them
    for param in table(run):
        here = 1 / spanned if param.routed else 1.0  # of the parameter, computed with on this host
        elements += math.prod(param.shape) * max(0.0, here - 1 / hosts)
    gathers = 2
    tokens = 0.0
    if spanned > 1:
        of_axis = micro // shards(mesh, BATCH) * run.data.sequence * mesh.shape["expert"]
        times = 2 * (2 if node.compute.remat == "none" else 3)
        tokens = times * run.model.layers * of_axis * run.model.dim * c * (1 - 1 / spanned)
    return {
        "weights": int(passes * gathers * elements * c),
        "gradients": int(passes * elements * F32),
        "tokens": int(passes * tokens),
    }
