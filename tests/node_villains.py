"""Peers and leaders that break the rules, as roles of a simulated network: each alters one of its own ports."""

import asyncio
import dataclasses
from collections.abc import Callable
from typing import Any

from templar_jax.chain.messages import (
    ManifestMessage,
    SealMessage,
    encode_commitment,
    parse_commitment,
)
from templar_jax.node.seals import SavedSeal
from templar_jax.node.world import World
from templar_jax.simulate.role import Role
from templar_jax.store import contribution, seal
from templar_jax.store.manifest import Manifest, decode_manifest, encode_manifest, manifest_hash, sign_manifest


class Port:
    """A port with some methods replaced."""

    def __init__(self, inner: Any, **methods: Any) -> None:
        self._inner = inner
        self.__dict__.update(methods)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


def putting(change: Callable[[str, bytes], bytes | None]) -> Role:
    """Its bucket gets `change(key, data)` instead of the data; nothing where that is None."""

    def alter(world: World) -> World:
        async def put(key: str, data: bytes) -> None:
            changed = change(key, data)
            if changed is not None:
                await world.bucket.put(key, changed)

        return dataclasses.replace(world, bucket=Port(world.bucket, put=put))

    return Role(alter=alter)


def committing(change: Callable[[World, str, Any], Any]) -> Role:
    """Commits the fields that `await change(world, locator, message)` returns; nothing where that is None."""

    def alter(world: World) -> World:
        async def commit(key: Any, fields: tuple[bytes, ...]) -> None:
            parsed = parse_commitment(fields)
            assert parsed is not None
            changed = await change(world, parsed.locator, parsed.message)
            if changed is not None:
                await world.chain.commit(key, changed)

        return dataclasses.replace(world, chain=Port(world.chain, commit=commit))

    return Role(alter=alter)


def sealing(change: Callable[[seal.Claim, bytes], tuple[seal.Claim, bytes]]) -> Role:
    """Seals another claim or plaintext, properly signed."""

    def alter(world: World) -> World:
        def save(window: int, saved: SavedSeal) -> SavedSeal:
            header = seal.read_header(saved.sealed)
            claim, plaintext = change(header.claim, seal.open_sealed(saved.sealed, saved.key, header))
            forged = SavedSeal(saved.key, seal.seal(claim, plaintext, world.key, saved.key))
            return world.seals.save(window, forged)

        return dataclasses.replace(world, seals=Port(world.seals, save=save))

    return Role(alter=alter)


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


async def garbage(world: World, locator: str, message: Any) -> Any:
    return (b"no bucket", b"garbage") if isinstance(message, SealMessage) else encode_commitment(locator, message)


async def elsewhere(world: World, locator: str, message: Any) -> Any:
    return encode_commitment("s3:nowhere" if isinstance(message, SealMessage) else locator, message)


def copying(victim: str) -> Role:
    """Commits to the victim's object, one block later, and points at the victim's bucket."""

    async def change(world: World, locator: str, message: Any) -> Any:
        if not isinstance(message, SealMessage):
            return encode_commitment(locator, message)
        await world.clock.sleep(world.chain.block_seconds)
        head = await world.chain.head()
        for row in await world.chain.commitments(head - 4, head):
            parsed = parse_commitment(row.fields)
            if row.hotkey == victim and parsed is not None and isinstance(parsed.message, SealMessage):
                return encode_commitment(parsed.locator, parsed.message)
        return None

    return committing(change)


def keyless(key: str, data: bytes) -> bytes | None:
    return None if key.endswith("/key") else data


def wrong_key(key: str, data: bytes) -> bytes | None:
    return bytes(32) if key.endswith("/key") else data


def wrong_parts(key: str, data: bytes) -> bytes | None:
    return data[::-1] if "/sealed.parts/" in key else data


def not_an_index(key: str, data: bytes) -> bytes | None:
    return b"garbage" if key.endswith("/sealed") else data


PEERS: dict[str, tuple[Role, tuple[str, ...]]] = {  # role, reasons that a leader may give
    "never publishes its key": (putting(keyless), ("no-key",)),
    "publishes a wrong key": (putting(wrong_key), ("key",)),
    "serves a wrong ciphertext": (putting(wrong_parts), ("hash",)),
    "serves no index": (putting(not_an_index), ("index",)),
    "another window": (sealing(lambda c, p: (dataclasses.replace(c, window=c.window + 1), p)), ("window",)),
    "another uid": (sealing(lambda c, p: (dataclasses.replace(c, uid=c.uid + 1), p)), ("uid",)),
    "another run": (sealing(lambda c, p: (dataclasses.replace(c, run_id="ab" * 16), p)), ("run",)),
    "no steps": (sealing(lambda c, p: (dataclasses.replace(c, inner_steps=0), p)), ("steps",)),
    "oversize": (sealing(lambda c, p: (c, p + bytes(100_000))), ("size",)),
    "garbage inside": (sealing(lambda c, p: (c, p[:40] + b"\xff" * (len(p) - 40))), ("indices", "padding", "size")),
    "points elsewhere": (committing(elsewhere), ("fetch",)),
}
