"""Waits that end: by success, by their time limit, or because the node was asked to stop."""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar

from templar_jax.chain.wait import pause
from templar_jax.errors import StoreError
from templar_jax.node.world import World
from templar_jax.telemetry.events import Warned

T = TypeVar("T")


class Stopped(Exception):
    """The node was asked to stop while it waited."""


async def bounded(world: World, work: Coroutine[Any, Any, T], seconds: float, what: str) -> T:
    """The result of `work`, which is cancelled when its time is over or the node shall stop.

    Raises:
      StoreError: not done within `seconds`; Stopped; whatever `work` raises.
    """
    task, stopping = asyncio.ensure_future(work), asyncio.ensure_future(world.stop.wait())
    try:
        await asyncio.wait([task, stopping], timeout=max(0.0, seconds), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        if stopping.done():
            raise Stopped
        raise StoreError(f"{what} was not done within {seconds:.0f} s")
    finally:
        task.cancel()
        stopping.cancel()
        await asyncio.gather(task, stopping, return_exceptions=True)


async def insist(
    world: World, job: Callable[[], Coroutine[Any, Any, Any]], until: float, what: str, *, small: bool = True
) -> bool:
    """Does something to the own bucket, again every half block, until it works. False (and said) if it never did.

    Args:
      until: clock time at which to give up.
      small: takes no time to speak of, so that a try that hangs is given up after half of the time that is left.

    Raises:
      Stopped; whatever is no StoreError.
    """
    between = world.chain.block_seconds / 2
    while True:
        try:
            left = max(0.0, until - world.clock.time())
            await bounded(world, job(), left / 2 if small else left, "it")
            return True
        except StoreError as error:
            if world.clock.time() + between >= until:
                world.emit(Warned(f"{what} failed: {error}"))
                return False
        if await pause(world.clock, between, world.stop):
            raise Stopped


async def first_of(attempts: Sequence[Callable[[], Coroutine[Any, Any, T]]], stagger: float) -> T:
    """The result of the first attempt that succeeds; the others are cancelled.

    The next attempt starts as soon as one fails, or after `stagger` seconds beside those that still run: who answers
    slowly delays nobody who has another source.

    Raises: the first failure, if all fail.
    """
    waiting, running = list(attempts), []
    failure: BaseException | None = None
    try:
        while waiting or running:
            if waiting:
                running.append(asyncio.ensure_future(waiting.pop(0)()))
            limit = stagger if waiting else None
            await asyncio.wait(running, timeout=limit, return_when=asyncio.FIRST_COMPLETED)
            for task in [task for task in running if task.done()]:  # in the order of the attempts
                running.remove(task)
                if (error := task.exception()) is None:
                    return task.result()
                failure = failure or error
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
    assert failure is not None, "no attempts"
    raise failure
