"""The full audit, as a validator sees it: fetch the picked miner's states, check their roots, run its steps again.

With the miner's moments and error feedback its contribution is a pure function of theta_w and the assigned batches,
up to rounding: the same optimizer steps, then the same compression. What is compared is the contribution (cosine, and
kept elements in common) and the private state that comes out (cosine), which tells most. It costs what the miner's
window cost: where that does not fit before the next deadline, nothing is recorded.
"""

import asyncio
import math
from collections.abc import Iterable
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np

from templar_jax.compress import aggregate
from templar_jax.compress.aggregate import Contribution
from templar_jax.compress.packed import Packed
from templar_jax.compress.quantize import CODES
from templar_jax.compress.tiles import Tiling, fold, place, tilings
from templar_jax.config import RunConfig
from templar_jax.data.assign import assigned
from templar_jax.data.loader import make_loader
from templar_jax.errors import RefusedError
from templar_jax.incentive.evidence import Audit, Identity
from templar_jax.node import private
from templar_jax.node.audit import allowed, picked
from templar_jax.node.engine import Params, copy
from templar_jax.node.forkchoice import Claim
from templar_jax.node.gather import one_peer, persist, reader_of
from templar_jax.node.scoring import Peer, Scene, Seen
from templar_jax.node.world import Node
from templar_jax.store import parts
from templar_jax.store.contribution import audit_key
from templar_jax.store.merkle import merkle_root


@dataclass(frozen=True)
class Case:
    """An audit under way."""

    peer: Peer
    start: Params  # theta_w, the audit's own copy
    states: "asyncio.Task[bytes | RefusedError]"  # both, as uploaded
    continuous: bool | None


async def begin(node: Node, seen: Seen, scene: Scene, afters: dict[Identity, bytes]) -> Case | None:
    """Starts to fetch what the picked miner owes; None where nobody is audited. Block K(w)+F is final.

    afters: by identity, the root that its newest header ended with, where that was in its newest window; brought up
      to date here.
    """
    if not allowed(node.run):
        return None
    window, accepted = seen.state.window, {peer.uid: peer for peer in scene.accepted.values()}
    before = dict(afters)
    _remember(afters, seen.claims, scene)
    claim = picked(seen.claims, await node.world.chain.block_hash(node.timetable(window).evaluation_block))
    if claim is None or claim.uid not in accepted:
        return None
    peer = accepted[claim.uid]
    assert peer.opened is not None
    known, began = before.get(peer.who), peer.opened.header.claim.before
    fetching = asyncio.ensure_future(_fetch(node, claim, window))
    return Case(peer, copy(seen.params), fetching, known == began if known is not None else None)


def _remember(afters: dict[Identity, bytes], claims: Iterable[Claim], scene: Scene) -> None:
    sealed = {claim.hotkey for claim in claims}
    for who in [who for who in afters if who.hotkey in sealed]:
        del afters[who]  # unknown, unless it could be opened
    afters.update({who: peer.opened.header.claim.after for who, peer in scene.accepted.items() if peer.opened})


async def _fetch(node: Node, claim: Claim, window: int) -> bytes | RefusedError:
    size = 2 * private.state_bytes(node.run)
    until = await node.world.chain.eta(node.timetable(window).answers_due)

    async def ask(seconds: float) -> bytes:
        return await parts.download(reader_of(node.world, claim.locator), audit_key(window), size, size, seconds)

    return await one_peer(node.world, claim.uid, persist(node.world, until, ask))


async def finish(node: Node, seen: Seen, scene: Scene, case: Case, until: float) -> Audit | None:
    """What came of it; None where the time until clock time `until` does not suffice."""
    states = await case.states
    if isinstance(states, RefusedError):
        return Audit("absent", continuous=case.continuous)
    assert case.peer.opened is not None
    half, claim = len(states) // 2, case.peer.opened.header.claim
    if (merkle_root(states[:half]), merkle_root(states[half:])) != (claim.before, claim.after):
        return Audit("wrong", continuous=case.continuous)
    done = await _again(node, seen, scene, case, states[:half], until)
    if done is None:
        return None
    sent, opt, feedback = done
    overlap, cosine = _compare(node.run, case.peer.opened.packed, sent, feedback)
    ended = private.from_bytes(node.engine, states[half:])
    state = private.likeness(node.run, private.leaves(node.run, opt, feedback), private.leaves(node.run, *ended))
    return Audit("done", cosine, overlap, state, case.continuous)


