"""Leader duty: list exactly what makes the outer step of a window, mirror it, commit to it on the chain.

It never waits for scoring, never for a single peer beyond half of the first leader's slot, and never beyond the
leader's own slot. A leader commits to one manifest of a window, whatever happens to its process.
"""

import asyncio
from collections.abc import Iterable

from templar_jax.chain.messages import ManifestMessage, encode_commitment
from templar_jax.chain.wait import until_block
from templar_jax.errors import ChainError, NotFound, RefusedError, StoreError
from templar_jax.node.forkchoice import Claim
from templar_jax.node.gather import fetch_key, fetch_sealed, one_peer, open_contribution, persist
from templar_jax.node.history import ranked_leaders, window_candidates
from templar_jax.node.judge import judge
from templar_jax.node.patience import Stopped, bounded, insist
from templar_jax.node.world import Node, Opened
from templar_jax.store import contribution, parts, seal
from templar_jax.store.manifest import (
    Accepted,
    Manifest,
    decode_manifest,
    encode_manifest,
    manifest_hash,
    max_manifest_bytes,
    sign_manifest,
)
from templar_jax.telemetry.events import Warned


async def my_rank(node: Node, window: int, claims: tuple[Claim, ...]) -> int | None:
    """This node's rank among the leaders of `window`, or None."""
    ranked = await ranked_leaders(node.world, node.run, window, claims)
    return next((rank for rank, neuron in enumerate(ranked) if neuron.hotkey == node.world.hotkey), None)


async def lead(node: Node, window: int, claims: tuple[Claim, ...], rank: int) -> None:
    """Closes `window` unless a leader of a lower rank did so with a valid manifest. What fails is said, not raised.

    Raises:
      Stopped: the node was asked to stop.
    """
    world = node.world
    _, end = node.timetable(window).leader_slot(rank)
    left = await world.chain.eta(end) - world.clock.time()
    if left <= 0:
        return  # a node that comes back late
    try:
        await bounded(world, _lead(node, window, claims, rank), left, "leading")
    except (ChainError, RefusedError, StoreError) as error:
        world.emit(Warned(f"window {window}: not led by this node: {error}"))


async def _lead(node: Node, window: int, claims: tuple[Claim, ...], rank: int) -> None:
    world, timetable = node.world, node.timetable(window)
    first, end = timetable.leader_slot(rank)
    half_slot = node.run.window.leader_slot * world.chain.block_seconds / 2
    manifest = await _earlier(node, window, await world.chain.eta(end - 1))
    outcomes: dict[int, Opened | RefusedError] = {}
    if manifest is None:
        due = await world.chain.eta(timetable.manifest - 1)
        outcomes = await collect(node, window, claims, max(due, world.clock.time()) + half_slot)
    for block in [*range(timetable.manifest, first - 1), first - 1]:
        if not await until_block(world.chain, world.clock, block, world.stop):
            raise Stopped
        if await _closed(node, window, claims, half_slot):
            return
    if manifest is None:
        manifest = build(node, window, claims, outcomes)
        if claims and not manifest.accepted and await _others_follow(node, window, claims, rank):
            world.emit(Warned(f"window {window}: nothing could be opened here: left to the next leader"))
            return
    elif (manifest.predecessor, manifest.root) != (node.state.predecessor, node.state.root):
        raise RefusedError("history", "before a restart it prepared a manifest that follows another state")
    await _publish(node, manifest, end)  # committed now, it stands in `first` or later


async def _others_follow(node: Node, window: int, claims: tuple[Claim, ...], rank: int) -> bool:
    return rank + 1 < len(await ranked_leaders(node.world, node.run, window, claims))


async def collect(node: Node, window: int, claims: Iterable[Claim], cutoff: float) -> dict[int, Opened | RefusedError]:
    """By uid: every claimed contribution, fetched, mirrored and opened until clock time `cutoff`, or what was amiss.

    All peers side by side, each for itself: one that stalls delays no other, and the cutoff ends it.
    """

    async def one(claim: Claim) -> Opened | RefusedError:
        outcome = await one_peer(node.world, claim.uid, _collect_one(node, window, claim, cutoff))
        node.outcomes[claim.uid] = outcome
        return outcome

    chosen = list(claims)
    results = await asyncio.gather(*(one(claim) for claim in chosen))
    return {claim.uid: result for claim, result in zip(chosen, results, strict=True)}


