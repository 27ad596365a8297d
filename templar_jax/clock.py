"""The clock port. `WallClock` is real time with work on threads; the simulator's clock is virtual and inline."""

import asyncio
import time
from collections.abc import Callable
from typing import Protocol, TypeVar

T = TypeVar("T")


class Clock(Protocol):
    """All that a node knows of time."""

    def time(self) -> float:
        """Seconds since the epoch (real) or since the simulation's start (virtual)."""
        ...

    async def sleep(self, seconds: float) -> None: ...

    async def spend(self, phase: str, modelled_seconds: float, work: Callable[[], T]) -> T:
        """Runs `work` off the event loop and returns its result.

        Real time takes as long as it takes; virtual time runs it inline and then passes `modelled_seconds`.
        """
        ...


class WallClock:
    """Real time. `spend` runs the work on a thread so that keys, mirrors and the display go on meanwhile."""

    def time(self) -> float:
        return time.time()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(max(0.0, seconds))

    async def spend(self, phase: str, modelled_seconds: float, work: Callable[[], T]) -> T:
        del phase, modelled_seconds
        return await asyncio.to_thread(work)
