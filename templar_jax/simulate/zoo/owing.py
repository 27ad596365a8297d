"""Class (a): no answer, or another's, to what a miner owes once the keys are out."""

import contextlib

from templar_jax.errors import StoreError
from templar_jax.node import audit
from templar_jax.node.challenge import ANSWER_BYTES
from templar_jax.node.craft import Craft
from templar_jax.node.engine import Params
from templar_jax.node.gather import reader_of
from templar_jax.node.history import window_claims
from templar_jax.node.world import Node
from templar_jax.simulate.role import Role
from templar_jax.simulate.zoo.entry import Adversary, alone
from templar_jax.store.contribution import root_key


async def copied(node: Node, window: int, params: Params) -> None:
    """Answers the state challenge with a copy, and an audit honestly."""
    del params
    await _copy(node, window)
    await audit.answer(node, window)


async def _copy(node: Node, window: int) -> None:
    """Puts the first answer that it finds in another's bucket into its own."""
    world = node.world
    await world.clock.sleep(world.chain.block_seconds / 2)  # others need a moment
    for claim in await window_claims(world, node.run, window):
        if claim.hotkey != world.hotkey:
            with contextlib.suppress(StoreError):
                found = await reader_of(world, claim.locator).get(root_key(window), ANSWER_BYTES, 1.0)
                return await world.bucket.put(root_key(window), found)


async def silent(node: Node, window: int, params: Params) -> None:
    del node, window, params


ROWS = {
    "fake-challenge": Adversary(
        "a", "works, and answers the state challenge with a copy", alone(lambda: Role(craft=Craft(answer=copied)))
    ),
}
