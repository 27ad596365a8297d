"""Leader duty: list exactly what makes the outer step of a window, mirror it, commit to it on the chain.

It never waits for scoring, and never beyond the leader's own slot.
"""

from templar_jax.chain.messages import ManifestMessage, encode_commitment
from templar_jax.chain.wait import until_block
from templar_jax.errors import RefusedError
from templar_jax.node import forkchoice
from templar_jax.node.forkchoice import Claim
from templar_jax.node.gather import fetch_all, fetch_keys, open_contribution
from templar_jax.node.history import Stopped, ranked_leaders
from templar_jax.node.world import Node
from templar_jax.store import contribution, parts
from templar_jax.store.manifest import Accepted, Manifest, encode_manifest, manifest_hash, sign_manifest
from templar_jax.telemetry.events import Warned


async def my_rank(node: Node, window: int, claims: tuple[Claim, ...]) -> int | None:
    """This node's rank among the leaders of `window`, or None."""
    ranked = await ranked_leaders(node.world, node.run, window, claims)
    return next((rank for rank, neuron in enumerate(ranked) if neuron.hotkey == node.world.hotkey), None)


def choose(claims: tuple[Claim, ...], limit: int) -> tuple[Claim, ...]:
    """The claims that one outer step takes, when more than `limit` peers sealed something: the earliest.

    The order of commitment is on the chain, so that every leader would choose the same.
    """
    earliest = sorted(claims, key=lambda claim: (claim.block, claim.uid))[:limit]
    return tuple(sorted(earliest, key=lambda claim: claim.uid))


async def lead(node: Node, window: int, claims: tuple[Claim, ...], rank: int) -> None:
    """Closes `window` if no leader of a lower rank did. Returns after the commitment, or without one.

    Raises:
      Stopped: the node was asked to stop.
    """
    world, timetable = node.world, node.timetable(window)
    first, end = timetable.leader_slot(rank)
    chosen = choose(claims, node.run.max_contributors)
    ciphertexts = await fetch_all(
        node, chosen, window, (timetable.keys - timetable.deadline) * world.chain.block_seconds
    )
    readable = {claim.uid: claim for claim in chosen if isinstance(ciphertexts[claim.uid], bytes)}
    await _mirror(node, window, readable, ciphertexts)
    keys = await fetch_keys(node, readable, window, until=timetable.manifest - 1)
    if not await until_block(world.chain, world.clock, first - 1, world.stop):  # committed now, it stands in `first`
        raise Stopped
    if rank > 0 and await _led_already(node, window, claims):
        return
    manifest = await _build(node, window, chosen, ciphertexts, keys)
    await _publish(node, manifest, end)


async def _mirror(node: Node, window: int, readable: dict[int, Claim], ciphertexts: dict) -> None:
    """Copies foreign ciphertexts to the own bucket, for readers whom the owner does not serve."""
    world = node.world
    for uid, claim in readable.items():
        if claim.hotkey != world.hotkey:
            await parts.upload(world.bucket, contribution.mirror_key(window, uid), ciphertexts[uid])


async def _led_already(node: Node, window: int, claims: tuple[Claim, ...]) -> bool:
    """True if a leader of any rank has committed a manifest in its slot (final or not)."""
    chain, timetable = node.world.chain, node.timetable(window)
    commitments = await chain.commitments(timetable.manifest, await chain.head())
    ranked = await ranked_leaders(node.world, node.run, window, claims)
    return bool(forkchoice.candidates(commitments, ranked, timetable))


async def _build(
    node: Node,
    window: int,
    chosen: tuple[Claim, ...],
    ciphertexts: dict[int, bytes | RefusedError],
    keys: dict[int, bytes],
) -> Manifest:
    """Opens every contribution, lists those that are good and the reason for each that is not."""
    accepted, refused = [], []
    for claim in chosen:
        try:
            sealed = ciphertexts[claim.uid]
            if isinstance(sealed, RefusedError):
                raise sealed
            if claim.uid not in keys:
                raise RefusedError("no-key", "no key was published by K(w)")
            header = (await open_contribution(node, claim, window, sealed, keys[claim.uid])).header
            entry = Accepted(
                uid=claim.uid,
                hotkey=claim.hotkey,
                sealed_sha256=claim.sealed_sha256,
                key=keys[claim.uid],
                plaintext_sha256=header.plaintext_sha256,
                inner_steps=header.claim.inner_steps,
            )
            accepted.append(entry)
        except RefusedError as error:
            refused.append((claim.uid, error.reason))
    state = node.state
    manifest = Manifest(
        run_id=bytes.fromhex(node.run.run_id),
        window=window,
        outer_step=state.outer_step,
        predecessor=state.predecessor,
        root=state.root,
        accepted=tuple(accepted),
        refused=tuple(refused),
    )
    return sign_manifest(manifest, node.world.key)


async def _publish(node: Node, manifest: Manifest, end: int) -> None:
    """Uploads the manifest, then commits to its hash if the slot still is the leader's."""
    world = node.world
    digest = manifest_hash(manifest)
    await world.bucket.put(contribution.manifest_key(manifest.window, digest), encode_manifest(manifest))
    checkpoint_window, checkpoint = node.published or (None, None)
    message = ManifestMessage(manifest.window, digest, checkpoint_window, checkpoint)
    if await world.chain.head() + 1 >= end:
        world.emit(Warned(f"window {manifest.window}: too slow to lead, the slot ended at block {end}"))
        return
    await world.chain.commit(world.key, encode_commitment(world.bucket.locator, message))
    node.led = True
