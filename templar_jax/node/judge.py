"""Is a committed manifest valid? Fetches it and everything that it lists; says what is provably wrong with it.

Two kinds of failure are kept apart. *Invalid* (RefusedError) is what the right bytes themselves show, so that every
node finds the same. *Unserved* (StoreError) is everything else, wrong bytes included: whoever serves garbage to some
and the truth to others must not be able to make them disagree for good.
"""

import asyncio
from dataclasses import dataclass
from functools import partial

from templar_jax.compress.packed import Packed
from templar_jax.config import RunConfig
from templar_jax.errors import RefusedError, StoreError
from templar_jax.node.forkchoice import Candidate, Claim
from templar_jax.node.gather import fetch_sealed, open_contribution, reader_of, stagger
from templar_jax.node.patience import bounded, first_of
from templar_jax.node.world import Node, World
from templar_jax.store import contribution
from templar_jax.store.manifest import Manifest, decode_manifest, manifest_hash, max_manifest_bytes, verify_manifest
from templar_jax.store.refusals import PROVEN

_SHOWN = "late", "plaintext", "root", "run", "size", "standing", "steps", *sorted(PROVEN)
PROVABLE = frozenset(  # kinds of alarms that anybody can check from the chain and the bytes that its hashes pin
    ("false-evidence", "false-losses", "false-refusal", "false-weights", "omitted", "two-manifests")
    + tuple(f"manifest-{reason}" for reason in _SHOWN)
)
RELAYS = 16  # other buckets that are asked for a manifest which its leader does not serve


class Foreign(RefusedError):
    """A well-formed manifest that does not follow this node's state: its leader is wrong, or this node is."""


@dataclass(frozen=True)
class Verdict:
    """A canonical manifest with everything that it takes to apply it."""

    candidate: Candidate
    manifest: Manifest
    contributions: dict[int, dict[str, Packed]]  # by uid, opened and decoded


async def judge(node: Node, candidate: Candidate, claims: tuple[Claim, ...], seconds: float) -> Verdict:
    """The candidate's manifest with its contributions opened, if all of it is valid.

    Args:
      claims: of the window, all of them. They also name the buckets that may hold copies.
      seconds: time limit of everything.

    Raises:
      StoreError: something is not served at present; Foreign, RefusedError: invalid for ever; Stopped.
    """

    async def work() -> Verdict:
        manifest = await fetch_manifest(node.world, node.run, candidate, [claim.locator for claim in claims], seconds)
        check(node, manifest, candidate, claims)
        return Verdict(candidate, manifest, await _open_all(node, manifest, candidate, claims, seconds))

    what = f"checking the manifest of uid {candidate.uid} for window {candidate.message.window}"
    return await bounded(node.world, work(), seconds, what)


async def fetch_manifest(
    world: World, run: RunConfig, candidate: Candidate, relays: list[str], seconds: float
) -> Manifest:
    """The manifest whose hash the candidate committed, signed by it: from its bucket, else from a relay's.

    Raises:
      StoreError: nobody serves it.
    """
    digest = candidate.message.manifest_sha256
    key = contribution.manifest_key(candidate.message.window, digest)

    async def ask(locator: str) -> Manifest:
        try:
            data = await reader_of(world, locator).get(key, max_manifest_bytes(run.max_contributors), seconds)
            manifest = decode_manifest(data)
            if manifest_hash(manifest) == digest and verify_manifest(manifest, candidate.hotkey):
                return manifest
        except (RefusedError, ValueError) as error:
            raise StoreError(f"{key} in {locator}: {error}") from error
        raise StoreError(f"{key} in {locator} is not what uid {candidate.uid} committed and signed")

    places = dict.fromkeys([candidate.locator, *relays[:RELAYS]])
    return await first_of([partial(ask, locator) for locator in places], stagger(world, seconds))


