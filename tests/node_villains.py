"""Leaders that break the rules, as roles of a simulated network."""

import asyncio
import dataclasses
from collections.abc import Callable
from typing import Any

from templar_jax.chain.messages import (
    ManifestMessage,
    encode_commitment,
)
from templar_jax.node.world import World
from templar_jax.simulate.role import Role
from templar_jax.simulate.zoo.ports import committing
from templar_jax.store import contribution
from templar_jax.store.manifest import Manifest, decode_manifest, encode_manifest, manifest_hash, sign_manifest


def forging(forge: Callable[[Manifest], Manifest]) -> Role:
    """A leader that commits (and serves) a forged manifest, properly signed."""
    return committing(lambda world, locator, message: _forged(world, locator, message, forge))


async def _forged(world: World, locator: str, message: Any, forge: Callable[[Manifest], Manifest]) -> Any:
    if not isinstance(message, ManifestMessage):
        return encode_commitment(locator, message)
    key = contribution.manifest_key(message.window, message.manifest_sha256)
    honest = decode_manifest(await world.bucket.get(key, 1 << 20, 10.0))
    forged = sign_manifest(dataclasses.replace(forge(honest), signatures=()), world.key)
    digest = manifest_hash(forged)
    await world.bucket.put(contribution.manifest_key(message.window, digest), encode_manifest(forged))
    return encode_commitment(locator, dataclasses.replace(message, manifest_sha256=digest))


async def equivocate(world: World, locator: str, message: Any) -> Any:
    """Two manifests in one slot: the honest one first, then one that leaves everybody out."""
    if isinstance(message, ManifestMessage):
        other = await _forged(world, locator, message, lambda m: dataclasses.replace(m, accepted=(), refused=()))
        asyncio.ensure_future(world.chain.commit(world.key, encode_commitment(locator, message)))
        await asyncio.sleep(0)
        return other
    return encode_commitment(locator, message)


async def withhold(world: World, locator: str, message: Any) -> Any:
    """A manifest that does not exist."""
    if isinstance(message, ManifestMessage):
        message = dataclasses.replace(message, manifest_sha256=b"\7" * 32)
    return encode_commitment(locator, message)