async def _collect_one(node: Node, window: int, claim: Claim, cutoff: float) -> Opened:
    """Raises RefusedError, StoreError, or whatever the peer's bytes set off."""
    world = node.world
    missing = "fetch"  # what the peer is refused for when the time is over
    try:
        async with asyncio.timeout(max(0.0, cutoff - world.clock.time())):
            sealed = await persist(world, cutoff, lambda seconds: fetch_sealed(node, claim, (), window, seconds))
            header = seal.read_header(sealed)
            if claim.hotkey != world.hotkey:
                missing = "mirror"
                await _mirror(node, window, claim, sealed, cutoff)
            missing = "no-key"
            key = await fetch_key(node, claim, window, header, cutoff)
            return await open_contribution(node, claim, window, sealed, key)
    except TimeoutError as error:
        raise RefusedError(missing, "not there when the window had to be closed") from error


async def _mirror(node: Node, window: int, claim: Claim, sealed: bytes, cutoff: float) -> None:
    """Copies a foreign ciphertext to the own bucket, for readers whom the owner does not serve."""
    bucket, key = node.world.bucket, contribution.mirror_key(window, claim.uid)
    what = f"window {window}: mirroring uid {claim.uid}"
    if not await insist(node.world, lambda: parts.upload(bucket, key, sealed), cutoff, what, small=False):
        raise RefusedError("mirror", "the own bucket did not take the copy")


async def _closed(node: Node, window: int, claims: tuple[Claim, ...], seconds: float) -> bool:
    """True if a valid manifest stands in an earlier slot (final or not), or this node has committed to one already."""
    world = node.world
    for candidate in await window_candidates(world, node.run, window, await world.chain.head(), claims):
        if candidate.hotkey == world.hotkey:
            return True
        try:
            await judge(node, candidate, claims, seconds)
            return True
        except (RefusedError, StoreError):
            continue  # invalid, or not to be had: others cannot apply it either
    return False


async def _earlier(node: Node, window: int, until: float) -> Manifest | None:
    """The manifest that this node was about to commit before it was restarted. RefusedError if that stays unknown."""
    limit = max_manifest_bytes(node.run.max_contributors)

    async def ask(seconds: float) -> Manifest | None:
        try:
            return decode_manifest(await node.world.bucket.get(contribution.led_key(window), limit, seconds))
        except NotFound:
            return None

    return await persist(node.world, until, ask)


def build(node: Node, window: int, claims: Iterable[Claim], outcomes: dict[int, Opened | RefusedError]) -> Manifest:
    """The signed manifest: the earliest good contributions, up to R, and the reason for each that is not in it.

    Whose commitment is first, and who has standing, is on the chain, so that every leader would choose the same.
    """
    state, accepted, refused = node.state, [], []
    for claim in sorted(claims, key=lambda claim: (claim.block, claim.uid)):
        outcome = outcomes[claim.uid]
        if isinstance(outcome, RefusedError):
            refused.append((claim.uid, outcome.reason))
        elif not claim.stands:
            refused.append((claim.uid, "standing"))
        elif len(accepted) == node.run.max_contributors:
            refused.append((claim.uid, "full"))
        else:
            header = outcome.header
            entry = Accepted(
                uid=claim.uid,
                hotkey=claim.hotkey,
                sealed_sha256=claim.sealed_sha256,
                key=outcome.key,
                plaintext_sha256=header.plaintext_sha256,
                inner_steps=header.claim.inner_steps,
            )
            accepted.append(entry)
    manifest = Manifest(
        run_id=bytes.fromhex(node.run.run_id),
        window=window,
        outer_step=state.outer_step,
        predecessor=state.predecessor,
        root=state.root,
        accepted=tuple(sorted(accepted, key=lambda entry: entry.uid)),
        refused=tuple(sorted(refused)),
    )
    return sign_manifest(manifest, node.world.key)


async def _publish(node: Node, manifest: Manifest, end: int) -> None:
    """Uploads the manifest, then commits to its hash if the slot still is the leader's."""
    world, window = node.world, manifest.window
    digest, data = manifest_hash(manifest), encode_manifest(manifest)
    until = await world.chain.eta(end - 1)
    for key in (contribution.led_key(window), contribution.manifest_key(window, digest)):
        if not await insist(
            world, lambda key=key: world.bucket.put(key, data), until, f"window {window}: its manifest"
        ):
            return
    checkpoint_window, checkpoint = node.published or (None, None)
    message = ManifestMessage(window, digest, checkpoint_window, checkpoint)
    if await world.chain.head() + 1 >= end:
        world.emit(Warned(f"window {window}: too slow to lead, the slot ended at block {end}"))
        return
    await world.chain.commit(world.key, encode_commitment(world.bucket.locator, message))
    node.led = True
