"""One window of a validator, in the order of the timetable.

[D(w)] fetch, mirror, open what the miners sent -> lead if it is this node's turn -> canonical manifest -> theta_{w+1}
-> score window w on theta_w, beside everything else, until the next window needs the time -> weights

Scoring never delays the leader's duty: it runs beside it, and begins no evaluation that would end after D(w+1).
"""

import asyncio
import contextlib
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from templar_jax.chain.messages import EvidenceMessage, encode_commitment
from templar_jax.chain.wait import until_final
from templar_jax.errors import ChainError, ConfigError, DataError, RefusedError, StoreError
from templar_jax.incentive import canonical, default, replay, select
from templar_jax.incentive import evidence as evidences
from templar_jax.incentive.config import IncentiveConfig
from templar_jax.incentive.evidence import Identity, WindowEvidence
from templar_jax.incentive.replay import UNLINKED, Outcome, Record
from templar_jax.incentive.state import Rules, Score
from templar_jax.incentive.weights import for_chain
from templar_jax.node import audit_check, challenge, resume, scoring, scrutiny
from templar_jax.node.audit_check import Past
from templar_jax.node.forkchoice import Claim
from templar_jax.node.gather import cache_key
from templar_jax.node.history import advance, watch_leaders, window_claims
from templar_jax.node.history import canonical as canonical_manifest
from templar_jax.node.lead import collect, lead, my_rank
from templar_jax.node.lifecycle import Duty
from templar_jax.node.miner import emit_heldout
from templar_jax.node.patience import Stopped, bounded, insist
from templar_jax.node.records import Records, read_all
from templar_jax.node.scoring import Earlier, Scene, Seen
from templar_jax.node.scrutiny import Watch
from templar_jax.node.world import Node, Opened
from templar_jax.store.contribution import evidence_key
from templar_jax.telemetry.events import Challenged, Noted, Scored, Warned, WeightsSet
from templar_jax.train.offload import copy


@dataclass
class Memory:
    """A validator's own state: that of its rules, and what it compares new contributions with."""

    rules: Rules
    config: IncentiveConfig
    records: Records
    state: Any
    link: str  # pins all evidence so far
    earlier: Earlier = field(default_factory=Earlier)
    audits: Past = field(default_factory=Past)
    watch: Watch = field(default_factory=Watch)  # of the other validators
    task: "asyncio.Task[None] | None" = None  # scores the last window, beside the present one


def validator(records: Records, rules: Rules, config: IncentiveConfig | None = None) -> Duty:
    """What `lifecycle.run_node` needs to run a validator: the memory is restored from `records`.

    Raises:
      DataError, StoreError: records that are not what was recorded.
    """
    memory = remember(records, rules, config or IncentiveConfig())

    async def finish(node: Node) -> None:
        if memory.task is not None:
            await memory.task

    async def abort() -> None:
        if memory.task is not None:
            memory.task.cancel()
            await asyncio.gather(memory.task, return_exceptions=True)

    return Duty(trains=False, run_window=partial(run_window, memory), finish=finish, abort=abort)


def remember(records: Records, rules: Rules, config: IncentiveConfig) -> Memory:
    """The state that the records lead to: the saved one where it is of these rules, and what came after it."""
    known = list(read_all(records))
    state, saved = rules.init(), records.state()
    if saved is not None:
        with contextlib.suppress(DataError):  # of other rules, or damaged: the evidence says it all again
            state = rules.decode(saved)
    windows = (evidences.decode(record.evidence) for record in known)
    state = replay.fold(rules, state, (seen for seen in windows if seen.window > state.window))
    link = canonical.decode(Outcome, known[-1].outcome).link if known else UNLINKED
    return Memory(rules, config, records, state, link)


async def run_window(memory: Memory, node: Node) -> bool:
    """Sees window `node.state.window` through and moves the state on to the next; its scoring goes on beside.

    Raises:
      Stopped: asked to stop; Diverged: see history; ChainError: the chain stalls.
    """
    world, window = node.world, node.state.window
    timetable = node.timetable(window)
    resume.tidy(node)
    idle = asyncio.ensure_future(emit_heldout(node))
    try:
        with world.phase("wait", window):
            if not await until_final(world.chain, world.clock, timetable.deadline, world.stop):
                raise Stopped
        claims = await window_claims(world, node.run, window)
        with world.phase("lead", window):
            await _close(node, window, claims)
        await watch_leaders(node, window - 1)  # asks peers, who may take their time
        with world.phase("wait", window):
            verdict = await canonical_manifest(node, window)
        await idle
    finally:
        idle.cancel()
        await asyncio.gather(idle, return_exceptions=True)
    before, outcomes = node.state, dict(node.outcomes) or _listed(node, window, claims)
    ends = audit_check.ends_said(node, window, claims)
    with world.phase("apply", window):
        await advance(node, verdict)
    if memory.task is not None:
        await memory.task  # its time was over at D(w)
    shared = node.state.params is before.params  # an empty window: evaluation needs buffers of its own
    params = copy(before.params, offloaded=False) if shared else before.params
    seen = Seen(before, params, claims, outcomes, ends)
    memory.task = asyncio.ensure_future(_score(memory, node, seen, None if shared else node.state.params))
    return True


