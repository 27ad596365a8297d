"""From theta_w to theta_{w+1}: find the canonical manifest of window w, check it, apply it.

The same code serves the live loop, catching up after a restart, and a joiner.
"""

from dataclasses import dataclass, replace

from templar_jax.chain.messages import ManifestMessage, parse_commitment
from templar_jax.chain.port import Neuron
from templar_jax.chain.wait import until_final
from templar_jax.compress.packed import Packed
from templar_jax.config import RunConfig
from templar_jax.errors import RefusedError, StoreError
from templar_jax.node import forkchoice
from templar_jax.node.forkchoice import Candidate, Claim
from templar_jax.node.gather import fetch_sealed, open_contribution
from templar_jax.node.timetable import Timetable, window_of
from templar_jax.node.world import GlobalState, Node, World
from templar_jax.store import contribution
from templar_jax.store.manifest import Manifest, decode_manifest, manifest_hash, max_manifest_bytes, verify_manifest
from templar_jax.telemetry.events import Alarm, ManifestApplied, Warned


class Stopped(Exception):
    """The node was asked to stop while it waited."""


class Diverged(Exception):
    """A canonical manifest continues another, longer history than this node's."""

    def __init__(self, candidate: Candidate, detail: str) -> None:
        super().__init__(detail)
        self.candidate = candidate


class Unavailable(RefusedError):
    """Something that the canonical history needs is served by nobody at present."""


@dataclass(frozen=True)
class Verdict:
    """A canonical manifest with everything that it takes to apply it."""

    candidate: Candidate
    manifest: Manifest
    contributions: dict[int, dict[str, Packed]]  # by uid, opened and decoded


async def window_claims(world: World, run: RunConfig, window: int) -> tuple[Claim, ...]:
    """On-time seal commitments of `window`: all of them once D(w) is final, before that those so far."""
    chain, timetable = world.chain, Timetable(window, run.window)
    registered = await chain.metagraph(timetable.seed_block)
    last = min(timetable.deadline, await chain.head())
    commitments = await chain.commitments(timetable.seed_block, last)
    return forkchoice.claims(commitments, registered, timetable)


async def ranked_leaders(world: World, run: RunConfig, window: int, claims: tuple[Claim, ...]) -> tuple[Neuron, ...]:
    """Leaders of `window` by rank, as of D(w)."""
    metagraph = await world.chain.metagraph(Timetable(window, run.window).deadline)
    return forkchoice.leaders(metagraph, claims, run.window.leaders)


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
        led = {m.window for m in messages if isinstance(m, ManifestMessage) and m.window >= first.window}
        target = min(led, default=decided + 1)
        if target > node.state.window:
            node.state = replace(node.state, window=min(target, decided + 1))
            continue
        await advance(node, await canonical(node, node.state.window))


async def canonical(node: Node, window: int) -> Verdict | None:
    """The canonical manifest of `window`, or None for an empty one. Waits for finality, never beyond M(w)+n*g.

    A manifest that is committed but served by nobody is waited for one more window; then the window counts as
    empty here, and if others did apply it the next manifest says so (`Diverged`).

    Raises:
      Stopped, Diverged, ChainError.
    """
    world, timetable = node.world, node.timetable(window)
    end = timetable.manifest_end
    settled: set[bytes] = set()  # manifest hashes that are judged and out
    while True:
        finalized = await world.chain.finalized()
        commitments = await world.chain.commitments(timetable.manifest, min(finalized, end - 1))
        waiting = False
        if commitments:
            claims = await window_claims(world, node.run, window)
            ranked = await ranked_leaders(world, node.run, window, claims)
            for candidate in forkchoice.candidates(commitments, ranked, timetable):
                if candidate.message.manifest_sha256 in settled:
                    continue
                try:
                    return await _judge(node, candidate, claims)
                except (StoreError, Unavailable) as error:
                    waiting = True
                    if finalized >= end - 1:
                        world.emit(Warned(f"window {window}: manifest of uid {candidate.uid} not served: {error}"))
                    break  # an earlier candidate may still turn out valid: later ones must wait
                except RefusedError as error:
                    settled.add(candidate.message.manifest_sha256)
                    world.emit(Alarm(window, f"manifest-{error.reason}", candidate.uid, str(error)))
        if finalized >= end - 1 and (not waiting or finalized >= end + node.run.window.blocks):
            return None
        if not await until_final(world.chain, world.clock, finalized + 1, world.stop):
            raise Stopped


