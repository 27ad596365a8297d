"""What crafts of adversaries are made of: contributions that were not trained for, or were changed afterwards."""

import dataclasses
import math
from collections.abc import Awaitable, Callable, Mapping
from functools import partial

import jax
import numpy as np

from templar_jax.compress.codec import encode
from templar_jax.compress.packed import Packed
from templar_jax.compress.quantize import SCALES, STEPS
from templar_jax.node import receipt
from templar_jax.node.craft import Craft, Trained, pack
from templar_jax.node.engine import Params
from templar_jax.node.world import Node

Contribution = Mapping[str, Packed]


async def untrained(node: Node, window: int, slot: int, seed: bytes) -> Trained:
    """Claims all H steps and does none, but for the forward pass that the header's receipt asks for."""
    costs = node.world.costs

    def work() -> float:
        return receipt.first_loss(node, node.state.params, window, seed, slot)

    node.local.first_loss = await node.world.clock.spend("train", costs.step / 3, work)
    return Trained(node.state.params, node.run.inner.steps, ())


async def forward_pass(node: Node, window: int, slot: int, seed: bytes) -> None:
    """Step 0's loss on the assigned batch, for the header: what a validator checks without any inner step."""
    work = partial(receipt.first_loss, node, node.state.params, window, seed, slot)
    node.local.first_loss = await node.world.clock.spend("evaluate", node.world.costs.evaluate, work)


def sending(make: Callable[[Node, Trained], Awaitable[Contribution]]) -> Craft:
    """Trains as an honest miner does and sends what `make` returns."""

    async def compress(node: Node, window: int, trained: Trained) -> bytes:
        packed = await make(node, trained)
        node.local.contributed = window
        return encode(node.run, packed)

    return Craft(compress=compress)


def idle(make: Callable[[Node, Trained], Awaitable[Contribution]]) -> Craft:
    """Trains nothing and sends what `make` returns."""
    return dataclasses.replace(sending(make), train=untrained)


async def own(node: Node, trained: Trained) -> Contribution:
    """What an honest miner would send."""
    return await pack(node, trained.params)


async def between(node: Node, start: Params, end: Callable[[], Params]) -> Contribution:
    """start - end(), compressed without any error feedback; takes a compression's time."""
    compressor = node.engine.compressor

    def work() -> Contribution:
        return compressor.update(compressor.init(), start, end())[1]

    return await node.world.clock.spend("compress", node.world.costs.compress, work)


def added(node: Node, params: Params, deviation: float) -> Params:
    """params + normal noise of that standard deviation."""
    chance = np.random.default_rng(np.frombuffer(node.world.entropy(32), np.uint64))

    def one(x: jax.Array) -> jax.Array:
        noise = chance.standard_normal(x.shape, np.float32) * np.float32(deviation)
        return jax.device_put(np.asarray(x) + noise, x.sharding)

    return {name: one(x) for name, x in params.items()}


def changed(contribution: Contribution, change: Callable[[Packed], Packed]) -> Contribution:
    """`change` of every parameter."""
    return {name: change(Packed(*map(np.asarray, packed))) for name, packed in contribution.items()}


def scaled(packed: Packed, factor: float) -> Packed:
    """The same values times `factor` > 0; by sign1 to the next scale code, at most the largest."""
    if packed.scales.dtype == np.float32:
        return packed._replace(scales=(packed.scales * np.float32(factor)).astype(np.float32))
    codes = packed.scales.astype(np.int64)
    moved = np.clip(codes + round(STEPS * math.log2(factor)), 1, SCALES - 1)
    return packed._replace(scales=np.where(codes > 0, moved, 0).astype(np.uint8))


def negated(packed: Packed) -> Packed:
    """The same values with the other sign."""
    if packed.scales.dtype == np.float32:
        return packed._replace(scales=-packed.scales)
    return packed._replace(codes=packed.codes ^ np.uint8(2))
