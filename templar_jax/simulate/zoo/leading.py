"""Class (c), leaders: what a validator can do to a window whose manifest is its to commit."""

import asyncio
import dataclasses
from collections.abc import Callable
from typing import Any

from templar_jax.chain.messages import EvidenceMessage, ManifestMessage, encode_commitment
from templar_jax.node.world import World
from templar_jax.simulate.role import Role
from templar_jax.simulate.zoo.entry import Adversary, alone
from templar_jax.simulate.zoo.ports import Port, committing
from templar_jax.store import contribution
from templar_jax.store.manifest import Manifest, decode_manifest, encode_manifest, manifest_hash, sign_manifest

READ_SECONDS = 10.0  # of the own bucket


def silent(windows: set[int] | None = None) -> Role:
    """Commits no manifest of these windows (None: of any)."""

    async def change(world: World, locator: str, message: Any) -> Any:
        hushed = isinstance(message, ManifestMessage) and (windows is None or message.window in windows)
        return None if hushed else encode_commitment(locator, message)

    return committing(change)


def mute() -> Role:
    """Commits no manifest and no evidence, and sets no weights: it only holds stake."""

    async def change(world: World, locator: str, message: Any) -> Any:
        mine = isinstance(message, ManifestMessage | EvidenceMessage)
        return None if mine else encode_commitment(locator, message)

    def alter(world: World) -> World:
        async def set_weights(key: Any, weights: Any) -> None:
            """Nobody hears of them."""

        world = committing(change).alter(world)
        return dataclasses.replace(world, chain=Port(world.chain, set_weights=set_weights))

    return Role(alter=alter)


def forging(forge: Callable[[Manifest], Manifest]) -> Role:
    """Commits to (and serves) a forged manifest, properly signed."""
    return committing(lambda world, locator, message: _forged(world, locator, message, forge))


async def _forged(world: World, locator: str, message: Any, forge: Callable[[Manifest], Manifest]) -> Any:
    if not isinstance(message, ManifestMessage):
        return encode_commitment(locator, message)
    key = contribution.manifest_key(message.window, message.manifest_sha256)
    honest = decode_manifest(await world.bucket.get(key, 1 << 20, READ_SECONDS))
    forged = sign_manifest(dataclasses.replace(forge(honest), signatures=()), world.key)
    digest = manifest_hash(forged)
    await world.bucket.put(contribution.manifest_key(message.window, digest), encode_manifest(forged))
    return encode_commitment(locator, dataclasses.replace(message, manifest_sha256=digest))


def without_last(manifest: Manifest) -> Manifest:
    """One good contribution is not mentioned."""
    return dataclasses.replace(manifest, accepted=manifest.accepted[:-1])


def refusing_last(reason: str) -> Callable[[Manifest], Manifest]:
    """One good contribution is refused under a pretext."""

    def forge(manifest: Manifest) -> Manifest:
        if not manifest.accepted:
            return manifest
        left_out = (manifest.accepted[-1].uid, reason)
        return dataclasses.replace(without_last(manifest), refused=tuple(sorted((*manifest.refused, left_out))))

    return forge


def entry(**changes: Any) -> Callable[[Manifest], Manifest]:
    """The first contribution's entry is changed."""

    def forge(manifest: Manifest) -> Manifest:
        if not manifest.accepted:
            return manifest
        first = dataclasses.replace(manifest.accepted[0], **changes)
        return dataclasses.replace(manifest, accepted=(first, *manifest.accepted[1:]))

    return forge


def wrong_root(manifest: Manifest) -> Manifest:
    return dataclasses.replace(manifest, root=bytes(32))


def empty(manifest: Manifest) -> Manifest:
    return dataclasses.replace(manifest, accepted=(), refused=())


async def equivocate(world: World, locator: str, message: Any) -> Any:
    """Two manifests in one slot: the honest one first, then one that leaves everybody out."""
    if isinstance(message, ManifestMessage):
        other = await _forged(world, locator, message, empty)
        asyncio.ensure_future(world.chain.commit(world.key, encode_commitment(locator, message)))
        await asyncio.sleep(0)
        return other
    return encode_commitment(locator, message)


async def withhold(world: World, locator: str, message: Any) -> Any:
    """A manifest that does not exist."""
    if isinstance(message, ManifestMessage):
        message = dataclasses.replace(message, manifest_sha256=b"\7" * 32)
    return encode_commitment(locator, message)


def _leader(does: str, make: Callable[[], Role]) -> Adversary:
    return Adversary("c", does, alone(make), "validator")


ROWS = {
    "silent-leader": _leader("validates and never commits a manifest", silent),
    "silent-validator": _leader("holds stake and neither leads nor sets weights", mute),
    "withholding-leader": _leader("commits to manifests that it serves to nobody", lambda: committing(withhold)),
    "omitting-leader": _leader("does not mention one good contribution", lambda: forging(without_last)),
    "refusing-leader": _leader('refuses a good contribution as "fetch"', lambda: forging(refusing_last("fetch"))),
    "slandering-leader": _leader('refuses a good contribution as "auth"', lambda: forging(refusing_last("auth"))),
    "late-leader": _leader(
        "lists an object that was not committed by the deadline", lambda: forging(entry(sealed_sha256=b"\1" * 32))
    ),
    "root-leader": _leader("lists the right contributions upon a wrong state root", lambda: forging(wrong_root)),
    "equivocating-leader": _leader("commits to two manifests of a window", lambda: committing(equivocate)),
}
