"""Fetching what peers uploaded. Each peer is handled in its own boundary: a bad one costs itself only.

Ciphertexts are fetched between D(w) and K(w), from the owner's bucket first, then from mirrors; the chain's hash
decides whether the bytes are the right ones. Nothing here touches a device.
"""

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import TypeVar

from templar_jax.compress.codec import decode, plaintext_bounds
from templar_jax.config import RunConfig
from templar_jax.errors import RefusedError, StoreError
from templar_jax.node.forkchoice import Claim
from templar_jax.node.patience import first_of
from templar_jax.node.world import Node, Opened, World
from templar_jax.store import contribution, parts, seal
from templar_jax.store.bucket import Reader
from templar_jax.telemetry.events import Warned

T = TypeVar("T")

WRONG = 2  # times that a source may serve wrong bytes (a torn answer) before its peer is given up
MIN_TRY = 1.0  # seconds
TRY = 0.6  # of the time that is left: for one try, so that one that hangs is not the last
SOURCES = 6  # that a time limit suffices for, should each but the last be silent
AGAIN = 1 / 8  # of the time that is left: between two tries, and at least 1 / 16 and at most 1 / 2 of a block


def cache_key(claim: Claim, window: int) -> tuple[int, int, bytes]:
    """Names a claimed object in a node's caches. The uid is part of it: a hash that two uids commit to is one's own
    object and the other's theft, and only the header tells whose."""
    return window, claim.uid, claim.sealed_sha256


def reader_of(world: World, locator: str) -> Reader:
    """The bucket at `locator`; the node's own where it is that. StoreError where it is unusable."""
    return world.bucket if locator == world.bucket.locator else world.open_reader(locator)


def check(run: RunConfig, claim: Claim, window: int, sealed: bytes) -> seal.Header:
    """The signed header of a sealed object, if the object is what the claim says. RefusedError otherwise."""
    if seal.sealed_hash(sealed) != claim.sealed_sha256:
        raise RefusedError("hash", "not the object whose hash stands on the chain")
    header = seal.read_header(sealed, *plaintext_bounds(run))
    seal.check_header(header, run.run_id, window, claim.uid, claim.hotkey)
    if not 0 < header.claim.inner_steps <= run.inner.steps:
        raise RefusedError("steps", f"{header.claim.inner_steps} inner steps, allowed are 1 to {run.inner.steps}")
    return header


async def one_peer(world: World, uid: int, work: Awaitable[T]) -> T | RefusedError:
    """The result of `work` on one peer's bytes, or why there is none. An error of ours in it costs that peer only."""
    try:
        return await work
    except RefusedError as error:
        return error
    except StoreError as error:
        return RefusedError("fetch", str(error))
    except Exception as error:  # the boundary of one peer: whatever its bytes set off ends here
        world.emit(Warned(f"uid {uid}: its bytes set off {type(error).__name__}: {error}: report this"))
        return RefusedError("error", f"{type(error).__name__}: {error}")


async def fetch_sealed(node: Node, claim: Claim, mirrors: Iterable[str], window: int, seconds: float) -> bytes:
    """The sealed object whose sha256 the chain holds.

    The owner's bucket is asked first, then the mirrors beside it, one after the other (see `stagger`).

    Args:
      mirrors: locators.
      seconds: time limit of each source.

    Raises:
      RefusedError: no source served the right bytes in time; `reason` is the first failure's.
    """
    known = node.sealed.get(cache_key(claim, window))
    if known is not None:
        return known
    mirror = contribution.mirror_key(window, claim.uid)
    places = [(claim.locator, contribution.sealed_key(window)), *((m, mirror) for m in mirrors if m != claim.locator)]

    async def download(locator: str, key: str) -> bytes:
        low, high = (seal.sealed_bytes(size) for size in plaintext_bounds(node.run))
        sealed = await parts.download(reader_of(node.world, locator), key, low, high, timeout=seconds)
        check(node.run, claim, window, sealed)
        return sealed

    async def attempt(locator: str, key: str) -> bytes:
        found = await one_peer(node.world, claim.uid, download(locator, key))
        if isinstance(found, RefusedError):
            raise found
        return found

    attempts = [partial(attempt, locator, key) for locator, key in places]
    sealed = await first_of(attempts, stagger(node.world, seconds))
    node.sealed[cache_key(claim, window)] = sealed
    return sealed


def stagger(world: World, seconds: float) -> float:
    """After how many seconds without an answer the next source is asked, of `seconds` in which one must be found.

    A source that never answers must not use up the time in which the others would.
    """
    return min(world.chain.block_seconds, seconds / SOURCES)


async def persist(world: World, until: float, ask: Callable[[float], Awaitable[T]]) -> T:
    """Asks again and again until clock time `until`; `ask` takes its own time limit in seconds.

    Each try has the part TRY of the time that is left, and the next one comes sooner the less there is: a key that is
    published just after it was asked for is found in time. Wrong bytes end it sooner.

    Raises: the last RefusedError (reason "fetch" where nobody answered).
    """
    wrong = 0
    while True:
        seconds = max(MIN_TRY, (until - world.clock.time()) * TRY)
        try:
            return await ask(seconds)
        except (RefusedError, StoreError) as error:
            refused = error if isinstance(error, RefusedError) else RefusedError("fetch", str(error))
            wrong += refused.reason != "fetch"
        block, left = world.chain.block_seconds, until - world.clock.time()
        pause = max(block / 16, min(block / 2, left * AGAIN))
        if wrong > WRONG or world.clock.time() + pause >= until:
            raise refused
        await world.clock.sleep(pause)


async def fetch_ciphertexts(node: Node, claims: Iterable[Claim], window: int, until: float) -> None:
    """Brings the claimed ciphertexts into `node.sealed`, side by side, as far as their owners serve them in time."""

    async def one(claim: Claim) -> None:
        asked = persist(node.world, until, lambda seconds: fetch_sealed(node, claim, (), window, seconds))
        await one_peer(node.world, claim.uid, asked)

    await asyncio.gather(*(one(claim) for claim in claims))


async def fetch_key(node: Node, claim: Claim, window: int, header: seal.Header, until: float) -> bytes:
    """The key that opens the object, as soon as its owner publishes it. RefusedError ("no-key" or "key") if never."""

    async def ask(seconds: float) -> bytes:
        reader = reader_of(node.world, claim.locator)
        key = await contribution.fetch_key(reader, window, min(seconds, node.world.chain.block_seconds))
        if hashlib.sha256(key).digest() != header.key_sha256:
            raise RefusedError("key", "its hash is not the one in the header")
        return key

    try:
        return await persist(node.world, until, ask)
    except RefusedError as error:
        if error.reason == "fetch":
            raise RefusedError("no-key", str(error)) from error
        raise


async def open_contribution(node: Node, claim: Claim, window: int, sealed: bytes, key: bytes) -> Opened:
    """Decrypts, checks and decodes one sealed object. RefusedError on anything that is off."""
    known = node.opened.get(cache_key(claim, window))
    if known is not None and known.key == key:
        return known

    def work() -> Opened:
        header = check(node.run, claim, window, sealed)
        return Opened(key, header, decode(node.run, seal.open_sealed(sealed, key, header)))

    opened = await node.world.clock.spend("open", node.world.costs.open, work)
    node.opened[cache_key(claim, window)] = opened
    return opened
