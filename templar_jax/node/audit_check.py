"""The full audit, as a validator sees it: fetch the picked miner's states, check their roots, run its steps again.

With the miner's moments and error feedback its contribution is a pure function of theta_w and the assigned batches,
up to rounding: the same optimizer steps, then the same compression (rerun.py says how like they are). It costs what the
miner's window cost: where that does not fit before the next deadline, nothing is recorded.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from templar_jax.compress.aggregate import Contribution
from templar_jax.data.assign import assigned
from templar_jax.data.loader import make_loader
from templar_jax.errors import RefusedError
from templar_jax.incentive.evidence import Audit, Identity
from templar_jax.node import challenge, private, rerun
from templar_jax.node.audit import allowed, picked
from templar_jax.node.engine import Params
from templar_jax.node.forkchoice import Claim
from templar_jax.node.gather import cache_key, one_peer, persist, reader_of
from templar_jax.node.patience import Stopped
from templar_jax.node.scoring import Peer, Scene, Seen
from templar_jax.node.world import Node
from templar_jax.store import parts, seal
from templar_jax.store.contribution import audit_key
from templar_jax.store.merkle import merkle_root
from templar_jax.telemetry.events import Warned
from templar_jax.train.offload import copy

T = TypeVar("T")

PARTS = "roots", "step", "compress", "compare"  # of an audit, in their order; "step" as often as the miner did
GUESS = {"compress": ("step", 1.0), "compare": ("roots", 4.0)}  # until it was measured: so many times another part


@dataclass
class Past:
    """What a validator keeps from one audit to the next. Not over a restart."""

    window: int = -1  # the newest that was looked at
    roots: dict[Identity, frozenset[bytes]] = field(default_factory=dict)  # that its next window may begin with
    pace: dict[str, float] = field(default_factory=dict)  # seconds of each of PARTS, as measured last


@dataclass(frozen=True)
class Case:
    """An audit under way. `states` is to be cancelled by who gives the case up."""

    peer: Peer
    start: Params  # theta_w, the audit's own copy
    states: "asyncio.Task[bytes | RefusedError]"  # both, as uploaded
    may_begin: frozenset[bytes]  # roots that its earlier headers allow; none: not known
    pace: dict[str, float]  # see Past


class _NoTimeError(Exception):
    """What is left of an audit would not end in time."""


def ends_said(node: Node, window: int, claims: Iterable[Claim]) -> dict[int, bytes]:
    """By uid, the root that the clear header of a fetched object ends with, whether or not a key opens it."""
    if not allowed(node.run):
        return {}
    fetched = ((claim.uid, node.sealed.get(cache_key(claim, window))) for claim in claims)
    return {uid: seal.read_header(sealed).claim.after for uid, sealed in fetched if sealed is not None}


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


async def begin(node: Node, seen: Seen, scene: Scene, past: Past) -> Case | None:
    """Starts to fetch what the picked miner owes; None where nobody is audited. Block K(w)+F is final.

    past: brought up to date here.
    """
    if not allowed(node.run):
        return None
    window, accepted = seen.state.window, {peer.uid: peer for peer in scene.accepted.values()}
    before = dict(past.roots) if past.window == window - 1 else {}
    past.window, past.roots = window, _may_begin(before, seen, scene)
    claim = picked(seen.claims, await node.world.chain.block_hash(node.timetable(window).evaluation_block))
    if claim is None or claim.uid not in accepted:
        return None
    peer = accepted[claim.uid]
    start = copy(seen.params, offloaded=False)
    states = asyncio.ensure_future(_fetch(node, seen.claims, claim, window))
    return Case(peer, start, states, before.get(peer.who, frozenset()), past.pace)


def _may_begin(before: dict[Identity, frozenset[bytes]], seen: Seen, scene: Scene) -> dict[Identity, frozenset[bytes]]:
    """The roots that each one's next window may begin with, after this one.

    Who withholds its key is held to what its signed header says, or to what was known. Who served nothing that could be
    fetched here, which may be this node's fault, is not known any more.
    """
    sealed = {claim.uid for claim in seen.claims}
    roots = {who: known for who, known in before.items() if scene.uids.get(who) not in sealed}
    for peer in scene.peers:
        if peer.opened is not None:
            roots[peer.who] = frozenset([peer.opened.header.claim.after])
        elif peer.uid in seen.ends:
            roots[peer.who] = before.get(peer.who, frozenset()) | {seen.ends[peer.uid]}
    return roots


async def _fetch(node: Node, claims: Iterable[Claim], claim: Claim, window: int) -> bytes | RefusedError:
    """Both states, or why there are none: reason "error" where it is not the miner's fault."""
    size = 2 * private.state_bytes(node.run)
    until = await node.world.chain.eta(node.timetable(window).audit_due)

    async def ask(seconds: float) -> bytes:
        return await parts.download(reader_of(node.world, claim.locator), audit_key(window), size, size, seconds)

    found = await one_peer(node.world, claim.uid, persist(node.world, until, ask))
    if isinstance(found, RefusedError) and found.reason == "fetch" and not await _anybody(node, claims, window):
        return RefusedError("error", "no bucket answers, the picked miner's among them: look at this node's own link")
    return found


