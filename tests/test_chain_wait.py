"""Waits end: at the block, at a stop, at a deadline, or when the chain stalls."""

import asyncio
from typing import Any

import pytest

from templar_jax.chain.local import LocalChain
from templar_jax.chain.wait import pause, until_block, until_final
from templar_jax.errors import ChainError
from templar_jax.simulate.loop import VirtualClock, run_virtual


def simulate(scenario, start=1.7e9 + 0.3):
    async def main():
        clock = VirtualClock()
        return await scenario(LocalChain.create(":memory:", "test", 12.0, 2, 360, clock), clock)

    return run_virtual(main, start=start, horizon=start + 1e6)


class Frozen:
    """A chain whose head stops at `block`: what a node of the network that produces no heads looks like."""

    network, block_seconds = "test", 12.0

    def __init__(self, chain, block):
        self.chain, self.block = chain, block

    async def head(self):
        return min(self.block, await self.chain.head())

    async def finalized(self):
        return min(self.block, await self.chain.finalized())

    async def eta(self, block):
        return await self.chain.eta(block)


def test_until_block_and_until_final_end_exactly_then():
    async def scenario(chain, clock):
        for block in (0, 1, 2, 50, 49, 1001):
            assert await until_block(chain, clock, block) is True
            assert await chain.head() == max(block, 50 if block == 49 else 0)
        assert clock.time() == await chain.eta(1001)
        for block in (1002, 1010, 3000):
            assert await until_final(chain, clock, block, asyncio.Event()) is True
            assert clock.time() == await chain.eta(block + 2)

    simulate(scenario)


def test_a_stop_ends_the_wait_at_once():
    async def scenario(chain, clock):
        stop = asyncio.Event()
        asyncio.get_running_loop().call_later(100.0, stop.set)
        began = clock.time()
        assert await until_block(chain, clock, 1000, stop) is False
        assert clock.time() - began == pytest.approx(100.0)
        assert await until_final(chain, clock, 1000, stop) is False
        assert await until_block(chain, clock, 3, stop) is True  # there already: no need to wait
        assert len(asyncio.all_tasks()) == 1  # nothing is left behind but this

    simulate(scenario)


def test_a_deadline_ends_the_wait():
    async def scenario(chain, clock):
        began = clock.time()
        with pytest.raises(ChainError, match="block 1000 did not exist by its deadline: the chain stands at 4"):
            await until_block(chain, clock, 1000, deadline=began + 50.0)
        assert clock.time() - began == pytest.approx(50.0)
        assert await until_block(chain, clock, 5, deadline=began + 60.0)

    simulate(scenario)


@pytest.mark.parametrize("wait", [until_block, until_final])
def test_a_chain_that_stalls_is_named(wait):
    async def scenario(chain, clock):
        with pytest.raises(ChainError, match="'test' has stood at block 7 for .* waiting for 100"):
            await wait(Frozen(chain, 7), clock, 100)
        assert await chain.eta(7) + 120 <= clock.time() <= await chain.eta(9) + 250

    simulate(scenario)


def test_a_late_block_is_asked_for_again():
    class Late(Frozen):
        async def head(self):
            return max(0, await self.chain.head() - 3)

    async def scenario(chain, clock):
        late: Any = Late(chain, 0)
        assert await until_block(late, clock, 10)
        assert await chain.eta(13) <= clock.time() <= await chain.eta(13) + 3.0

    simulate(scenario)


def test_pause_passes_on_cancellation_and_errors_of_the_clock():
    class Broken(VirtualClock):
        async def sleep(self, seconds):
            raise OSError("no clock")

    async def scenario(chain, clock):
        stop, broken = asyncio.Event(), Broken()
        assert await pause(clock, 5.0, stop) is False
        with pytest.raises(OSError, match="no clock"):
            await pause(broken, 5.0, stop)
        waiting = asyncio.create_task(pause(clock, 1e5, stop))
        await clock.sleep(1.0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert len(asyncio.all_tasks()) == 1

    simulate(scenario)
