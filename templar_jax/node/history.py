"""From theta_w to theta_{w+1}: find the canonical manifest of window w and apply it.

The same code serves the live loop, catching up after a restart, and a joiner.
"""

from dataclasses import replace
from functools import partial

from templar_jax.chain.messages import ManifestMessage, parse_commitment
from templar_jax.chain.port import Neuron
from templar_jax.chain.wait import until_final
from templar_jax.config import RunConfig
from templar_jax.errors import RefusedError, StoreError
from templar_jax.node import forkchoice
from templar_jax.node.forkchoice import Candidate, Claim
from templar_jax.node.judge import Foreign, Verdict, doubts, judge
from templar_jax.node.patience import Stopped, insist
from templar_jax.node.timetable import Timetable, window_of
from templar_jax.node.votes import outvoted
from templar_jax.node.world import GlobalState, Node, World
from templar_jax.store import contribution
from templar_jax.store.manifest import encode_manifest, manifest_hash
from templar_jax.telemetry.events import Alarm, ManifestApplied

FOREIGN_WINDOWS = 2  # in a row in which others continued another history, until this node gives up its own


class Diverged(Exception):
    """Window after window, more of the others continue another history than this node's."""


async def window_claims(world: World, run: RunConfig, window: int) -> tuple[Claim, ...]:
    """On-time seal commitments of `window`: all of them once D(w) is final, before that those so far."""
    chain, timetable = world.chain, Timetable(window, run.window)
    registered = await chain.metagraph(timetable.seed_block)
    last = min(timetable.deadline, await chain.head())
    commitments = await chain.commitments(timetable.seed_block, last)
    found = forkchoice.claims(commitments, registered, timetable)
    return forkchoice.with_standing(found, await chain.metagraph(last), run.outer.standing)


async def ranked_leaders(world: World, run: RunConfig, window: int, claims: tuple[Claim, ...]) -> tuple[Neuron, ...]:
    """Leaders of `window` by rank, as of D(w)."""
    metagraph = await world.chain.metagraph(Timetable(window, run.window).deadline)
    return forkchoice.leaders(metagraph, claims, run.window.leaders)


async def window_candidates(
    world: World, run: RunConfig, window: int, newest: int, claims: tuple[Claim, ...]
) -> tuple[Candidate, ...]:
    """Manifests that leaders of `window` committed in their slots, up to block `newest`, in chain order."""
    timetable = Timetable(window, run.window)
    commitments = await world.chain.commitments(timetable.manifest, min(newest, timetable.manifest_end - 1))
    if not commitments:
        return ()
    return forkchoice.candidates(commitments, await ranked_leaders(world, run, window, claims), timetable)


async def catch_up(node: Node) -> None:
    """Applies every window that is decided already, so that `node.state` stands at the present one.

    Windows without any manifest commitment (a network that slept) are passed over together.

    Raises:
      Stopped, Diverged, ChainError.
    """
    world, config = node.world, node.run.window
    while True:
        finalized = await world.chain.finalized()
        first = node.timetable(node.state.window)
        decided = window_of(finalized - (first.manifest_end - first.start), config)  # newest window that is over
        if node.state.window > decided:
            return
        commitments = await world.chain.commitments(first.manifest, finalized)
        messages = [parsed.message for c in commitments if (parsed := parse_commitment(c.fields)) is not None]
        led = {m.window for m in messages if isinstance(m, ManifestMessage)}
        for window in sorted(w for w in led if first.window <= w <= decided):
            if world.stop.is_set():  # there may be thousands, and none waits for a block
                raise Stopped
            node.state = replace(node.state, window=window)
            await advance(node, await canonical(node, window))
            await watch_leaders(node, window)
        node.state = replace(node.state, window=decided + 1)