def _compare(run: RunConfig, theirs: Contribution, ours: Contribution, left: Params) -> tuple[float, float]:
    """(kept elements in common over kept, cosine of their values with what was to be sent here, at their places).

    What was to be sent is what was sent plus what was left. Compared there, an element that rounding moved across the
    limit of the k-th magnitude costs nothing: of elements nearly alike others may be kept.
    """
    both = kept = 0
    dot = square = other = 0.0
    for name, tiling in tilings(run).items():
        (their_places, their_values), (our_places, our_values) = (_laid(tiling, c[name]) for c in (theirs, ours))
        sent, there = np.zeros(tiling.param.shape), np.zeros(tiling.param.shape, bool)
        sent[our_places], there[our_places] = our_values, True
        here = (sent + np.asarray(left[name], np.float64))[their_places]
        both, kept = both + int(there[their_places].sum()), kept + here.size
        dot, square = dot + float((their_values * here).sum()), square + float((their_values**2).sum())
        other += float((here**2).sum())
    norms = math.sqrt(square) * math.sqrt(other)
    return both / kept, max(-1.0, min(1.0, dot / norms)) if 0.0 < norms < math.inf else 0.0


def _laid(tiling: Tiling, packed: Packed) -> tuple[tuple[np.ndarray, ...], np.ndarray]:
    """(coordinates in the parameter, decoded values) of everything that was kept, flat."""
    offsets = np.arange(tiling.k) if tiling.full else np.asarray(packed.indices).astype(np.int32)
    grid = fold(tiling, np.ascontiguousarray(np.broadcast_to(offsets, tiling.packed_shape)))
    places = place(tiling.sides, jnp.asarray(grid), tiling.param.stack)
    entry = np.asarray(packed.codes).reshape(tiling.param.units, -1).astype(np.int64)
    if np.asarray(packed.scales).dtype != np.float32:
        entry += CODES * np.repeat(
            np.asarray(packed.scales).reshape(tiling.param.units, -1).astype(np.int64), tiling.k, 1
        )
    values = np.take_along_axis(aggregate.values(tiling, packed), entry, 1).astype(np.float64)
    flat = tuple(np.broadcast_to(np.asarray(axis), grid.shape).ravel() for axis in places)
    return flat, values.ravel()


async def _again(
    node: Node, seen: Seen, scene: Scene, case: Case, before: bytes, until: float
) -> tuple[Contribution, object, Params] | None:
    """The window's steps and compression once more: (contribution, optimizer state, error feedback)."""
    run, world, engine = node.run, node.world, node.engine
    assert case.peer.opened is not None
    ids = assigned(scene.assignment, case.peer.slot, run.pages_per_window, node.pages.manifest.n_pages)
    what = dict(run_id=run.run_id, window=seen.state.window, batch=run.inner.batch, seed=scene.assignment)
    opt, feedback = private.from_bytes(engine, before)
    params, seconds = copy(case.start), 0.0
    loader = make_loader(node.pages, ids, steps=run.inner.steps, threads=0, **what)  # type: ignore[arg-type]
    for step in range(case.peer.opened.header.claim.inner_steps):
        started = world.clock.time()
        if started + seconds > until:
            loader.close()
            return None

        def work(params: Params = params, opt: object = opt, step: int = step):
            return engine.inner.step(params, opt, next(loader), seen.state.outer_step * run.inner.steps + step)

        params, opt, _ = await world.clock.spend("audit", world.costs.step, work)
        seconds = max(seconds, world.clock.time() - started)
    loader.close()

    def compress():
        return engine.compressor.update(feedback, case.start, params)

    feedback, sent = await world.clock.spend("audit", world.costs.compress, compress)
    return sent, opt, feedback
