"""Waiting for blocks, so that nothing waits for ever: a deadline, a watchdog on a stalled chain, and a way out."""

import asyncio
from collections.abc import Awaitable, Callable

from templar_jax.chain.port import Chain
from templar_jax.clock import Clock
from templar_jax.errors import ChainError

STALE_SECONDS = 120.0  # without a new block; at least STALE_BLOCKS blocks
STALE_BLOCKS = 10


async def pause(clock: Clock, seconds: float, stop: asyncio.Event | None = None) -> bool:
    """Sleeps on `clock`; returns True as soon as `stop` is set, False when the time has passed."""
    if stop is None:
        await clock.sleep(seconds)
        return False
    if stop.is_set():
        return True
    sleeping, stopping = asyncio.ensure_future(clock.sleep(seconds)), asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait([sleeping, stopping], return_when=asyncio.FIRST_COMPLETED)
        if sleeping.done():
            sleeping.result()  # an error of the clock is not a pause
    finally:
        sleeping.cancel()
        stopping.cancel()
        await asyncio.gather(sleeping, stopping, return_exceptions=True)
    return stop.is_set()


async def until_block(
    chain: Chain,
    clock: Clock,
    block: int,
    stop: asyncio.Event | None = None,
    *,
    deadline: float | None = None,
    stale_seconds: float = STALE_SECONDS,
) -> bool:
    """Waits until `block` exists.

    Args:
      stop: ends the wait when set.
      deadline: clock time after which the wait fails.
      stale_seconds: fails when the head has not moved for so long (at least STALE_BLOCKS blocks).
    Returns: True when it exists, False if `stop` was set first.
    Raises: ChainError at the deadline or for a stalled chain, and whatever the chain raises.
    """
    return await _until(chain, clock, block, "exist", chain.head, stop, deadline, stale_seconds)


async def until_final(
    chain: Chain,
    clock: Clock,
    block: int,
    stop: asyncio.Event | None = None,
    *,
    deadline: float | None = None,
    stale_seconds: float = STALE_SECONDS,
) -> bool:
    """Like `until_block`, until `block` can no longer change. The watchdog looks at finalized blocks."""
    return await _until(chain, clock, block, "be final", chain.finalized, stop, deadline, stale_seconds)


async def _until(
    chain: Chain,
    clock: Clock,
    block: int,
    verb: str,
    read: Callable[[], Awaitable[int]],
    stop: asyncio.Event | None,
    deadline: float | None,
    stale_seconds: float,
) -> bool:
    stale_seconds = max(stale_seconds, STALE_BLOCKS * chain.block_seconds)
    newest, moved = await read(), clock.time()
    while newest < block:
        now = clock.time()
        if now - moved >= stale_seconds:
            raise ChainError(
                f"the chain {chain.network!r} has stood at block {newest} for {now - moved:.0f} s, waiting for {block} "
                f"to {verb}: check the connection or the machine's clock"
            )
        if deadline is not None and now >= deadline:
            raise ChainError(f"block {block} did not {verb} by its deadline: the chain stands at {newest}")
        # Final blocks lag the head by a constant: aim for the moment at which the head is that much further.
        expected = await chain.eta(block + max(0, await chain.head() - newest))
        seconds, soon = expected - now, chain.block_seconds / 4
        if seconds > chain.block_seconds:
            seconds -= chain.block_seconds  # from then on it is asked often: this machine's clock may be behind
        else:
            seconds = min(seconds, soon) if seconds > 0.0 else soon
        seconds = min(seconds, stale_seconds / 2, *([] if deadline is None else [deadline - now]))
        if await pause(clock, seconds, stop):
            return False
        current = await read()
        if current > newest:
            newest, moved = current, clock.time()
    return True
