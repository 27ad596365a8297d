"""How a simulated node differs from an honest one."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from templar_jax.data.pages import Pages
from templar_jax.node.craft import HONEST as HONEST_CRAFT
from templar_jax.node.craft import Craft
from templar_jax.node.engine import Engine
from templar_jax.node.world import Node, World
from templar_jax.store.simulated import Fault, Operation, no_fault

if TYPE_CHECKING:
    from templar_jax.simulate.network import Network


@dataclass(frozen=True)
class Role:
    """Its hardware, and what it makes of its ports, its engine, its pages, its window and its bucket.

    alter: its ports, e.g. a chain on which it commits something else.
    engine: its device functions. What a node applies passes through `outer.apply`: see zoo/past.
    craft: how it comes to a contribution and hands it in; of a miner only.
    serve: what it makes of an operation of somebody else on its bucket.
    live: its whole life, instead of registering once and taking part in N windows:
      (network, name, N) -> the node as it ended. It may call `network.node` with other names, e.g. NAME.2, as often as
      it likes, with a role that has no `live`.
    """

    speed: float = 1.0  # modelled seconds are divided by it
    alter: Callable[[World], World] = lambda world: world
    engine: Callable[[Engine], Engine] = lambda engine: engine
    pages: Callable[[Pages], Pages] = lambda pages: pages
    craft: Craft = HONEST_CRAFT
    serve: Callable[[Operation], Fault | None] = no_fault
    live: Callable[[Network, str, int | None], Awaitable[Node | None]] | None = None


HONEST = Role()
