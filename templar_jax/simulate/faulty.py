"""A node's ports and its life under `faults`: a chain that loses or delays, a clock that is wrong, a process that dies.

Stores need no port of their own: `SimStore` asks `faults.of_store` before every operation.
"""

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any, TypeVar

from templar_jax.chain.keys import Keypair
from templar_jax.chain.local import LocalChain
from templar_jax.chain.port import Commitment, Metagraph
from templar_jax.clock import Clock
from templar_jax.errors import ChainError, TemplarError
from templar_jax.node.world import World
from templar_jax.simulate import faults as kinds
from templar_jax.simulate.faults import Faults

T = TypeVar("T")

STALL_BLOCKS = 10.0  # after which a call of the chain that stalls fails
RESTART_SECONDS = 30.0  # until a service manager starts a node again that ended with an error


class SkewedClock:
    """A clock that is `ahead` by some seconds."""

    def __init__(self, inner: Clock, ahead: float) -> None:
        self._inner, self._ahead = inner, ahead

    def time(self) -> float:
        return self._inner.time() + self._ahead

    async def sleep(self, seconds: float) -> None:
        await self._inner.sleep(seconds)

    async def spend(self, phase: str, modelled_seconds: float, work: Callable[[], T]) -> T:
        return await self._inner.spend(phase, modelled_seconds, work)


class FaultyChain:
    """The chain as one node reaches it. Blocks and what stands in them are the same for all; answers may be old."""

    def __init__(self, inner: LocalChain, name: str, faults: Faults, clock: Clock) -> None:
        self._inner, self._name, self._faults, self._clock = inner, name, faults, clock
        self.network, self.block_seconds = inner.network, inner.block_seconds

    async def _newest(self) -> int:
        """The head, or the one at which this node was cut off."""
        head = await self._inner.head()
        began = self._cut()
        return head if began is None else min(head, int(began / self.block_seconds))

    def _cut(self) -> float | None:
        now = self._clock.time()
        blind = self._name in self._faults.hit.get("lag", frozenset()) and self._faults.active(now)
        return kinds.cut_start(self._faults, "lag", now) if blind else None

    async def head(self) -> int:
        return await self._newest()

    async def finalized(self) -> int:
        return max(0, await self._newest() - self._inner.rules.finality)

    async def eta(self, block: int) -> float:
        return await self._inner.eta(block)

    async def block_hash(self, block: int) -> bytes:
        await self._check(block)
        return await self._inner.block_hash(block)

    async def metagraph(self, block: int | None = None) -> Metagraph:
        block = await self._newest() if block is None else block
        await self._check(block)
        return await self._inner.metagraph(block)

    async def commitments(self, first: int, last: int) -> tuple[Commitment, ...]:
        if last >= first:
            await self._check(last)
        return await self._inner.commitments(first, last)

    async def weights(self, block: int | None = None) -> Mapping[int, Mapping[int, int]]:
        block = await self._newest() if block is None else block
        await self._check(block)
        return await self._inner.weights(block)

    async def register(self, key: Keypair) -> int:
        self._check_link()
        return await self._inner.register(key)

    async def commit(self, key: Keypair, fields: tuple[bytes, ...]) -> None:
        await self._send(lambda: self._inner.commit(key, fields))

    async def set_weights(self, key: Keypair, weights: Any) -> None:
        await self._send(lambda: self._inner.set_weights(key, weights))

    async def _send(self, send: Callable[[], Awaitable[None]]) -> None:
        self._check_link()
        fault = kinds.of_commitment(self._faults, self._name, self._clock.time())
        if fault is None:
            await send()
        elif fault.kind == "delay":
            await self._clock.sleep(fault.seconds)
            await send()
        elif fault.kind == "torn":
            await send()
            raise ChainError("the connection was lost before the chain answered")
        else:
            await self._clock.sleep(STALL_BLOCKS * self.block_seconds if fault.kind == "stall" else 0.0)
            raise ChainError("the chain did not take it")

    async def _check(self, block: int) -> None:
        if block > (newest := await self._newest()):
            raise ChainError(f"block {block} does not exist (yet): this node knows the chain up to block {newest}")

    def _check_link(self) -> None:
        if self._cut() is not None:
            raise ChainError("no connection to the chain")


def around(world: World, chain: LocalChain, name: str, faults: Faults) -> World:
    """The ports of node `name` with its faults; `world.clock` must show the true time."""
    true = world.clock
    clock = SkewedClock(true, ahead) if (ahead := kinds.skew(faults, name)) else true
    return dataclasses.replace(world, chain=FaultyChain(chain, name, faults, true), clock=clock)


async def live(faults: Faults, clock: Clock, name: str, start: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Runs node `name`: killed when that is due, and started again, also after an error, until it ends by itself.

    Args:
      start: runs one process of it. clock: the true one.
    """
    kills = kinds.crashes(faults, name)
    while True:
        task = asyncio.ensure_future(start())
        try:
            await asyncio.wait([task], timeout=kills[0][0] - clock.time() if kills else None)
        finally:
            ended = task.done()
            if not ended:
                task.cancel()  # as SIGKILL: nothing that was under way has an effect
                await asyncio.gather(task, return_exceptions=True)
        if not ended:
            await clock.sleep(kills.pop(0)[1])
            continue
        try:
            return task.result()
        except TemplarError:
            if not faults.active(clock.time()) and not faults.active(clock.time() - faults.window_seconds):
                raise  # no fault explains that
            await clock.sleep(RESTART_SECONDS)
