"""A registered name that never sends anything: what others are compared with."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from templar_jax.node.world import Node
from templar_jax.simulate.role import Role
from templar_jax.simulate.zoo.entry import Adversary, alone
from templar_jax.telemetry.events import Registered

if TYPE_CHECKING:
    from templar_jax.simulate.network import Network


async def absent(network: Network, name: str, windows: int | None) -> Node | None:
    """Registers, so that it holds a uid and a slot of the pages, and waits to be ended."""
    world = network.world(name)
    world.emit(Registered(await world.chain.register(world.key)))
    await asyncio.Event().wait()


ROWS = {"absent": Adversary("a", "registers and never sends anything", alone(lambda: Role(live=absent)))}
