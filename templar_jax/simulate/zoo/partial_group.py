"""Class (b): several uids of one owner that share one run's work.

What the owner runs once for all of them shows as steps of one of them. Each uid's header has the right loss of step 0:
a forward pass on its first batch, which no count of steps shows.
"""

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from templar_jax.compress.feedback import decay
from templar_jax.compress.tiles import tilings
from templar_jax.data.loader import make_loader
from templar_jax.node.craft import Trained, own_pages, take_steps
from templar_jax.node.world import Node
from templar_jax.simulate.role import Role
from templar_jax.simulate.zoo.entry import Adversary
from templar_jax.simulate.zoo.partial import lazy, like_the_others, share_of, some_steps
from templar_jax.simulate.zoo.partial_arrays import (
    Gradient,
    compressed,
    decoded,
    first_unlike,
    mixed,
    noisy,
    stripe,
    unlike,
)
from templar_jax.simulate.zoo.past import Past
from templar_jax.simulate.zoo.sending import Contribution, forward_pass, own, sending

MEET_SECONDS = 1.0  # that the first of an owner's nodes waits for the others
NOISES = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)  # in root mean squares of the pseudo-gradient: the least that hides a copy
MIXES = (1.0, 0.7, 0.5, 0.35, 0.25, 0.15, 0.0)  # weights of the partner's work: the largest that hides the pair


@dataclass(frozen=True)
class Member:
    """One of the owner's nodes in one window, and what it brings."""

    node: Node
    slot: int
    brings: Any = None


@dataclass
class Meeting:
    """The owner's nodes in one window, in the order in which they came, and what each goes away with."""

    members: list[Member] = field(default_factory=list)
    done: asyncio.Event = field(default_factory=asyncio.Event)
    shares: Sequence[Any] = ()


@dataclass
class Owner:
    """What the nodes of one owner share."""

    past: Past = field(default_factory=Past)
    worker: Node | None = None  # has the optimizer and the error feedback of the common run
    meetings: dict[int, Meeting] = field(default_factory=dict)

    async def meet(
        self, window: int, member: Member, work: Callable[[Sequence[Member]], Awaitable[Sequence[Any]]]
    ) -> Any:
        """This member's share of what `work` makes of all who came; None for one that came too late."""
        meeting = self.meetings.setdefault(window, Meeting())
        number = len(meeting.members)
        meeting.members.append(member)
        if number:
            await meeting.done.wait()
        else:
            try:
                await member.node.world.clock.sleep(MEET_SECONDS)
                meeting.shares = await work(tuple(meeting.members))
            finally:  # also where the first one's process ends
                meeting.done.set()
                self.meetings = {at: known for at, known in self.meetings.items() if at >= window}
        return meeting.shares[number] if number < len(meeting.shares) else None

    def unlike(self, node: Node) -> float:
        """The cosine up to which two contributions passed for two persons' work in the last window."""
        return unlike(node.run, list(self.past.last.contributions.values())) if self.past.last else 1.0


@dataclass(frozen=True)
class Split:
    """What the uids send of one pseudo-gradient, and how much of it is sent by all of them together."""

    contributions: Sequence[Contribution]
    sent: Gradient


Splitter = Callable[[Node, Gradient, int, float], Split]  # of (node, pseudo-gradient, number of uids, cosine allowed)


def identical(node: Node, gradient: Gradient, count: int, limit: float) -> Split:
    del limit
    one = compressed(node.engine, gradient)
    return Split([one] * count, decoded(node.engine, one))


def with_noise(node: Node, gradient: Gradient, count: int, limit: float) -> Split:
    """Every copy with noise of its own, as little as hides that they are copies."""
    draw = np.random.default_rng(np.frombuffer(node.world.entropy(32), np.uint64))

    def make(share: float) -> list[Contribution]:
        return [compressed(node.engine, noisy(gradient, share, draw)) for _ in range(count)]

    found = first_unlike(node.run, NOISES, limit, make)
    return Split(found, decoded(node.engine, compressed(node.engine, gradient)))


def by_ranks(node: Node, gradient: Gradient, count: int, limit: float) -> Split:
    """Each takes every `count`-th largest value of a tile: no index is sent twice."""
    del limit
    found = [compressed(node.engine, stripe(node.run, gradient, at, count)) for at in range(count)]
    values = [decoded(node.engine, one) for one in found]
    whole = {name: values[0][name] for name, tiling in tilings(node.run).items() if tiling.full}  # sent by each
    return Split(found, mixed([(1.0, one) for one in values]) | whole)


def sybil(split: Splitter, all_pages: bool = False) -> Callable[[int], list[Role]]:
    """All uids send parts of one run of H steps on the first one's pages, or on a sample of everybody's."""

    def roles(count: int) -> list[Role]:
        owner = Owner()
        return [_sybil(owner, split, all_pages) for _ in range(count)]

    return roles