async def _judge(node: Node, candidate: Candidate, claims: tuple[Claim, ...]) -> Verdict:
    """The candidate's manifest with its contributions opened, if all of it is valid.

    Raises:
      StoreError, Unavailable: something is not served at present; RefusedError: invalid for ever; Diverged.
    """
    manifest = await _fetch_manifest(node, candidate)
    _check(node, manifest, candidate, claims)
    return Verdict(candidate, manifest, await _open_all(node, manifest, candidate, claims))


async def _fetch_manifest(node: Node, candidate: Candidate) -> Manifest:
    world = node.world
    own = candidate.locator == world.bucket.locator
    reader = world.bucket if own else world.open_reader(candidate.locator)
    key = contribution.manifest_key(candidate.message.window, candidate.message.manifest_sha256)
    data = await reader.get(key, max_manifest_bytes(node.run.max_contributors), timeout=10 * world.chain.block_seconds)
    return decode_manifest(data)


def _check(node: Node, manifest: Manifest, candidate: Candidate, claims: tuple[Claim, ...]) -> None:
    """RefusedError (with a provable reason) unless the manifest may follow this node's state; or Diverged."""
    run, state, message = node.run, node.state, candidate.message
    if manifest_hash(manifest) != message.manifest_sha256:
        raise RefusedError("hash", "the object is not what its leader committed")
    if not verify_manifest(manifest, candidate.hotkey):
        raise RefusedError("signature", "the leader's signature does not verify")
    if manifest.run_id != bytes.fromhex(run.run_id) or manifest.window != message.window:
        raise RefusedError("run", "the manifest is of another run or window")
    if len(manifest.accepted) > run.max_contributors:
        raise RefusedError("size", f"{len(manifest.accepted)} contributions, at most {run.max_contributors}")
    notarised = {claim.uid: claim for claim in claims}
    for entry in manifest.accepted:
        claim = notarised.get(entry.uid)
        if claim is None or claim.hotkey != entry.hotkey or claim.sealed_sha256 != entry.sealed_sha256:
            raise RefusedError("late", f"uid {entry.uid} has no such commitment on chain by the deadline")
    found = (manifest.predecessor, manifest.outer_step, manifest.root)
    if found != (state.predecessor, state.outer_step, state.root):
        detail = (
            f"it follows outer step {manifest.outer_step} with root {manifest.root.hex()[:16]}, "
            f"this node stands at {state.outer_step} with root {state.root.hex()[:16]}"
        )
        if manifest.outer_step > state.outer_step:
            raise Diverged(candidate, detail)
        raise RefusedError("history", detail)


async def _open_all(
    node: Node, manifest: Manifest, candidate: Candidate, claims: tuple[Claim, ...]
) -> dict[int, dict[str, Packed]]:
    """The listed contributions, decoded, by uid. Every one must open: the leader vouched for it."""
    by_uid = {claim.uid: claim for claim in claims}
    seconds = 30 * node.world.chain.block_seconds
    contributions = {}
    for entry in manifest.accepted:
        try:
            sealed = await fetch_sealed(node, by_uid[entry.uid], (candidate.locator,), manifest.window, seconds)
        except RefusedError as error:
            raise Unavailable("unavailable", f"contribution of uid {entry.uid}: {error}") from error
        opened = await open_contribution(node, by_uid[entry.uid], manifest.window, sealed, entry.key)
        if opened.header.plaintext_sha256 != entry.plaintext_sha256:
            raise RefusedError("plaintext", f"uid {entry.uid}: the manifest lists another plaintext")
        contributions[entry.uid] = opened.packed
    return contributions


async def advance(node: Node, verdict: Verdict | None) -> None:
    """Applies the canonical manifest of the state's window (None: the window is empty) to `node.state`."""
    world, state = node.world, node.state
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
    node.sealed.clear()
    node.opened.clear()
