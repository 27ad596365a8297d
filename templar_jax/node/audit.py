"""The full audit, as the audited miner sees it: one uid a window shows what its training began and ended with.

A miner's header carries two Merkle roots (store/merkle.py): of its private state (private.py) before the window's
training, and after its compression, which is what the next window begins with. The hash of block K(w)+F, which nobody
knows while there is still something to commit to, picks one of those who sealed something; that miner puts both states,
the first one first, at w/WINDOW/audit in its bucket by block `answers_due`. See audit_check.py for the other side.

Only where 2 * state_bytes(run) <= run.audit_bytes_max, and without compress.dct; else the roots are zeros and nobody
is picked.
"""

import hashlib
from collections.abc import Sequence
from functools import partial

from templar_jax.config import RunConfig
from templar_jax.node.forkchoice import Claim
from templar_jax.node.history import window_claims
from templar_jax.node.patience import insist
from templar_jax.node.private import from_bytes, state_bytes, to_bytes
from templar_jax.node.world import Node
from templar_jax.store import parts
from templar_jax.store.contribution import audit_key
from templar_jax.store.merkle import merkle_root

_DOMAIN = b"templar_jax/audit/1"


def allowed(run: RunConfig) -> bool:
    """Whether this run makes full audits."""
    return run.audit_bytes_max > 0 and not run.compress.dct and 2 * state_bytes(run) <= run.audit_bytes_max


def picked(claims: Sequence[Claim], block_hash: bytes) -> Claim | None:
    """Who is audited, for the whole network; block_hash: of block K(w)+F; claims: all of the window's on time."""
    if not claims:
        return None
    number = int.from_bytes(hashlib.sha256(_DOMAIN + block_hash).digest(), "little")
    return sorted(claims, key=lambda claim: claim.uid)[number % len(claims)]


async def enter(node: Node, window: int) -> None:
    """Pins the state that the window's training begins with. Before it. Raises StoreError.

    After a restart that is the state after the last window, from the disk, whatever the checkpoint holds: the next
    header must go on where the last one ended.
    """
    if not allowed(node.run):
        return
    kept, local = node.world.snapshots, node.local
    before = [known for known in kept.windows() if known < window]
    if not before:
        state = await _state(node)
        kept.save(window - 1, state)
        local.roots = (merkle_root(state), merkle_root(state))
    elif not any(local.roots):  # this process did not write it
        state = kept.load(before[-1])
        local.roots = (merkle_root(state), merkle_root(state))
        if local.partial is None or local.partial.cursor["window"] != window:
            local.opt, local.feedback = from_bytes(node.engine, state)
    else:
        local.roots = (local.roots[1], local.roots[1])


async def leave(node: Node, window: int) -> None:
    """Pins the state after the window's compression, durably. Before the seal, which names it. Raises StoreError."""
    if not allowed(node.run):
        return
    state = await _state(node)
    node.world.snapshots.save(window, state)
    node.local.roots = (node.local.roots[0], merkle_root(state))


def withdraw(node: Node, window: int) -> None:
    """The window's contribution reached nobody: the next window begins where this one did."""
    if allowed(node.run):
        node.world.snapshots.drop(window)
        node.local.roots = (b"", b"")


async def _state(node: Node) -> bytes:
    work = partial(to_bytes, node.run, node.local.opt, node.local.feedback)
    return await node.world.clock.spend("audit", node.world.costs.snapshot, work)


async def answer(node: Node, window: int) -> None:
    """Uploads both states if this node is picked. Block K(w)+F is final. Raises StoreError (the own disk), Stopped."""
    world, timetable = node.world, node.timetable(window)
    if not allowed(node.run):
        return
    claims = await window_claims(world, node.run, window)
    claim = picked(claims, await world.chain.block_hash(timetable.evaluation_block))
    if claim is None or claim.hotkey != world.hotkey:
        return
    before = [known for known in world.snapshots.windows() if known < window]
    states = world.snapshots.load(before[-1]) + world.snapshots.load(window)
    until = await world.chain.eta(timetable.answers_due)
    upload = partial(parts.upload, world.bucket, audit_key(window), states)
    await insist(world, upload, until, f"window {window}: uploading what the audit asks for", small=False)
