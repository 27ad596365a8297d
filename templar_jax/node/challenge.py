"""The state challenge: does a miner hold the parameters that its contribution starts from?

    salt   = sha256(domain | hash of block K(w)+F | the miner's hotkey)
    answer = root of theta_w under that salt, 32 bytes at w/WINDOW/root in its bucket, by block `answers_due`

theta_w has been fixed since window w-1, and nobody knows the salt before K(w)+F, so the answer takes a pass over the
parameters; another hotkey's answer is another number. A validator compares with its own theta_w. It is a sign of
health and changes no pay: who holds the parameters need not train them, and somebody else can compute the answer.
"""

import asyncio
import hashlib
from collections.abc import Iterable

from templar_jax.node.engine import Params
from templar_jax.node.forkchoice import Claim
from templar_jax.node.gather import one_peer, persist, reader_of
from templar_jax.node.patience import insist
from templar_jax.node.world import Node, World
from templar_jax.store.contribution import root_key

ANSWER_BYTES = 32
SAME, OTHER, ABSENT = "same", "other", "absent"
_DOMAIN = b"templar_jax/challenge/1"


def salt(block_hash: bytes, hotkey: str) -> int:
    """Of one miner in one window; block_hash: of block K(w)+F."""
    return int.from_bytes(hashlib.sha256(_DOMAIN + block_hash + hotkey.encode()).digest(), "little")


async def answer(node: Node, window: int, params: Params) -> None:
    """Publishes this node's answer; params: theta_w. Block K(w)+F is final. Raises Stopped."""
    world, timetable = node.world, node.timetable(window)
    value = await _answer_of(node, params, salt(await world.chain.block_hash(timetable.evaluation_block), world.hotkey))
    until = await world.chain.eta(timetable.answers_due)
    what = f"window {window}: answering the state challenge"
    await insist(world, lambda: world.bucket.put(root_key(window), value), until, what)


async def _answer_of(node: Node, params: Params, value: int) -> bytes:
    return await node.world.clock.spend("root", node.world.costs.root, lambda: node.engine.salted_root(params, value))


async def expect(node: Node, window: int, params: Params, claims: Iterable[Claim]) -> dict[int, bytes]:
    """By uid, the answer that a healthy node gives; params: theta_w."""
    block_hash = await node.world.chain.block_hash(node.timetable(window).evaluation_block)
    return {claim.uid: await _answer_of(node, params, salt(block_hash, claim.hotkey)) for claim in claims}


async def compare(node: Node, window: int, claims: Iterable[Claim], expected: dict[int, bytes]) -> dict[int, str]:
    """By uid: SAME, OTHER, or ABSENT where nothing was served by block `answers_due`."""
    until = await node.world.chain.eta(node.timetable(window).answers_due)

    async def one(claim: Claim) -> str:
        asking = persist(node.world, until, lambda seconds: fetch(node.world, claim, window, seconds))
        found = await one_peer(node.world, claim.uid, asking)
        if not isinstance(found, bytes):
            return ABSENT
        return SAME if found == expected[claim.uid] else OTHER

    asked = list(claims)
    return dict(zip((claim.uid for claim in asked), await asyncio.gather(*map(one, asked)), strict=True))


async def fetch(world: World, claim: Claim, window: int, seconds: float) -> bytes:
    """The answer that stands in its bucket. Raises RefusedError, StoreError."""
    limit = min(seconds, world.chain.block_seconds)
    return await reader_of(world, claim.locator).get(root_key(window), ANSWER_BYTES, limit)
