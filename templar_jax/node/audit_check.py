"""The full audit, as a validator sees it: fetch the picked miner's states, check their roots, run its steps again.

With the miner's moments and error feedback its contribution is a pure function of theta_w and the assigned batches,
up to rounding: the same optimizer steps, then the same compression (rerun.py says how like they are). It costs what the
miner's window cost: where that does not fit before the next deadline, nothing is recorded.
"""

import asyncio
from collections.abc import Awaitable, Iterable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from templar_jax.compress.aggregate import Contribution
from templar_jax.data.assign import assigned
from templar_jax.data.loader import make_loader
from templar_jax.errors import RefusedError
from templar_jax.incentive.evidence import Audit, Identity
from templar_jax.node import private, rerun
from templar_jax.node.audit import allowed, picked
from templar_jax.node.engine import Params
from templar_jax.node.forkchoice import Claim
from templar_jax.node.gather import one_peer, persist, reader_of
from templar_jax.node.patience import Stopped
from templar_jax.node.scoring import Peer, Scene, Seen
from templar_jax.node.world import Node
from templar_jax.store import parts
from templar_jax.store.contribution import audit_key
from templar_jax.store.merkle import merkle_root
from templar_jax.telemetry.events import Warned
from templar_jax.train.offload import copy

T = TypeVar("T")


@dataclass
class Ends:
    """By identity, the root that its newest header ended with, as far as this node saw all headers since."""

    window: int = -1  # the newest that was looked at
    roots: dict[Identity, bytes] = field(default_factory=dict)


@dataclass(frozen=True)
class Case:
    """An audit under way. `states` is to be cancelled by who gives the case up."""

    peer: Peer
    start: Params  # theta_w, the audit's own copy
    states: "asyncio.Task[bytes | RefusedError]"  # both, as uploaded
    last_end: bytes | None  # root that its last header ended with


async def spared(node: Node, window: int, work: Awaitable[T]) -> T | None:
    """The result of a part of an audit; None, and said, where it fails: the rest of the evidence does not hang on it.

    Raises Stopped.
    """
    try:
        return await work
    except Stopped:
        raise
    except Exception as error:  # a damaged page, the chain, a device out of memory
        node.world.emit(Warned(f"window {window}: no audit: {type(error).__name__}: {error}"))
        return None


async def begin(node: Node, seen: Seen, scene: Scene, ends: Ends) -> Case | None:
    """Starts to fetch what the picked miner owes; None where nobody is audited. Block K(w)+F is final.

    ends: brought up to date here.
    """
    if not allowed(node.run):
        return None
    window, accepted = seen.state.window, {peer.uid: peer for peer in scene.accepted.values()}
    before = dict(ends.roots) if ends.window == window - 1 else {}
    _remember(ends, before, seen.claims, scene, window)
    claim = picked(seen.claims, await node.world.chain.block_hash(node.timetable(window).evaluation_block))
    if claim is None or claim.uid not in accepted:
        return None
    peer = accepted[claim.uid]
    start = copy(seen.params, offloaded=False)
    return Case(peer, start, asyncio.ensure_future(_fetch(node, claim, window)), before.get(peer.who))


def _remember(ends: Ends, before: dict[Identity, bytes], claims: Iterable[Claim], scene: Scene, window: int) -> None:
    sealed = {claim.hotkey for claim in claims}  # unknown, unless it could be opened
    ends.roots = {who: root for who, root in before.items() if who.hotkey not in sealed}
    ends.roots |= {who: peer.opened.header.claim.after for who, peer in scene.accepted.items() if peer.opened}
    ends.window = window


async def _fetch(node: Node, claim: Claim, window: int) -> bytes | RefusedError:
    size = 2 * private.state_bytes(node.run)
    until = await node.world.chain.eta(node.timetable(window).audit_due)

    async def ask(seconds: float) -> bytes:
        return await parts.download(reader_of(node.world, claim.locator), audit_key(window), size, size, seconds)

    return await one_peer(node.world, claim.uid, persist(node.world, until, ask))


async def finish(node: Node, seen: Seen, scene: Scene, case: Case, until: float) -> Audit | None:
    """What came of it; None where the time until clock time `until` does not suffice."""
    states, opened = await case.states, case.peer.opened
    assert opened is not None
    if isinstance(states, RefusedError):
        return Audit("absent")
    half, claim = len(states) // 2, opened.header.claim
    before, after = memoryview(states)[:half], memoryview(states)[half:]
    if await _host(node, lambda: (merkle_root(before), merkle_root(after))) != (claim.before, claim.after):
        return Audit("wrong")
    continuous = await _host(node, lambda: _continues(node, case.last_end, claim.before))
    done = await _again(node, seen, scene, case, before, until)
    if done is None:
        return None
    sent, *ends = done

    def compare() -> rerun.Likeness:
        run = node.run
        return rerun.compare(run, opened.packed, private.views(run, after), sent, private.leaves(run, *ends))

    found = await _host(node, compare)
    return Audit("done", found.sent, found.overlap, found.state, continuous)


def _continues(node: Node, last_end: bytes | None, began: bytes) -> bool | None:
    """Whether a window began with what the last one ended with. None: not known, or anew, as after a lost disk."""
    if last_end is None or last_end == began:
        return None if last_end is None else True
    return None if began == merkle_root(private.fresh(node.engine)) else False


async def _host(node: Node, work: Any) -> Any:
    return await node.world.clock.spend("audit", node.world.costs.snapshot, work)


async def _again(
    node: Node, seen: Seen, scene: Scene, case: Case, before: memoryview, until: float
) -> tuple[Contribution, Any, Params] | None:
    """The window's steps and compression once more: (contribution, optimizer state, error feedback)."""
    run, world, engine, opened = node.run, node.world, node.engine, case.peer.opened
    assert opened is not None
    ids = assigned(scene.assignment, case.peer.slot, run.pages_per_window, node.pages.manifest.n_pages)
    what: Any = dict(run_id=run.run_id, window=seen.state.window, batch=run.inner.batch, seed=scene.assignment)
    opt, feedback = private.from_bytes(engine, before)
    params, seconds, first = engine.inner.begin(case.start), 0.0, seen.state.outer_step * run.inner.steps
    loader = make_loader(node.pages, ids, steps=run.inner.steps, threads=0, **what)
    try:
        for step in range(opened.header.claim.inner_steps):
            started = world.clock.time()
            if started + seconds > until:
                return None

            def work(params: Params = params, opt: Any = opt, step: int = step) -> Any:
                params, opt, metrics = engine.inner.step(params, opt, next(loader), first + step)
                float(metrics.loss)  # returns when the step is done
                return params, opt

            params, opt = await world.clock.spend("audit", world.costs.step, work)
            seconds = max(seconds, world.clock.time() - started)
    finally:
        loader.close()

    def compress() -> tuple[Params, Contribution]:
        return engine.compressor.update(feedback, case.start, params)

    feedback, sent = await world.clock.spend("audit", world.costs.compress, compress)
    return sent, opt, feedback
