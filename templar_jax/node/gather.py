"""Fetching what peers uploaded. Each peer is handled in its own boundary: a bad one costs itself only.

Ciphertexts are fetched between D(w) and K(w), from the owner's bucket first, then from a mirror; the chain's
hash decides whether the bytes are the right ones. Nothing here touches a device.
"""

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from templar_jax.compress.codec import decode, plaintext_bounds
from templar_jax.config import RunConfig
from templar_jax.errors import RefusedError, StoreError
from templar_jax.node.forkchoice import Claim
from templar_jax.node.world import Node, Opened, World
from templar_jax.store import contribution, parts, seal
from templar_jax.store.bucket import Reader


@dataclass(frozen=True)
class Source:
    """One place where a sealed object may lie."""

    locator: str
    key: str  # of the object in that bucket


def sources(claim: Claim, mirrors: Iterable[str], window: int) -> list[Source]:
    """The owner's bucket first, then every mirror."""
    own = Source(claim.locator, contribution.sealed_key(window))
    return [own, *(Source(m, contribution.mirror_key(window, claim.uid)) for m in mirrors if m != claim.locator)]


async def fetch_sealed(node: Node, claim: Claim, mirrors: Iterable[str], window: int, seconds: float) -> bytes:
    """The sealed object whose sha256 the chain holds, from the first source that has it.

    Args:
      seconds: time limit of each source.

    Raises:
      RefusedError: no source served the right bytes in time; `reason` is the first source's.
    """
    if claim.sealed_sha256 in node.sealed:
        return node.sealed[claim.sealed_sha256]
    low, high = (seal.sealed_bytes(size) for size in plaintext_bounds(node.run))
    first: RefusedError | None = None
    for source in sources(claim, mirrors, window):
        try:
            reader = _reader(node.world, source.locator)
            sealed = await parts.download(reader, source.key, low, high, timeout=seconds)
            check(node.run, claim, window, sealed)
        except RefusedError as error:
            first = first or error
        except StoreError as error:
            first = first or RefusedError("fetch", str(error))
        else:
            node.sealed[claim.sealed_sha256] = sealed
            return sealed
    assert first is not None  # there is always the owner's bucket
    raise first


def _reader(world: World, locator: str) -> Reader:
    return world.bucket if locator == world.bucket.locator else world.open_reader(locator)


async def fetch_all(
    node: Node, claims: Iterable[Claim], window: int, seconds: float
) -> dict[int, bytes | RefusedError]:
    """Every claimed ciphertext, or why there is none, by uid. Downloads run side by side."""

    async def one(claim: Claim) -> bytes | RefusedError:
        try:
            return await fetch_sealed(node, claim, (), window, seconds)
        except RefusedError as error:
            return error

    chosen = list(claims)
    results = await asyncio.gather(*(one(claim) for claim in chosen))
    return {claim.uid: result for claim, result in zip(chosen, results, strict=True)}


def check(run: RunConfig, claim: Claim, window: int, sealed: bytes) -> seal.Header:
    """The signed header of a sealed object, if the object is what the claim says. RefusedError otherwise."""
    if seal.sealed_hash(sealed) != claim.sealed_sha256:
        raise RefusedError("hash", "not the object whose hash stands on the chain")
    header = seal.read_header(sealed, *plaintext_bounds(run))
    seal.check_header(header, run.run_id, window, claim.uid, claim.hotkey)
    if not 0 < header.claim.inner_steps <= run.inner.steps:
        raise RefusedError("steps", f"{header.claim.inner_steps} inner steps, allowed are 1 to {run.inner.steps}")
    return header


async def open_contribution(node: Node, claim: Claim, window: int, sealed: bytes, key: bytes) -> Opened:
    """Decrypts, checks and decodes one sealed object. RefusedError on anything that is off."""
    known = node.opened.get(claim.sealed_sha256)
    if known is not None and known.key == key:
        return known

    def work() -> Opened:
        header = check(node.run, claim, window, sealed)
        return Opened(key, header, decode(node.run, seal.open_sealed(sealed, key, header)))

    opened = await node.world.clock.spend("open", node.world.costs.open, work)
    node.opened[claim.sealed_sha256] = opened
    return opened


async def fetch_keys(node: Node, claims: Mapping[int, Claim], window: int, until: int) -> dict[int, bytes]:
    """Published keys by uid: asks again every block for those still missing, up to block `until`."""
    world = node.world
    found: dict[int, bytes] = {}

    async def one(claim: Claim) -> None:
        try:
            reader = _reader(world, claim.locator)
            found[claim.uid] = await contribution.fetch_key(reader, window, timeout=world.chain.block_seconds * 2)
        except (StoreError, RefusedError):
            return  # not there yet, or never

    while True:
        await asyncio.gather(*(one(claim) for uid, claim in claims.items() if uid not in found))
        if len(found) == len(claims) or world.stop.is_set() or await world.chain.head() >= until:
            return found
        await world.clock.sleep(world.chain.block_seconds / 2)
