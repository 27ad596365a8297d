"""Whose history do the others continue? Asked about a window only where its leaders committed to several manifests.

A node keeps a copy of the manifest that it applied in its own bucket (history.canonical), so a copy is a vote: a node
that stands alone, because it was served something else than the rest or because its memory failed, sees that the
others hold another manifest than it does, and no single leader can pretend that. Votes count heads of those who sealed
something for the window, not stake: until manifests carry signatures of validators, this is what can be had.
"""

import asyncio

from templar_jax.errors import RefusedError, StoreError
from templar_jax.node.forkchoice import Candidate, Claim
from templar_jax.node.gather import reader_of
from templar_jax.node.world import Node
from templar_jax.store import contribution
from templar_jax.store.manifest import decode_manifest, manifest_hash, max_manifest_bytes


async def outvoted(node: Node, found: tuple[Candidate, ...], claims: tuple[Claim, ...]) -> bool:
    """True if more nodes hold another manifest of the window that was applied last than the one applied here.

    Args:
      found: every candidate of that window, in chain order. Those that are provably invalid have no votes.

    A tie goes to the candidate that came first. An empty window comes last and has the vote of this node only.
    """
    mine = node.state.predecessor
    others = [c for c in found if c.message.manifest_sha256 not in node.invalid | {mine}]
    if not others:
        return False
    order = [c.message.manifest_sha256 for c in found]
    place = order.index(mine) if mine in order else len(order)
    own = 1 + (await votes(node, found[place], claims) if place < len(order) else 0)
    for candidate in others:
        against = await votes(node, candidate, claims)
        if against > own or (against == own and order.index(candidate.message.manifest_sha256) < place):
            return True
    return False


async def votes(node: Node, candidate: Candidate, claims: tuple[Claim, ...]) -> int:
    """How many other nodes stand behind a manifest: its leader, and who sealed something and holds a copy of it."""
    world, digest = node.world, candidate.message.manifest_sha256
    key = contribution.manifest_key(candidate.message.window, digest)
    limit = max_manifest_bytes(node.run.max_contributors)

    async def holds(locator: str) -> bool:
        try:
            data = await reader_of(world, locator).get(key, limit, world.chain.block_seconds)
            return manifest_hash(decode_manifest(data)) == digest
        except (RefusedError, StoreError, ValueError):
            return False

    asked = [c.locator for c in claims if c.hotkey not in (world.hotkey, candidate.hotkey)]
    copies = await asyncio.gather(*(holds(locator) for locator in dict.fromkeys(asked)))
    return sum(copies) + (candidate.hotkey != world.hotkey)
