"""From the contributions of a window to the evidence that pay depends on.

A validator judges by what it could fetch and open itself before the leader's cutoff, and evaluates on theta_w, whose
buffers are its own by then. What its time did not suffice for is recorded as not evaluated.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np

from templar_jax.chain.messages import SealMessage, parse_commitment
from templar_jax.compress import aggregate
from templar_jax.compress.aggregate import Contribution
from templar_jax.compress.packed import Packed
from templar_jax.compress.tiles import tilings
from templar_jax.config import RunConfig
from templar_jax.errors import RefusedError
from templar_jax.incentive.evidence import Identity, Losses, PeerEvidence, WindowEvidence, nats
from templar_jax.node import draws, forkchoice, likeness, receipt
from templar_jax.node.engine import Params
from templar_jax.node.forkchoice import Claim
from templar_jax.node.history import window_candidates, window_claims
from templar_jax.node.world import GlobalState, Node, Opened
from templar_jax.store.refusals import PROVEN
from templar_jax.telemetry.events import Warned

LOOK_BACK = 2  # windows whose contributions and aggregates new ones are compared with
LEAST = 2  # sequences a side: fewer have no variance


@dataclass(frozen=True)
class Seen:
    """What a validator holds of a window when its scoring begins. The buffers of `params` are the scorer's own."""

    state: GlobalState  # theta_w's place in history; its params may be gone
    params: Params  # theta_w
    claims: tuple[Claim, ...]
    outcomes: Mapping[int, Opened | RefusedError]  # by uid
    ends: Mapping[int, bytes] = field(default_factory=dict)  # by uid, where the run audits: audit_check.ends_said


@dataclass
class Earlier:
    """Contributions and re-encoded outer steps of the last windows. Not kept over a restart."""

    contributions: dict[int, dict[Identity, dict[str, Packed]]] = field(default_factory=dict)
    aggregates: dict[int, dict[str, Packed]] = field(default_factory=dict)

    def forget(self, oldest: int) -> None:
        for kept in (self.contributions, self.aggregates):
            for window in [window for window in kept if window < oldest]:
                del kept[window]


@dataclass(frozen=True)
class Peer:
    """One peer with something to judge."""

    who: Identity
    uid: int
    slot: int
    opened: Opened | None
    evidence: PeerEvidence  # without losses


class Measured(NamedTuple):
    """What evaluation finds of one peer."""

    losses: Losses
    step0: float | None  # see PeerEvidence


@dataclass(frozen=True)
class Scene:
    """All that is known of a window before the first evaluation."""

    seed: bytes  # of the evaluation
    assignment: bytes  # seed of the assignments
    n_slots: int
    registered: tuple[Identity, ...]
    peers: tuple[Peer, ...]
    uids: dict[Identity, int]  # of everyone with a slot

    @property
    def accepted(self) -> dict[Identity, Peer]:
        return {peer.who: peer for peer in self.peers if peer.evidence.accepted}


async def survey(node: Node, seen: Seen) -> Scene:
    """Who is there to judge, and what the chain and the bytes alone say of it. Block K(w)+F must be final."""
    chain, timetable = node.world.chain, node.timetable(seen.state.window)
    slots = (await chain.metagraph(timetable.seed_block)).neurons
    registered = tuple(Identity(n.hotkey, n.registered) for n in (await chain.metagraph(timetable.deadline)).neurons)
    late, twofold = await _late(node, seen), await _equivocators(node, seen.state.window - 1)
    claims = {claim.uid: claim for claim in seen.claims}
    peers = []
    for slot, neuron in enumerate(slots):
        who, claim = Identity(neuron.hotkey, neuron.registered), claims.get(neuron.uid)
        outcome = seen.outcomes.get(neuron.uid)
        broken = broken_rules(outcome)
        broken += ("late",) * (neuron.hotkey in late) + ("equivocation",) * (neuron.uid in twofold)
        opened = outcome if isinstance(outcome, Opened) and not broken else None
        if who not in registered or (claim is None and not broken):
            continue
        evidence = PeerEvidence(
            peer=who,
            uid=neuron.uid,
            sealed=(claim.block, claim.index) if claim else None,
            accepted=opened is not None,
            violations=broken,
            inner_steps=opened.header.claim.inner_steps if opened else 0,
        )
        peers.append(Peer(who, neuron.uid, slot, opened, evidence))
    uids = {Identity(neuron.hotkey, neuron.registered): neuron.uid for neuron in slots}
    seed = draws.evaluation_seed(await chain.block_hash(timetable.evaluation_block), node.world.hotkey)
    return Scene(seed, await chain.block_hash(timetable.seed_block), len(slots), registered, tuple(peers), uids)


def broken_rules(outcome: Opened | RefusedError | None) -> tuple[str, ...]:
    """Rules that a peer broke, as its signed bytes prove. What is not served, or served wrong, is nobody's crime.

    Args:
      outcome: what this node found; None: it did not look.
    """
    return (outcome.reason,) if isinstance(outcome, RefusedError) and outcome.reason in PROVEN else ()


async def _late(node: Node, seen: Seen) -> set[str]:
    """Hotkeys whose only commitments of this window stand in blocks after K(w).

    Between D(w) and K(w) no key is out, so there was nothing to gain: a transaction that took long is worth nothing,
    and breaks no rule.
    """
    chain, timetable = node.world.chain, node.timetable(seen.state.window)
    last = min(timetable.manifest_end, await chain.finalized())
    after = await chain.commitments(timetable.deadline + 1, last)
    parsed = ((row, parse_commitment(row.fields)) for row in after)
    messages = [(row, found.message) for row, found in parsed if found is not None]
    first: dict[str, int] = {claim.hotkey: claim.block for claim in seen.claims}
    for row, message in messages:
        if isinstance(message, SealMessage) and message.window == timetable.window:
            first.setdefault(row.hotkey, row.block)
    return {hotkey for hotkey, block in first.items() if block > timetable.keys}