async def _close(node: Node, window: int, claims: tuple[Claim, ...]) -> None:
    """Collects what was sent, and closes the window if that is this node's duty."""
    world, timetable = node.world, node.timetable(window)
    rank = await my_rank(node, window, claims)
    if rank is not None:
        await lead(node, window, claims, rank)
        return
    cutoff = await world.chain.eta(timetable.manifest - 1) + node.run.window.leader_slot * world.chain.block_seconds / 2
    if (left := cutoff - world.clock.time()) <= 0:
        return  # a node that comes back late
    with contextlib.suppress(StoreError):
        await bounded(world, collect(node, window, claims, cutoff), left, "collecting")


def _listed(node: Node, window: int, claims: tuple[Claim, ...]) -> dict[int, Opened | RefusedError]:
    """What the canonical manifest lists, by uid: all that is left to judge for a node that came too late to look."""
    names = {claim.uid: cache_key(claim, window) for claim in claims}
    return {uid: node.opened[name] for uid, name in names.items() if name in node.opened}


async def _score(memory: Memory, node: Node, seen: Seen, after: Any) -> None:
    """Scores one window and sets weights when they are due. What fails costs this window's scores and is said."""
    world, window = node.world, seen.state.window
    try:
        await _score_window(memory, node, seen, after)
        left = await world.chain.eta(node.timetable(window + 1).deadline) - world.clock.time()
        with contextlib.suppress(StoreError):  # the others' evidence can wait for the next window
            looking = scrutiny.look(node, memory.watch, window, memory.records.windows())
            await bounded(world, looking, left, "reading evidence")
    except Stopped:
        return
    except (ChainError, ConfigError, DataError, StoreError) as error:
        world.emit(Warned(f"window {window}: not scored to the end: {error}"))
    except Exception as error:  # whatever a contribution sets off on a device: it must not end the leader's duty
        world.emit(Warned(f"window {window}: scoring set off {type(error).__name__}: {error}: report this"))


async def _score_window(memory: Memory, node: Node, seen: Seen, after: Any) -> None:
    world, window = node.world, seen.state.window
    if window <= memory.state.window:  # scored before a restart
        return await _set_weights(memory, node, window)
    if not await until_final(world.chain, world.clock, node.timetable(window).evaluation_block, world.stop):
        return
    until = await world.chain.eta(node.timetable(window + 1).deadline)
    expected = await challenge.expect(node, window, seen.params, seen.claims)
    health = asyncio.ensure_future(challenge.compare(node, window, seen.claims, expected))
    try:
        await _score_peers(memory, node, seen, after, until)
        await _set_weights(memory, node, window)
        world.emit(Challenged(window, await health))
    finally:
        health.cancel()
        await asyncio.gather(health, return_exceptions=True)


async def _score_peers(memory: Memory, node: Node, seen: Seen, after: Any, until: float) -> None:
    """Evidence, scores and their record; no evaluation begins after clock time `until`."""
    world, window, started = node.world, seen.state.window, node.world.clock.time()
    scene = await scoring.survey(node, seen)
    again = None
    if after is not None:  # before evaluation takes theta_w's buffers
        work = partial(scoring.reencoded, node, seen.params, after)
        again = await world.clock.spend("compress", world.costs.compress, work)
    order = _order(memory, scene)
    params, expected = await scrutiny.forecast(node, seen, scene, order)
    memory.watch.forecasts += [expected] if expected is not None else []
    seen = replace(seen, params=params)
    found = await _evidence(memory, node, seen, scene, order, until)
    earlier = memory.earlier
    earlier.contributions[window] = scoring.contributions(scene)
    if again is not None:
        earlier.aggregates[window] = again
    earlier.forget(window + 1 - scoring.LOOK_BACK)
    if not scene.peers and not seen.outcomes:
        return  # a window in which there was nothing to see says nothing of anybody
    scores, record, outcome = _take_in(memory, found)
    refused = {uid: o.reason for uid, o in seen.outcomes.items() if isinstance(o, Exception)}
    world.emit(_scored(found, scene.uids, scores, outcome, refused, world.clock.time() - started))
    put = partial(world.bucket.put, evidence_key(window), record.evidence + record.outcome)
    await insist(world, put, until, f"window {window}: publishing the evidence")