def check(node: Node, manifest: Manifest, candidate: Candidate, claims: tuple[Claim, ...]) -> None:
    """RefusedError (with a provable reason) unless the manifest may follow this node's state."""
    run, state, message = node.run, node.state, candidate.message
    if manifest.run_id != bytes.fromhex(run.run_id) or manifest.window != message.window:
        raise RefusedError("run", "the manifest is of another run or window")
    if len(manifest.accepted) > run.max_contributors:
        raise RefusedError("size", f"{len(manifest.accepted)} contributions, at most {run.max_contributors}")
    notarised = {claim.uid: claim for claim in claims}
    for entry in manifest.accepted:
        claim = notarised.get(entry.uid)
        if claim is None or claim.hotkey != entry.hotkey or claim.sealed_sha256 != entry.sealed_sha256:
            raise RefusedError("late", f"uid {entry.uid} has no such commitment on chain by the deadline")
        if not claim.stands:
            raise RefusedError("standing", f"uid {entry.uid} earns too little on the chain to be added")
    if manifest.predecessor != state.predecessor:
        raise Foreign("history", f"it follows another manifest, {manifest.predecessor.hex()[:16]}")
    if (manifest.outer_step, manifest.root) != (state.outer_step, state.root):
        raise Foreign(
            "root",
            f"it says outer step {manifest.outer_step} with root {manifest.root.hex()[:16]}, "
            f"from the same manifests follow {state.outer_step} and {state.root.hex()[:16]}",
        )


async def _open_all(
    node: Node, manifest: Manifest, candidate: Candidate, claims: tuple[Claim, ...], seconds: float
) -> dict[int, dict[str, Packed]]:
    """The listed contributions, decoded, by uid. Every one must open: the leader vouched for it."""
    by_uid = {claim.uid: claim for claim in claims}

    async def fetch(uid: int) -> bytes:
        try:
            return await fetch_sealed(node, by_uid[uid], (candidate.locator,), manifest.window, seconds)
        except RefusedError as error:
            raise StoreError(f"the contribution of uid {uid} is not served: {error}") from error

    fetched = await asyncio.gather(*(fetch(entry.uid) for entry in manifest.accepted), return_exceptions=True)
    contributions = {}
    for entry, sealed in zip(manifest.accepted, fetched, strict=True):
        if isinstance(sealed, BaseException):
            raise sealed
        opened = await open_contribution(node, by_uid[entry.uid], manifest.window, sealed, entry.key)
        if opened.header.plaintext_sha256 != entry.plaintext_sha256:
            raise RefusedError("plaintext", f"uid {entry.uid}: the manifest lists another plaintext")
        if opened.header.claim.inner_steps != entry.inner_steps:
            raise RefusedError("steps", f"uid {entry.uid}: the manifest lists another number of inner steps")
        contributions[entry.uid] = opened.packed
    return contributions


def doubts(node: Node, verdict: Verdict, claims: tuple[Claim, ...]) -> list[tuple[str, str]]:
    """Where a valid manifest does not fit what this node saw: (kind, text) for alarms.

    "omitted" and "false-refusal" can be proven, from the chain and the bytes whose hash it holds. "suspect" cannot: a
    leader may honestly have seen less, or more, than this node.
    """
    manifest, found = verdict.manifest, []
    accepted, refused = {entry.uid for entry in manifest.accepted}, dict(manifest.refused)
    last = max(((c.block, c.uid) for c in claims if c.uid in accepted), default=(0, 0))
    for claim in claims:
        uid, why = claim.uid, refused.get(claim.uid)
        name = (manifest.window, uid, claim.sealed_sha256)
        if uid in accepted:
            if isinstance(outcome := node.outcomes.get(uid), RefusedError) and outcome.reason != "mirror":
                found.append(("suspect", f"uid {uid} is listed, yet this node could not open it: {outcome.reason}"))
        elif why is None:
            found.append(("omitted", f"uid {uid} committed in block {claim.block} and is not in the manifest"))
        elif why == "full" and (len(accepted) < node.run.max_contributors or (claim.block, uid) < last):
            found.append(("false-refusal", f"uid {uid} was refused (full), yet there was room for it"))
        elif why == "standing" and claim.stands:
            found.append(("false-refusal", f"uid {uid} was refused (standing), which the chain shows that it has"))
        elif why in PROVEN and name in node.opened:
            found.append(("false-refusal", f"uid {uid} was refused ({why}), yet the very bytes open"))
        elif why in ("fetch", "mirror") and name in node.sealed:
            found.append(("suspect", f"uid {uid} was refused ({why}), yet its object was served"))
        elif why not in ("full", "standing") and name in node.opened:
            found.append(("suspect", f"uid {uid} was refused ({why}), yet its object opens"))
    return found
