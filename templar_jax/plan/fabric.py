"""Bytes between the hosts of one miner's mesh in an inner step, counted from where every parameter lies.

GPUs fill the mesh host by host: tensor fastest, then expert, then fsdp. What a host receives, whatever the number of
its GPUs, if each shard crosses to it once and spreads over NVLink there (as NCCL's rings and trees do):

  weights    every micro-batch gathers each layer for the forward pass and again for the backward pass
  gradients  every micro-batch sums each layer's: of experts by a reduce-scatter in f32 (model/moe.py), of the others by
             an all-reduce in the compute dtype, which moves everything twice
  tokens     where the axis expert spans hosts: inputs (twice) and gradients of outputs are gathered along it, outputs
             and gradients of inputs are scattered in f32

As in the program that XLA compiles for GPUs (docs/decisions.md), embedding and head aside, which it reduces in f32.
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
    weights = gradients = tokens = 0.0
    for param in table(run):
        here = 1 / spanned if param.routed else 1.0  # of the parameter, computed with on this host
        crossing = math.prod(param.shape) * max(0.0, here - 1 / hosts)
        weights += 2 * c * crossing
        gradients += (F32 if param.routed else 2 * c) * crossing
    if spanned > 1:
        of_axis = micro // shards(mesh, BATCH) * run.data.sequence * mesh.shape["expert"]
        tokens = (3 * c + 2 * F32) * run.model.layers * of_axis * run.model.dim * (1 - 1 / spanned)
    return {"weights": int(passes * weights), "gradients": int(passes * gradients), "tokens": int(passes * tokens)}
