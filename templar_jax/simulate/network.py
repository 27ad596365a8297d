"""Many nodes on virtual time in one process: the real node code on a simulated chain, store and clock.

The same seed gives the same events in the same order. What differs between nodes is their hotkey and the speed of
their hardware; what they share is the engine (the compiled functions are pure) and the pages.
"""

import asyncio
import hashlib
import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace

from templar_jax.chain.keys import Keypair
from templar_jax.chain.local import LocalChain
from templar_jax.config import NodeConfig, RunConfig
from templar_jax.data.pages import Pages
from templar_jax.node.engine import Engine
from templar_jax.node.lifecycle import run_node
from templar_jax.node.seals import MemorySeals
from templar_jax.node.world import Costs, Node, World
from templar_jax.simulate.loop import VirtualClock, run_virtual
from templar_jax.store.checkpoint import MemoryCheckpoints
from templar_jax.store.simulated import SimStore
from templar_jax.telemetry.events import Event

BLOCK_SECONDS = 12.0
FINALITY = 2
HONEST_COSTS = Costs()


@dataclass(frozen=True)
class Entry:
    """One event of one node at one moment of virtual time."""

    time: float
    node: str
    event: Event


@dataclass(frozen=True)
class Outcome:
    """What a simulation came to: every event, and the nodes as they ended (None: stopped before it had a state)."""

    log: tuple[Entry, ...]
    nodes: tuple[Node | None, ...]


def entropy(seed: int, name: str) -> Callable[[int], bytes]:
    """A node's source of secret bytes, the same in every run with this seed."""
    counter = itertools.count()

    def draw(count: int) -> bytes:
        return hashlib.shake_256(f"{seed}/{name}/{next(counter)}".encode()).digest(count)

    return draw


def hotkey(seed: int, name: str) -> Keypair:
    """A node's key, the same in every run with this seed."""
    return Keypair.create_from_seed(hashlib.sha256(f"simulated {seed} {name}".encode()).digest())


def simulate(
    run: RunConfig, engine: Engine, pages: Pages, *, peers: int, windows: int, seed: int, costs: Costs = HONEST_COSTS
) -> Outcome:
    """Runs `peers` honest miners through `windows` windows each."""
    log: list[Entry] = []

    async def world() -> tuple[Node | None, ...]:
        chain_clock = VirtualClock("chain")
        chain = LocalChain.create(
            ":memory:", "simulated", BLOCK_SECONDS, FINALITY, 4 * run.window.blocks, chain_clock, seed=seed
        )
        store = SimStore(chain_clock)
        config = replace(NodeConfig(), checkpoint_every=10, eval_sequences=0)

        async def node(name: str) -> Node | None:
            clock = VirtualClock(name)
            port = World(
                chain=chain,
                clock=clock,
                key=hotkey(seed, name),
                bucket=store.bucket(name),
                open_reader=lambda locator: store.reader(locator, name),
                checkpoints=MemoryCheckpoints(),
                seals=MemorySeals(),
                emit=lambda event: log.append(Entry(clock.time(), name, event)),
                stop=asyncio.Event(),
                costs=costs,
                threads=0,
                entropy=entropy(seed, name),
            )
            return await run_node(port, run, config, engine, pages, windows)

        return tuple(await asyncio.gather(*(node(f"peer-{number:02d}") for number in range(peers))))

    nodes = run_virtual(world)
    return Outcome(tuple(log), nodes)
