"""The full audit, as the audited miner sees it: one uid a window shows what its training began and ended with.

A miner's header carries two Merkle roots (store/merkle.py): of its private state (private.py) before the window's
training, and after its compression, which is what the next window begins with. The hash of block K(w)+F, which nobody
knows while there is still something to commit to, picks one of those who sealed something; that miner puts both states,
the first one first, at w/WINDOW/audit in its bucket by block `audit_due`. See audit_check.py for the other side.

Only where 2 * state_bytes(run) <= run.audit_bytes_max; else the roots are zeros and nobody is picked.
"""

import hashlib
from collections.abc import Sequence
from functools import partial

from templar_jax.chain.wait import pause
from templar_jax.config import RunConfig
from templar_jax.errors import ChainError, StoreError
from templar_jax.node.forkchoice import Claim
from templar_jax.node.history import window_claims
from templar_jax.node.patience import Stopped, insist
from templar_jax.node.private import from_bytes, state_bytes, to_bytes
from templar_jax.node.world import Node
from templar_jax.store import parts
from templar_jax.store.contribution import audit_key
from templar_jax.store.merkle import EMPTY, merkle_root
from templar_jax.telemetry.events import Warned

_DOMAIN = b"templar_jax/audit/1"


def allowed(run: RunConfig) -> bool:
    """Whether this run makes full audits."""
    return run.audit_bytes_max > 0 and 2 * state_bytes(run) <= run.audit_bytes_max


def why_not(run: RunConfig) -> str:
    """Why a run that asks for audits makes none, in one line; empty where it makes them or asks for none."""
    if not run.audit_bytes_max or allowed(run):
        return ""
    return f"audit_bytes_max is {run.audit_bytes_max}, an audit of this run takes {2 * state_bytes(run)}: no audits"


def picked(claims: Sequence[Claim], block_hash: bytes) -> Claim | None:
    """Who is audited, for the whole network; block_hash: of block K(w)+F; claims: all of the window's on time."""
    if not claims:
        return None
    number = int.from_bytes(hashlib.sha256(_DOMAIN + block_hash).digest(), "little")
    return sorted(claims, key=lambda claim: claim.uid)[number % len(claims)]


async def enter(node: Node, window: int) -> None:
    """Pins the state that the window's training begins with. Before it. Raises StoreError.

    That is the state at the end of the last window whose contribution counts. Memory holds it where that went well;
    after a restart, a failure in the middle or a commitment that came too late it is read from the disk, whatever the
    checkpoint holds: the next header must go on where the last one ended.
    """
    if not allowed(node.run):
        return
    local, snapshots = node.local, node.world.snapshots
    last = await _last(node, window)
    if last is None:  # the first window, or a new disk
        last, state = window - 1, await _state(node)
        await _run(node, lambda: snapshots.save(window - 1, state))
        begins = await _run(node, lambda: merkle_root(state))
    elif last == local.ended:
        begins = local.roots[1]
    else:
        state = await _run(node, lambda: snapshots.load(last))
        begins = await _run(node, lambda: merkle_root(state))
        if local.partial is None or local.partial.cursor["window"] != window:  # else it has moved on from there
            local.opt, local.feedback = from_bytes(node.engine, state)
    local.roots, local.ended = (begins, EMPTY), -1


async def _last(node: Node, window: int) -> int | None:
    """The newest window before `window` whose end was kept and counts; forgets newer ones, which reached nobody.

    The oldest that is kept counts in any case: it is from before this miner's first contribution.
    """
    snapshots = node.world.snapshots
    known = [one for one in snapshots.windows() if one < window]
    while len(known) > 1:
        claims = await window_claims(node.world, node.run, known[-1])
        if any(claim.hotkey == node.world.hotkey for claim in claims):
            break
        snapshots.drop(known.pop())
    return known[-1] if known else None


async def leave(node: Node, window: int) -> None:
    """Pins the state after the window's compression, durably. Before the seal, which names it. Raises StoreError."""
    if not allowed(node.run):
        return
    local, snapshots, state = node.local, node.world.snapshots, await _state(node)
    await _run(node, lambda: snapshots.save(window, state))
    local.roots = local.roots[0], await _run(node, lambda: merkle_root(state))
    local.ended = window


async def _state(node: Node) -> bytes:
    return await _run(node, partial(to_bytes, node.run, node.local.opt, node.local.feedback))


async def _run(node: Node, work):
    return await node.world.clock.spend("audit", node.world.costs.snapshot / 3, work)


async def answer(node: Node, window: int) -> None:
    """Uploads both states if this node is picked, at the latest when it is due. What fails is said. Raises Stopped."""
    if not allowed(node.run):
        return
    world, timetable = node.world, node.timetable(window)
    block = world.chain.block_seconds
    until = world.clock.time() + (timetable.audit_due - timetable.evaluation_block) * block  # without the chain's word
    while True:
        try:
            return await _answer(node, window)
        except (ChainError, StoreError) as error:
            if world.clock.time() + block / 2 >= until:
                world.emit(Warned(f"window {window}: no answer to an audit: {error}"))
                return
        if await pause(world.clock, block / 2, world.stop):
            raise Stopped


async def _answer(node: Node, window: int) -> None:
    """Raises ChainError, StoreError (the own disk), Stopped."""
    world, timetable = node.world, node.timetable(window)
    claims = await window_claims(world, node.run, window)
    if not any(claim.hotkey == world.hotkey for claim in claims):
        return
    claim = picked(claims, await world.chain.block_hash(timetable.evaluation_block))
    until = await world.chain.eta(timetable.audit_due)
    if claim is None or claim.hotkey != world.hotkey or world.clock.time() >= until:
        return
    last = max(known for known in world.snapshots.windows() if known < window)
    states = await _run(node, lambda: world.snapshots.load(last) + world.snapshots.load(window))
    upload = partial(parts.upload, world.bucket, audit_key(window), states)
    await insist(world, upload, until, f"window {window}: uploading what the audit asks for", small=False)
