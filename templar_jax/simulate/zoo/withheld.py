"""Class (a): what is opened, when, to whom, and what is handed in too late."""

from functools import partial

import numpy as np

from templar_jax.chain.messages import SealMessage, encode_commitment
from templar_jax.chain.wait import until_block
from templar_jax.compress.codec import decode, encode
from templar_jax.node import craft as honest
from templar_jax.node.craft import Craft, Trained, claim_of
from templar_jax.node.engine import Params
from templar_jax.node.seals import SavedSeal
from templar_jax.node.world import Node
from templar_jax.simulate.role import Role
from templar_jax.simulate.zoo.copied import placeholder
from templar_jax.simulate.zoo.entry import Adversary, alone
from templar_jax.simulate.zoo.malformed import sealed_once
from templar_jax.simulate.zoo.others import evaluation_draw, gains, half_of, last_moment, opened_by
from templar_jax.simulate.zoo.sending import Contribution, between, changed, scaled, untrained
from templar_jax.store import contribution, parts
from templar_jax.store.seal import open_sealed, read_header, sealed_hash
from templar_jax.store.simulated import Fault, Operation, SimBucket

OWN = -1  # the own contribution's name among those of the others
FACTORS = (0.25, 0.5, 2.0, 4.0, 1.0)  # of the five versions


async def never(node: Node, window: int, saved: SavedSeal, until: float) -> None:
    """The key stays where it is."""


def unsealed(node: Node, saved: SavedSeal) -> Contribution:
    return decode(node.run, open_sealed(saved.sealed, saved.key, read_header(saved.sealed)))


def when_good() -> Role:
    """Opens what it sent at the last moment, and only if it gains more than the median of its earlier ones.

    Measured on the sequences that will be evaluated on, should they be known by then; else on held-out ones.
    """
    earlier: list[float] = []

    async def reveal(node: Node, window: int, saved: SavedSeal, until: float) -> None:
        world = node.world
        await world.clock.sleep(max(0.0, await last_moment(node, window) - world.clock.time() - world.costs.evaluate))
        drawn = await evaluation_draw(node, window)
        gain = (await gains(node, {OWN: unsealed(node, saved)}, drawn))[OWN]
        good = not earlier or gain >= float(np.median(earlier))
        earlier.append(gain)
        if good:
            await honest.reveal(node, window, saved, until)

    return Role(craft=Craft(reveal=reveal))


async def when_better(node: Node, window: int, saved: SavedSeal, until: float) -> None:
    """Opens what it sent only if at least half of the others, whose contributions it opens first, gain less."""
    closing = await last_moment(node, window)
    others = await opened_by(node, window, closing - node.world.chain.block_seconds)
    found = await gains(node, {OWN: unsealed(node, saved), **others}, await evaluation_draw(node, window))
    if found[OWN] >= float(np.median(list(found.values()))):
        await honest.reveal(node, window, saved, until)


def five_versions() -> Role:
    """Commits to five versions of a contribution, sees what the others sent, then serves and opens the best of them."""
    versions: dict[int, list[SavedSeal]] = {}

    async def seal(node: Node, window: int, trained: Trained, plaintext: bytes) -> SavedSeal:
        whole, claim = decode(node.run, plaintext), await claim_of(node, window, trained.steps)
        texts = [encode(node.run, changed(whole, lambda one, f=factor: scaled(one, f))) for factor in FACTORS[:-1]]
        versions.clear()
        versions[window] = [sealed_once(node, claim, text) for text in texts]
        versions[window].append(await honest.seal(node, window, trained, plaintext))
        return versions[window][-1]

    async def submit(node: Node, window: int, saved: SavedSeal) -> bool:
        for version in versions.get(window, ())[:-1]:
            await hand_in(node, window, version)
        return await honest.submit(node, window, saved)

    async def reveal(node: Node, window: int, saved: SavedSeal, until: float) -> None:
        closing = await last_moment(node, window)
        await opened_by(node, window, closing - node.world.chain.block_seconds)
        mine = dict(enumerate(versions.get(window, [saved])))
        contributions = {number: unsealed(node, version) for number, version in mine.items()}
        found = await gains(node, contributions, await evaluation_draw(node, window))
        best = mine[max(found, key=lambda number: found[number])]
        await parts.upload(node.world.bucket, contribution.sealed_key(window), best.sealed)
        await honest.reveal(node, window, best, until)

    return Role(craft=Craft(seal=seal, submit=submit, reveal=reveal))


async def hand_in(node: Node, window: int, saved: SavedSeal) -> None:
    """Uploads and commits, whatever the time is."""
    world = node.world
    await parts.upload(world.bucket, contribution.sealed_key(window), saved.sealed)
    message = SealMessage(window, sealed_hash(saved.sealed))
    await world.chain.commit(world.key, encode_commitment(world.bucket.locator, message))


def to_some(operation: Operation) -> Fault | None:
    """Half of the others never get an answer: that costs them more than a refusal."""
    return Fault("stall") if operation.kind == "get" and half_of(operation.actor) else None


async def after_deadline(node: Node, window: int, saved: SavedSeal) -> bool:
    """In the first block after the deadline."""
    world = node.world
    await until_block(world.chain, world.clock, node.timetable(window).deadline, world.stop)
    await hand_in(node, window, saved)
    await contribution.publish_key(world.bucket, window, saved.key)
    return True


async def backdated(node: Node, window: int, saved: SavedSeal) -> bool:
    """Opens the others' contributions, sends their mean as its own, and sets its store's times before the deadline."""
    world, run = node.world, node.run
    timetable, start = node.timetable(window), node.state.params
    await until_block(world.chain, world.clock, timetable.deadline + 1, world.stop)
    others = await opened_by(node, window, await last_moment(node, window) - world.chain.block_seconds)
    if not others:
        return False

    def mean() -> Params:
        return node.engine.outer.apply(start, node.state.momentum, others)[0]

    text = encode(run, await between(node, start, mean))
    forged = sealed_once(node, await claim_of(node, window, run.inner.steps), text)
    await hand_in(node, window, forged)
    await contribution.publish_key(world.bucket, window, forged.key)
    if isinstance(world.bucket, SimBucket):
        then = await world.chain.eta(timetable.start)
        objects = world.bucket.store.buckets[world.bucket.name]
        for key in [key for key in objects if contribution.window_of(key) == window]:
            objects[key] = objects[key][0], then
    return True


_UNOPENED = partial(Craft, train=untrained, compress=placeholder)

ROWS = {
    "late": Adversary(
        "a", "trains, and commits after the deadline", alone(lambda: Role(craft=Craft(submit=after_deadline)))
    ),
    "backdater": Adversary(
        "a",
        "sends the mean of the others' opened work, with forged store times",
        alone(lambda: Role(craft=_UNOPENED(submit=backdated))),
    ),
    "never-opens": Adversary("a", "never publishes its key", alone(lambda: Role(craft=_UNOPENED(reveal=never)))),
    "withholds-when-bad": Adversary(
        "a", "trains, and opens only what gains more than its earlier ones", alone(when_good)
    ),
    "withholds-after-others": Adversary(
        "a",
        "trains, and opens only what gains more than the others'",
        alone(lambda: Role(craft=Craft(reveal=when_better))),
    ),
    "five-versions": Adversary("a", "commits to five versions and opens the best", alone(five_versions)),
    "serves-some": Adversary("a", "trains, and serves half of the readers", alone(lambda: Role(serve=to_some))),
}