async def _equivocators(node: Node, window: int) -> set[int]:
    """Uids that committed to two manifests of `window`, whose slots must be over."""
    world, timetable = node.world, node.timetable(window)
    newest = await world.chain.finalized()
    if timetable.seed_block < 0 or newest < timetable.manifest_end - 1:
        return set()
    claims = await window_claims(world, node.run, window)
    found = await window_candidates(world, node.run, window, newest, claims)
    return {uid for uid, _ in forkchoice.equivocations(found)}


async def evaluate(
    node: Node, seen: Seen, scene: Scene, earlier: Earlier, order: Iterable[Identity], until: float
) -> WindowEvidence:
    """The window's evidence: norms and likenesses of all accepted peers, losses of as many as there is time for.

    Args:
      order: accepted peers, first to be evaluated first.
      until: clock time from which on no further evaluation is begun.
    """
    run, clock, costs = node.run, node.world.clock, node.world.costs
    window, accepted, opened = seen.state.window, scene.accepted, contributions(scene)
    before = {w: kept for w, kept in earlier.contributions.items() if w < window}
    aggregates = [kept for w, kept in sorted(earlier.aggregates.items()) if w < window]
    alike = await clock.spend(
        "likeness",
        costs.likeness,
        lambda: likeness.compare(run, scene.seed, window, opened, before, aggregates),
    )
    norms = {who: norm(run, opened[who]) for who in opened}
    beta = draws.draw_beta(scene.seed)
    unassigned_before, measured = await _losses(node, seen, scene, [accepted[who] for who in order], beta, until)
    peers = (
        _with(peer.evidence, norms.get(peer.who), alike.stale.get(peer.who), measured.get(peer.who))
        for peer in scene.peers
    )
    return WindowEvidence(
        run_id=run.run_id,
        window=window,
        outer_step=seen.state.outer_step,
        beta=beta,
        registered=scene.registered,
        unassigned_before=unassigned_before,
        peers=tuple(peers),
        pairs=alike.pairs,
    )


def contributions(scene: Scene) -> dict[Identity, dict[str, Packed]]:
    """What the accepted peers sent."""
    return {who: peer.opened.packed for who, peer in scene.accepted.items() if peer.opened}


def _with(seen: PeerEvidence, size: float | None, stale: float | None, measured: Measured | None) -> PeerEvidence:
    if not seen.accepted:
        return seen
    seen = replace(seen, norm=size or 0.0, stale_cosine=stale)
    return replace(seen, losses=measured.losses, step0=measured.step0) if measured else seen


def norm(run: RunConfig, contribution: Contribution) -> float:
    """Euclidean norm of a whole contribution before any clip."""
    squares = [
        float(unit) * float(unit)
        for name, tiling in tilings(run).items()
        for unit in aggregate.norms(tiling, contribution[name])
    ]
    return math.sqrt(math.fsum(squares))


async def _losses(
    node: Node, seen: Seen, scene: Scene, order: list[Peer], beta: float, until: float
) -> tuple[tuple[float, ...], dict[Identity, Measured]]:
    """(losses of the unassigned sequences at theta_w, what was measured of each peer that there was time for)."""
    world, run, count = node.world, node.run, node.config.score_sequences
    params, found = seen.params, dict[Identity, Measured]()
    if not order or world.clock.time() >= until:
        return (), found
    factors = aggregate.clip_factors(run, {peer.uid: peer.opened.packed for peer in order if peer.opened})
    unassigned = draws.draw_unassigned(run, node.pages, scene.seed, scene.assignment, scene.n_slots, count)
    if len(unassigned) < LEAST:
        world.emit(Warned("no page is left that nobody trains on: nobody can be evaluated; prepare more text"))
        return (), found

    def first() -> tuple[float, ...]:
        return nats(node.engine.peers.before(params, unassigned))

    before, seconds = await world.clock.spend("evaluate", world.costs.evaluate / 2, first), 0.0
    for peer in order:
        started = world.clock.time()
        if started + seconds > until:
            break

        def one(peer: Peer = peer, params: Params = params) -> tuple[Params, Measured]:
            assert peer.opened is not None  # only accepted peers stand in `order`
            loss = receipt.first_loss(node, params, seen.state.window, scene.assignment, peer.slot)
            assigned = draws.draw_assigned(run, node.pages, scene.seed, scene.assignment, peer.slot, count)
            what = peer.opened.packed, factors[peer.uid], beta, assigned, unassigned
            after, got = node.engine.peers.peer(params, *what)
            off = receipt.difference(peer.opened.header.claim.first_loss, loss)
            return after, Measured(Losses(*(nats(np.asarray(part)) for part in got)), off)

        params, found[peer.who] = await world.clock.spend("evaluate", world.costs.evaluate, one)
        seconds = max(seconds, world.clock.time() - started)
    return before, found


def reencoded(node: Node, start: Params, end: Params) -> dict[str, Packed]:
    """The outer step from `start` to `end`, compressed as a peer would that only sends it again."""
    return node.engine.compressor.update(node.engine.compressor.init(), start, end)[1]