async def canonical(node: Node, window: int) -> Verdict | None:
    """The canonical manifest of `window`, or None for an empty one. Waits for finality, and a grace of one slot more.

    Why nodes agree: candidates, their order and the claims are read from finalised blocks, and "invalid" is what the
    right bytes show (see judge), so two nodes differ only in what they are *served*. The first candidate that is not
    invalid is waited for as long as there is patience; whoever gets hold of a manifest puts a copy into its own
    bucket, where the others look for it, and leaders of all ranks mirror ciphertexts. So a manifest that is served to
    anyone before its window's last slot is over reaches everyone within the grace.

    Why nobody waits for ever: once the last slot is final and the grace is over, what is not served is passed over,
    and the next candidate, or the empty window, counts. (The leader of the next rank commits its own manifest when it
    cannot get a valid one of a lower rank.) A leader that serves one node alone in the last moment can make it differ
    from the rest: that node, like one whose link was down, finds itself outvoted (see votes) and rejoins.

    Raises:
      Stopped, ChainError.
    """
    world, timetable = node.world, node.timetable(window)
    end, grace = timetable.manifest_end, node.run.window.leader_slot
    give_up = max(world.clock.time(), await world.chain.eta(end + grace)) + grace * world.chain.block_seconds
    settled: set[bytes] = set()  # manifest hashes that are judged and out
    while True:
        finalized = await world.chain.finalized()
        over = finalized >= end - 1
        patient = finalized < end + grace or world.clock.time() < give_up
        unserved = False
        claims = await window_claims(world, node.run, window) if finalized >= timetable.manifest else ()
        for candidate in await window_candidates(world, node.run, window, finalized, claims):
            if candidate.message.manifest_sha256 in settled:
                continue
            seconds = max(give_up - world.clock.time(), grace * world.chain.block_seconds)
            try:
                verdict = await judge(node, candidate, claims, seconds)
            except StoreError as error:
                unserved = True
                if patient:
                    break  # it may still turn out valid: later ones must wait
                world.emit(Alarm(window, "unserved", candidate.uid, f"its manifest was passed over: {error}"))
            except RefusedError as error:
                settled.add(candidate.message.manifest_sha256)
                if not isinstance(error, Foreign):
                    node.invalid.add(candidate.message.manifest_sha256)
                world.emit(Alarm(window, f"manifest-{error.reason}", candidate.uid, str(error)))
            else:
                await _accept(node, verdict, claims)
                return verdict
        if over and not (unserved and patient):
            return None
        if not await until_final(world.chain, world.clock, finalized + 1, world.stop):
            raise Stopped


async def _accept(node: Node, verdict: Verdict, claims: tuple[Claim, ...]) -> None:
    """Passes the manifest on, for nodes that its leader does not serve, and says what it seems to leave out."""
    world, manifest, candidate = node.world, verdict.manifest, verdict.candidate
    for kind, text in doubts(node, verdict, claims):
        world.emit(Alarm(manifest.window, kind, candidate.uid, text))
    if candidate.hotkey == world.hotkey:
        return
    key = contribution.manifest_key(manifest.window, manifest_hash(manifest))
    until = world.clock.time() + world.chain.block_seconds
    put = partial(world.bucket.put, key, encode_manifest(manifest))
    await insist(world, put, until, f"window {manifest.window}: passing on the manifest")


async def watch_leaders(node: Node, window: int) -> None:
    """Looks back at the window applied last: alarms about leaders with two manifests, and doubt about oneself.

    Raises:
      Diverged: window after window, more of the others hold another manifest than this node does.
    """
    world, timetable = node.world, node.timetable(window)
    newest = await world.chain.finalized()
    if node.watched >= window or timetable.seed_block < 0 or newest < timetable.manifest_end - 1:
        return
    node.watched = window
    claims = await window_claims(world, node.run, window)
    found = await window_candidates(world, node.run, window, newest, claims)
    for uid, blocks in forkchoice.equivocations(found):
        text = f"two manifests of window {window}, committed in blocks {blocks[0]} and {blocks[1]}"
        world.emit(Alarm(window, "two-manifests", uid, text))
    if found:  # a window that nobody led says nothing
        node.foreign = node.foreign + 1 if await outvoted(node, found, claims) else 0
    node.invalid.clear()
    if node.foreign >= FOREIGN_WINDOWS:
        raise Diverged(f"in {node.foreign} windows the others applied other manifests than this node")


async def advance(node: Node, verdict: Verdict | None) -> None:
    """Applies the canonical manifest of the state's window (None: the window is empty) to `node.state`."""
    world, state = node.world, node.state
    node.sealed.clear()
    node.opened.clear()
    node.outcomes.clear()
    if verdict is None:
        node.state = replace(state, window=state.window + 1)
        world.emit(ManifestApplied(state.window, state.outer_step, (), (), state.root.hex()))
        return

    def work() -> GlobalState:
        params, momentum = state.params, state.momentum
        if verdict.contributions:
            params, momentum = node.engine.outer.apply(params, momentum, verdict.contributions)
        return GlobalState(
            window=state.window + 1,
            outer_step=state.outer_step + bool(verdict.contributions),
            predecessor=manifest_hash(verdict.manifest),
            root=node.engine.root(params),
            params=params,
            momentum=momentum,
        )

    node.state = await world.clock.spend("apply", world.costs.apply, work)
    accepted = tuple(entry.uid for entry in verdict.manifest.accepted)
    world.emit(
        ManifestApplied(state.window, node.state.outer_step, accepted, verdict.manifest.refused, node.state.root.hex())
    )