def _sybil(owner: Owner, split: Splitter, all_pages: bool) -> Role:
    async def train(node: Node, window: int, slot: int, seed: bytes) -> Trained:
        async def work(members: Sequence[Member]) -> Sequence[Contribution]:
            return await _common_work(owner, members, window, seed, split, all_pages)

        sent = await owner.meet(window, Member(node, slot), work)
        mine.clear()
        if sent is None:
            return Trained(node.state.params, 0, ())
        mine.append(sent)
        await forward_pass(node, window, slot, seed)
        return Trained(node.state.params, node.run.inner.steps, ())

    async def make(node: Node, trained: Trained) -> Contribution:
        del node, trained
        return mine.pop()

    mine: list[Contribution] = []
    return Role(craft=dataclasses.replace(sending(make), train=train), engine=owner.past.engine)


async def _common_work(
    owner: Owner, members: Sequence[Member], window: int, seed: bytes, split: Splitter, all_pages: bool
) -> Sequence[Contribution]:
    """One run of H steps by one of them, cut up for all; empty where there was no time."""
    worker = next((member for member in members if member.node is owner.worker), members[0])
    node = owner.worker = worker.node
    inner, params, world, local = node.run.inner, node.state.params, node.world, node.local
    pages = [page for member in (members if all_pages else [worker]) for page in own_pages(node, member.slot, seed)]
    what: Any = dict(run_id=node.run.run_id, window=window, batch=inner.batch, steps=inner.steps, seed=seed, threads=0)
    loader = make_loader(node.cache, pages, **what)
    trained = await take_steps(node, window, node.engine.inner.begin(params), loader, 0, inner.steps)
    if not trained.steps:
        return ()
    gradient = pseudo_gradient(node, trained)

    def work() -> Sequence[Contribution]:
        found = split(node, gradient, len(members), owner.unlike(node))
        left = {name: value - found.sent[name] for name, value in gradient.items()}
        local.feedback = {name: jax.device_put(value, params[name].sharding) for name, value in left.items()}
        return [like_the_others(node, owner.past, one) for one in found.contributions]

    return await world.clock.spend("compress", world.costs.compress, work)


def pseudo_gradient(node: Node, trained: Trained) -> Gradient:
    """theta_w - params + decay * error feedback, on the host."""
    start, end, left, rate = node.state.params, trained.params, node.local.feedback, decay(node.run)
    return {name: np.asarray(start[name]) - np.asarray(end[name]) + rate * np.asarray(left[name]) for name in start}


def pair(count: int) -> list[Role]:
    """Half of the steps each; each sends its own work and, as far as it does not show, some of the next one's."""
    owner = Owner()
    return [_partner(owner) for _ in range(count)]


def _partner(owner: Owner) -> Role:
    async def train(node: Node, window: int, slot: int, seed: bytes) -> Trained:
        mine[:] = [slot]
        return await some_steps(node, window, slot, seed, share_of(node, 0.5))

    async def make(node: Node, trained: Trained) -> Contribution:
        gradient = pseudo_gradient(node, trained)
        alone = await own(node, trained)  # what is sent of the own work leaves the error feedback

        async def work(members: Sequence[Member]) -> Sequence[Contribution]:
            return _mixes(owner, members) if len(members) > 1 else [alone]

        sent = await owner.meet(node.state.window, Member(node, mine[0], gradient), work)
        return like_the_others(node, owner.past, sent or alone)

    mine: list[int] = []
    return Role(craft=dataclasses.replace(sending(make), train=train), engine=owner.past.engine)


def _mixes(owner: Owner, members: Sequence[Member]) -> Sequence[Contribution]:
    node = members[0].node
    ring = [*members, members[0]]

    def make(weight: float) -> list[Contribution]:
        both = zip(ring, ring[1:], strict=False)
        return [compressed(node.engine, mixed([(1.0, one.brings), (weight, next.brings)])) for one, next in both]

    return first_unlike(node.run, MIXES, owner.unlike(node), make)


ROWS = {
    "sybil-identical": Adversary("b", "COUNT uids of one owner send one contribution", sybil(identical)),
    "sybil-noise": Adversary("b", "COUNT uids send one run's work, each with noise of its own", sybil(with_noise)),
    "sybil-ranks": Adversary("b", "COUNT uids send disjoint ranks of one run's values", sybil(by_ranks)),
    "sybil-all-data": Adversary(
        "b", "COUNT uids send disjoint ranks of one run on a sample of all their pages", sybil(by_ranks, all_pages=True)
    ),
    "sybil-share": Adversary(
        "b",
        "COUNT uids do 1/COUNT of the steps each, with the median norm",
        lambda count: [lazy(1 / count, True) for _ in range(count)],
    ),
    "pair": Adversary("b", "each does half of the steps and sends its own and its partner's work", pair),
}
