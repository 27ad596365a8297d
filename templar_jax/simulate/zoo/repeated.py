"""Class (a): what was computed before is sent again, or the work is done on other data than the assigned."""

import hashlib
from collections.abc import Callable

import jax
import numpy as np

from templar_jax.compress.codec import encode
from templar_jax.data.assign import assigned, unassigned
from templar_jax.node import craft as honest
from templar_jax.node.craft import Craft, Trained
from templar_jax.node.world import Node
from templar_jax.simulate.role import Role
from templar_jax.simulate.zoo.entry import Adversary, alone
from templar_jax.simulate.zoo.others import gains
from templar_jax.simulate.zoo.past import Applied, Past
from templar_jax.simulate.zoo.sending import Contribution, between, forward_pass, untrained


def stale_replay() -> Role:
    """Trains in its first window, and seals what it sent then again in every other one."""
    kept: list[bytes] = []

    async def train(node: Node, window: int, slot: int, seed: bytes) -> Trained:
        return await (untrained if kept else honest.train)(node, window, slot, seed)

    async def compress(node: Node, window: int, trained: Trained) -> bytes:
        if not kept:
            kept.append(await honest.compress(node, window, trained))
        return kept[0]

    return Role(craft=Craft(train=train, compress=compress))


def from_past(make: Callable, past: Past) -> Role:
    """Trains nothing; sends `await make(node, the newest outer step)`. Looks on until there is one."""

    async def train(node: Node, window: int, slot: int, seed: bytes) -> Trained:
        if past.last is None:
            return Trained(node.state.params, 0, ())
        return await untrained(node, window, slot, seed)

    async def compress(node: Node, window: int, trained: Trained) -> bytes:
        node.local.contributed = window
        return encode(node.run, await make(node, past.last))

    return Role(craft=Craft(train=train, compress=compress), engine=past.engine)


async def last_step(node: Node, last: Applied) -> Contribution:
    return await between(node, last.before, lambda: last.after)


async def last_step_and_noise(node: Node, last: Applied) -> Contribution:
    """The noise is as large as the step, and lies where the step is not zero, so that it is not what is kept alone."""
    chance = np.random.default_rng(np.frombuffer(node.world.entropy(32), np.uint64))

    def one(before: jax.Array, after: jax.Array) -> jax.Array:
        end = np.array(after)
        step = np.asarray(before) - end
        moved = step != 0
        size = np.sqrt(np.mean(np.square(step[moved]))) if moved.any() else 0.0
        end[moved] += (size * chance.standard_normal(int(moved.sum()))).astype(np.float32)
        return jax.device_put(end, after.sharding)

    return await between(node, last.before, lambda: {n: one(last.before[n], last.after[n]) for n in last.before})


def drain() -> Role:
    """Trains in every second window; in the others it sends what the error feedback still holds."""

    async def train(node: Node, window: int, slot: int, seed: bytes) -> Trained:
        return await (untrained if window % 2 == 0 else honest.train)(node, window, slot, seed)

    return Role(craft=Craft(train=train))


async def best_of_last_window(node: Node, last: Applied) -> Contribution:
    """The contribution of another peer that, by itself, improves theta_w most on held-out sequences."""
    me = (await node.world.chain.metagraph()).by_hotkey(node.world.hotkey)
    others = {uid: one for uid, one in last.contributions.items() if me is None or uid != me.uid}
    found = await gains(node, others or last.contributions, None)
    return last.contributions[max(found, key=lambda uid: (found[uid], -uid))]


async def on_other_pages(node: Node, window: int, slot: int, pages: list[int], seed: bytes) -> Trained:
    """An honest miner's steps on `pages`, and one forward pass on the assigned batch."""
    params, first, loader = honest.begin(node, window, pages, seed)
    trained = await honest.take_steps(node, window, params, loader, first, node.run.inner.steps)
    await forward_pass(node, window, slot, seed)
    return trained


async def elsewhere(node: Node, window: int, slot: int, seed: bytes) -> Trained:
    """As much work as an honest one's, on pages of its own choice: the same slot under another seed."""
    run = node.run
    other = hashlib.sha256(b"another" + seed).digest()
    pages = assigned(other, slot, run.pages_per_window, node.pages.manifest.n_pages)
    return await on_other_pages(node, window, slot, pages, seed)


async def where_evaluation_draws(node: Node, window: int, slot: int, seed: bytes) -> Trained:
    """On pages behind the last slot: which of them will be drawn cannot be known, that they are the pool can."""
    run, n_pages = node.run, node.pages.manifest.n_pages
    slots = len((await node.world.chain.metagraph(node.timetable(window).seed_block)).neurons)
    there = n_pages - slots * run.pages_per_window
    pages = unassigned(seed, slots, run.pages_per_window, n_pages, min(there, run.pages_per_window))
    pages += honest.own_pages(node, slot, seed)[len(pages) :]
    return await on_other_pages(node, window, slot, pages, seed)


ROWS = {
    "stale-replay": Adversary("a", "seals its first window's contribution again and again", alone(stale_replay)),
    "last-aggregate": Adversary(
        "a", "trains nothing, sends the last outer step re-encoded", alone(lambda: from_past(last_step, Past()))
    ),
    "last-aggregate-noise": Adversary(
        "a", "the same with as much noise added", alone(lambda: from_past(last_step_and_noise, Past()))
    ),
    "feedback-drain": Adversary("a", "trains every second window, drains its error feedback between", alone(drain)),
    "copier-after-keys": Adversary(
        "a",
        "sends the best contribution of another peer's last window",
        alone(lambda: from_past(best_of_last_window, Past())),
    ),
    "other-data": Adversary(
        "a", "trains as much as an honest one, on pages of its own choice", alone(lambda: Role(craft=Craft(elsewhere)))
    ),
    "eval-peeker": Adversary(
        "a",
        "trains on pages of the pool that evaluation draws from",
        alone(lambda: Role(craft=Craft(where_evaluation_draws))),
    ),
}
