"""Class (b): owners that change their hotkey, because a new one starts with a clean name.

A life is a sequence of hotkeys NAME, NAME.2, NAME.3, ... of one machine: model, optimizer and error feedback go along.
The next hotkey is registered before the old one's window is over, so that none is missed.
"""

import dataclasses
import itertools
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from templar_jax.chain import state
from templar_jax.node.craft import Trained
from templar_jax.node.seals import MemorySeals, SavedSeal
from templar_jax.node.snapshots import MemorySnapshots
from templar_jax.node.world import Node
from templar_jax.simulate.role import Role
from templar_jax.simulate.zoo.entry import Adversary, alone
from templar_jax.simulate.zoo.partial import lazy, share_of, some_steps

if TYPE_CHECKING:
    from templar_jax.simulate.network import Network

SHARE = 0.2  # of the steps
EVERY = 6  # windows under one name
KEEP = 0.8  # of its best incentive so far: with less a name is given up
BUILD = 6  # windows of honest work before a uid is handed over
LEAST = 3  # contributions under a name before the next one takes its uid


@dataclass
class Stint:
    """One name's time."""

    windows: int = 0  # contributions handed in
    best: float = 0.0  # highest incentive on the chain
    over: bool = False  # the next name is registered


Leaves = Callable[["Network", Node, Stint], Awaitable[bool]]


def renaming(base: Role, leaves: Leaves) -> Role:
    """`base` under one name after the other; `leaves` is asked after each contribution."""

    async def live(network: "Network", name: str, windows: int | None) -> Node | None:
        del windows  # it goes on as long as there is anybody to live from
        alias, stint = name, Stint()
        for number in itertools.count(2):
            successor = f"{name}.{number}"
            await _one_name(network, alias, stint, base, leaves, successor)
            old = network.disks[alias]  # keeps its checkpoints, and what it knows
            network.disks[successor] = dataclasses.replace(old, seals=MemorySeals(), snapshots=MemorySnapshots())
            alias, stint = successor, Stint()
        return None

    return dataclasses.replace(base, live=live)


async def _one_name(network: "Network", alias: str, stint: Stint, base: Role, leaves: Leaves, successor: str) -> None:
    """Window after window under the name `alias`, until `successor` is registered."""
    from templar_jax.simulate.network import hotkey  # which imports the table of adversaries

    async def submit(node: Node, window: int, saved: SavedSeal) -> bool:
        done = await base.craft.submit(node, window, saved)
        stint.windows += done
        if not stint.over and await leaves(network, node, stint):
            await network.chain.register(hotkey(network.seed, successor))
            stint.over = True
        return done

    role = dataclasses.replace(base, craft=dataclasses.replace(base.craft, submit=submit), live=None)
    while not stint.over:
        await network.node(alias, 1, role)


def after(windows: int) -> Leaves:
    """After so many contributions."""

    async def leaves(network: "Network", node: Node, stint: Stint) -> bool:
        del network, node
        return stint.windows >= windows

    return leaves


def after_a_loss(keep: float = KEEP) -> Leaves:
    """When its incentive on the chain has fallen below `keep` times the best that this name has had."""

    async def leaves(network: "Network", node: Node, stint: Stint) -> bool:
        neuron = (await network.chain.metagraph()).by_hotkey(node.world.hotkey)
        now = neuron.incentive if neuron is not None else 0.0
        stint.best = max(stint.best, now)
        return now < keep * stint.best

    return leaves


def rejoins() -> Role:
    return renaming(lazy(SHARE, rescaled=True), after(EVERY))


def whitewash() -> Role:
    return renaming(lazy(SHARE, rescaled=True), after_a_loss())


def recycled(count: int, build: int = BUILD, least: int = LEAST) -> list[Role]:
    """Builds up a standing, then lives from it with a fifth of the steps until its uid is the one that makes room.

    The next hotkey takes that very uid. In a network with free places this never happens. No two of the owner's
    nodes register in one window: the second could only take an honest one's place.
    """
    windows: set[int] = set()

    async def when_last(network: "Network", node: Node, stint: Stint) -> bool:
        chain, window = network.chain, node.state.window
        found = await chain.metagraph()
        limits, block = chain.rules.limits, found.block + 1
        leaving = state.replaceable(found.neurons, limits, block) if len(found.neurons) >= limits.max_uids else None
        mine = leaving is not None and leaving.hotkey == node.world.hotkey
        epoch = block % chain.rules.tempo == 0  # who makes room may change in this very block
        if not mine or epoch or window in windows or stint.windows < least:
            return False
        windows.add(window)
        return True

    return [renaming(_milking(build), when_last) for _ in range(count)]


def _milking(build: int) -> Role:
    """Honest for `build` windows, whatever the name; then a fifth of the steps."""
    base, done = lazy(SHARE, rescaled=True), set[int]()

    async def train(node: Node, window: int, slot: int, seed: bytes) -> Trained:
        done.add(window)
        steps = node.run.inner.steps if len(done) <= build else share_of(node, SHARE)
        return await some_steps(node, window, slot, seed, steps)

    return dataclasses.replace(base, craft=dataclasses.replace(base.craft, train=train))


ROWS = {
    "rejoins": Adversary("b", f"a fifth of the steps under a new hotkey every {EVERY} windows", alone(rejoins)),
    "whitewash": Adversary(
        "b", "a fifth of the steps; a new hotkey when its incentive on the chain falls", alone(whitewash)
    ),
    "recycled-uid": Adversary(
        "b",
        f"honest for {BUILD} windows, then lazy; a new hotkey takes over its uid when that makes room",
        recycled,
        full=True,
    ),
}
