"""The full audit, as the audited miner sees it: one uid a window shows what its training began and ended with.

A miner's header carries two Merkle roots (store/merkle.py): of its private state (private.py) before the window's
training, and after its compression, which is what the next window begins with. The hash of block K(w)+F, which nobody
knows while there is still something to commit to, picks one of those who sealed something; that miner puts both states,
the first one first, at w/WINDOW/audit in its bucket by block `audit_due`. See audit_check.py for the other side.

Only where 2 * state_bytes(run) <= run.audit_bytes_max; else the roots are zeros and nobody is picked.
"""

import hashlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

from templar_jax.chain.wait import pause
from templar_jax.config import RunConfig
from templar_jax.errors import ChainError, StoreError
from templar_jax.node.forkchoice import Claim
from templar_jax.node.history import window_claims
from templar_jax.node.patience import Stopped, insist
from templar_jax.node.private import fresh, from_bytes, state_bytes, to_bytes
from templar_jax.node.world import Node
from templar_jax.store import parts
from templar_jax.store.contribution import audit_key
from templar_jax.store.merkle import EMPTY, merkle_root
from templar_jax.telemetry.events import Warned

T = TypeVar("T")

_DOMAIN = b"templar_jax/audit/1"


def allowed(run: RunConfig) -> bool:
    """Whether this run makes full audits."""
    return run.audit_bytes_max > 0 and 2 * state_bytes(run) <= _most(run)


def _most(run: RunConfig) -> int:
    """Bytes that an upload may have."""
    return min(run.audit_bytes_max, parts.MAX_PARTS * parts.PART_BYTES)


def why_not(run: RunConfig) -> str:
    """Why a run that asks for audits makes none, in one line; empty where it makes them or asks for none."""
    if not run.audit_bytes_max or allowed(run):
        return ""
    limit = "audit_bytes_max is" if _most(run) == run.audit_bytes_max else "one object holds at most"
    return f"{limit} {_most(run)}, an audit of this run takes {2 * state_bytes(run)}: no audits"


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
    checkpoint holds: the next header must go on where the last one ended. Where the disk has lost it, the state is
    zeros again, as in the first window.
    """
    if not allowed(node.run):
        return
    local, last = node.local, await _last(node, window)
    if last is not None and last == local.ended:
        begins = local.roots[1]
    else:
        state = await _kept(node, window, last)
        begins = await _run(node, lambda: merkle_root(state))
        if local.partial is None or local.partial.cursor["window"] != window:  # else it has moved on from there
            local.opt, local.feedback = from_bytes(node.engine, state)
    local.roots, local.ended = (begins, EMPTY), -1


async def _kept(node: Node, window: int, last: int | None) -> bytes:
    """What was kept of `last`; a new miner's state, kept in its place, where that is None or damaged."""
    world, local, lost = node.world, node.local, "nothing was kept"
    if last is not None:
        try:
            return await _load(node, last)
        except StoreError as error:
            lost = str(error)
    if last is not None or local.own_steps:
        world.emit(Warned(f"window {window}: moments and error feedback begin anew, as zeros: {lost}"))
    local.partial = None  # it had moved on from what is lost
    state = await _run(node, lambda: fresh(node.engine))
    await _run(node, lambda: world.snapshots.save(window - 1, state))
    return state


async def _load(node: Node, window: int) -> bytes:
    """Raises StoreError."""
    state, size = await _run(node, lambda: node.world.snapshots.load(window)), state_bytes(node.run)
    if len(state) != size:
        raise StoreError(f"the state that was kept of window {window} is damaged: {len(state)} bytes, not {size}")
    return state


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


async def _run(node: Node, work: Callable[[], T]) -> T:
    """One of the about three passes over the state that a window takes: made into bytes, kept, hashed."""
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
    earlier = [known for known in world.snapshots.windows() if known < window]
    if not earlier:
        raise StoreError(f"nothing was kept of the windows before {window}")
    states = await _load(node, earlier[-1]) + await _load(node, window)
    upload = partial(parts.upload, world.bucket, audit_key(window), states)
    await insist(world, upload, until, f"window {window}: uploading what the audit asks for", small=False)