async def _evidence(
    memory: Memory, node: Node, seen: Seen, scene: Scene, order: list[Identity], until: float
) -> WindowEvidence:
    """Evaluation and, in the time that it leaves, the audit."""
    window = seen.state.window
    case = await audit_check.spared(node, window, audit_check.begin(node, seen, scene, memory.audits))
    if case is None:
        return await scoring.evaluate(node, seen, scene, memory.earlier, order, until)
    try:
        found = await scoring.evaluate(node, seen, scene, memory.earlier, order, until)
        publishing = node.world.chain.block_seconds  # is left for what comes after the audit
        again = audit_check.finish(node, seen, scene, case, until - publishing)
        audit = await audit_check.spared(node, window, again)
    finally:
        case.states.cancel()
    who = case.peer.who
    return replace(found, peers=tuple(replace(p, audit=audit) if p.peer == who else p for p in found.peers))


def _order(memory: Memory, scene: Scene) -> list[Identity]:
    """Whom to evaluate first: who was not seen for longest; ties, and everything under other rules, are drawn."""
    state = memory.state if isinstance(memory.state, default.State) else default.State()
    return select.for_evaluation(state, scene.accepted, scene.seed)


def _take_in(memory: Memory, found: WindowEvidence) -> tuple[dict[Identity, Score], Record, Outcome]:
    """The rules' next state, kept durably before anybody hears of it."""
    state, scores, record, outcome = replay.take_in(memory.rules, memory.config, memory.state, memory.link, found)
    memory.records.save(found.window, record, memory.rules.encode(state))
    memory.state, memory.link = state, outcome.link
    return scores, record, outcome


def _scored(
    found: WindowEvidence,
    uids: dict[Identity, int],
    scores: dict[Identity, Score],
    outcome: Outcome,
    refused: dict[int, str],
    seconds: float,
) -> Scored:
    known = {uids[peer]: score for peer, score in scores.items() if peer in uids}
    return Scored(
        window=found.window,
        beta=found.beta,
        evaluated=sum(peer.losses is not None for peer in found.peers),
        accepted=sum(peer.accepted for peer in found.peers),
        scores={uid: {"pay": score.pay, **dict(score.parts)} for uid, score in known.items()},
        findings={uid: score.findings for uid, score in known.items() if score.findings},
        violations={peer.uid: peer.violations for peer in found.peers if peer.violations},
        weights={uids[peer]: share for peer, share in outcome.weights if peer in uids},
        refused=refused,
        link=outcome.link,
        seconds=seconds,
    )


async def _set_weights(memory: Memory, node: Node, window: int) -> None:
    """Pins the evidence and sets weights, as often as the chain allows. Raises ChainError."""
    world = node.world
    metagraph = await world.chain.metagraph()
    me = metagraph.by_hotkey(world.hotkey)
    if me is None or not me.permit:
        world.emit(Noted("no permit to set weights: this hotkey needs stake", "permit"))
        return
    if me.last_update and metagraph.block + 1 < me.last_update + node.config.weights_blocks:
        return
    uids = {Identity(neuron.hotkey, neuron.registered): neuron.uid for neuron in metagraph.neurons}
    weights = for_chain(memory.rules.weights(memory.state), uids)
    if not weights:
        return  # nobody has earned anything yet
    message = EvidenceMessage(memory.state.window, bytes.fromhex(memory.link))
    try:
        await world.chain.commit(world.key, encode_commitment(world.bucket.locator, message))
    except ChainError as error:  # the evidence stands in the bucket all the same
        world.emit(Warned(f"window {window}: the chain refused the hash of the evidence: {error}"))
    await world.chain.set_weights(world.key, weights)
    world.emit(WeightsSet(window, await world.chain.head(), weights))


def read_records(records: Records) -> list[replay.Replayed]:
    """Recomputes everything that was recorded. Raises DataError, StoreError; DataError where there is nothing."""
    if not records.windows():
        raise DataError("no records of any window: name a validator's folder, e.g. .templar/RUN/validator-0/evidence")
    return replay.replay(read_all(records))