async def _anybody(node: Node, claims: Iterable[Claim], window: int) -> bool:
    """Whether anybody's answer to the window's state challenge can be fetched from here."""
    world = node.world
    asking = (
        one_peer(world, claim.uid, challenge.fetch(world, claim, window, world.chain.block_seconds))
        for claim in claims
        if claim.hotkey != world.hotkey
    )
    return any(isinstance(answer, bytes) for answer in await asyncio.gather(*asking))


async def finish(node: Node, seen: Seen, scene: Scene, case: Case, until: float) -> Audit | None:
    """What came of it; None where the time until clock time `until` does not suffice."""
    states = await case.states
    if isinstance(states, RefusedError):
        if states.reason != "error":
            return Audit("absent")
        node.world.emit(Warned(f"window {seen.state.window}: no audit: {states}"))
        return None
    try:
        return await _check(node, seen, scene, case, states, until)
    except _NoTimeError:
        return None


async def _check(node: Node, seen: Seen, scene: Scene, case: Case, states: bytes, until: float) -> Audit:
    opened, run, costs = case.peer.opened, node.run, node.world.costs
    assert opened is not None
    half, claim = len(states) // 2, opened.header.claim
    before, after = memoryview(states)[:half], memoryview(states)[half:]

    def roots() -> tuple[bool, bool | None]:
        if (merkle_root(before), merkle_root(after)) != (claim.before, claim.after):
            return False, None
        return True, _continues(node, case.may_begin, claim.before)

    right, continuous = await _part(node, case, until, "roots", costs.snapshot, roots, claim.inner_steps)
    if not right:
        return Audit("wrong")
    sent, *ends = await _again(node, seen, scene, case, before, until)

    def compare() -> rerun.Likeness:
        return rerun.compare(run, opened.packed, private.views(run, after), sent, private.leaves(run, *ends))

    found = await _part(node, case, until, "compare", costs.snapshot, compare)
    return Audit("done", found.sent, found.overlap, found.state, continuous)


def _continues(node: Node, may_begin: frozenset[bytes], began: bytes) -> bool | None:
    """Whether a window began where the last one ended. None: not known, or anew, as after a lost disk."""
    if not may_begin or began in may_begin:
        return True if may_begin else None
    return None if began == merkle_root(private.fresh(node.engine)) else False


async def _part(
    node: Node, case: Case, until: float, name: str, modelled: float, work: Callable[[], T], steps: int = 1
) -> T:
    """One part's result, timed. Raises _NoTimeError where it and those after it would not end by `until`.

    steps: that are still to do.
    """
    clock, pace = node.world.clock, case.pace
    guess = {part: pace.get(base, 0.0) * times for part, (base, times) in GUESS.items()} | pace
    left = sum(guess.get(part, 0.0) * (steps if part == "step" else 1) for part in PARTS[PARTS.index(name) :])
    if clock.time() + left > until:
        pace.update({part: seconds / 2 for part, seconds in pace.items()})  # of a bad moment, perhaps: tried again
        raise _NoTimeError
    started = clock.time()
    found = await clock.spend("audit", modelled, work)
    pace[name] = clock.time() - started
    return found


async def _again(
    node: Node, seen: Seen, scene: Scene, case: Case, before: memoryview, until: float
) -> tuple[Contribution, Any, Params]:
    """The window's steps and compression once more: (contribution, optimizer state, error feedback)."""
    run, engine, costs, opened = node.run, node.engine, node.world.costs, case.peer.opened
    assert opened is not None
    ids = assigned(scene.assignment, case.peer.slot, run.pages_per_window, node.pages.manifest.n_pages)
    what: Any = dict(run_id=run.run_id, window=seen.state.window, batch=run.inner.batch, seed=scene.assignment)
    opt, feedback = private.from_bytes(engine, before)
    params, first = engine.inner.begin(case.start), seen.state.outer_step * run.inner.steps
    steps = opened.header.claim.inner_steps
    loader = make_loader(node.pages, ids, steps=run.inner.steps, threads=0, **what)
    try:
        for step in range(steps):

            def work(params: Params = params, opt: Any = opt, step: int = step) -> Any:
                params, opt, metrics = engine.inner.step(params, opt, next(loader), first + step)
                float(metrics.loss)  # returns when the step is done
                return params, opt

            params, opt = await _part(node, case, until, "step", costs.step, work, steps - step)
    finally:
        loader.close()

    def compress() -> tuple[Params, Contribution]:
        return engine.compressor.update(feedback, case.start, params)

    feedback, sent = await _part(node, case, until, "compress", costs.compress, compress)
    return sent, opt, feedback
