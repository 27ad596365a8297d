"""What a validator saw in one window: everything that pay depends on, and nothing else.

One line of JSON a window (`encode`, `decode`); rules are pure functions of the state before and this. Peers are known
by (hotkey, block of registration): a uid that changes hands is somebody else.
"""

import hashlib
import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import NamedTuple

from templar_jax.errors import DataError
from templar_jax.incentive import canonical

WORST_NATS = 1e6  # recorded where a loss is not finite


class Identity(NamedTuple):
    """Who is paid."""

    hotkey: str
    registered: int  # block of registration


@dataclass(frozen=True)
class Losses:
    """Summed nats of each sequence of one peer's evaluation, f64. "After" is with beta times its clipped update."""

    assigned_before: tuple[float, ...]
    assigned_after: tuple[float, ...]
    unassigned_after: tuple[float, ...]  # its "before" is the window's: the same sequences for every peer


@dataclass(frozen=True)
class Audit:
    """What came of a full audit."""

    outcome: str  # "done", "absent" (nothing was served in time), "wrong" (not what the header's roots pin)
    sent: float = 0.0  # likeness of what was sent with what the same steps gave here: see node/rerun
    overlap: float = 0.0  # share of the sent elements that would have been sent here too
    state: float = 0.0  # likeness of the private state that the window ended with
    continuous: bool | None = None  # it began with what the last header ended with; None: not known, or it began anew


@dataclass(frozen=True)
class PeerEvidence:
    """One peer that gave anything to judge in the window: a contribution, or a broken rule."""

    peer: Identity
    uid: int
    sealed: tuple[int, int] | None = None  # (block, index in it) of the commitment that counts
    accepted: bool = False  # valid and on time, whether or not the manifest had room for it
    violations: tuple[str, ...] = ()  # reason codes of broken rules (store.refusals, node): see penalty.py
    inner_steps: int = 0  # as the signed header claims; nothing is paid for a claim
    norm: float = 0.0  # of the decoded contribution, before clipping
    stale_cosine: float | None = None  # largest with a re-encoded aggregate of the last windows
    step0: float | None = None  # claimed loss of inner step 0 over the recomputed one, less 1; None: not recomputed
    audit: Audit | None = None  # None: not picked, or no time
    steps_behind: float = 0.0  # median of outer steps; v213 only
    losses: Losses | None = None  # None: the validator had no time for it


@dataclass(frozen=True)
class Pair:
    """Likeness of `first`'s contribution of this window and `second`'s of this or an earlier window."""

    first: Identity
    second: Identity  # the same identity only with an earlier window
    second_window: int
    cosine: float  # on the union of kept indices
    overlap: float  # indices that both kept over indices that one kept


@dataclass(frozen=True)
class WindowEvidence:
    """One window. `step` of the rules takes these in ascending order of window."""

    run_id: str
    window: int
    outer_step: int
    beta: float  # share of the outer step at which updates were evaluated
    registered: tuple[Identity, ...]  # everyone registered at the deadline
    unassigned_before: tuple[float, ...]  # summed nats, f64
    peers: tuple[PeerEvidence, ...]
    pairs: tuple[Pair, ...] = ()


def nats(losses: Iterable[float]) -> tuple[float, ...]:
    """Losses as they are recorded: f32 or f64 numbers to f64, what is not finite as WORST_NATS."""
    exact = (float(loss) for loss in losses)
    return tuple(min(loss, WORST_NATS) if math.isfinite(loss) else WORST_NATS for loss in exact)


def ordered(evidence: WindowEvidence) -> WindowEvidence:
    """The same evidence in canonical order. DataError where it contradicts itself."""
    peers = tuple(sorted(evidence.peers, key=lambda peer: peer.peer))
    pairs = tuple(sorted(evidence.pairs, key=lambda pair: (pair.first, pair.second_window, pair.second)))
    evidence = replace(evidence, registered=tuple(sorted(evidence.registered)), peers=peers, pairs=pairs)
    _check(evidence)
    return evidence


def _check(evidence: WindowEvidence) -> None:
    known = [peer.peer for peer in evidence.peers]
    if len(set(known)) != len(known) or len(set(evidence.registered)) != len(evidence.registered):
        raise DataError(f"evidence of window {evidence.window} names an identity twice")
    if not set(known) <= set(evidence.registered):
        raise DataError(f"evidence of window {evidence.window} judges somebody who is not registered")
    for peer in evidence.peers:
        if (peer.accepted and peer.violations) or (peer.losses and not peer.accepted):
            raise DataError(f"evidence of window {evidence.window}: uid {peer.uid} is both accepted and refused")
        if peer.audit and (not peer.accepted or peer.audit.outcome not in ("done", "absent", "wrong")):
            raise DataError(f"evidence of window {evidence.window}: no such audit of uid {peer.uid}")
        if (seen := peer.losses) is not None:
            fit = len(seen.assigned_before) == len(seen.assigned_after) > 1
            if (
                not fit
                or len(seen.unassigned_after) != len(evidence.unassigned_before)
                or not seen.unassigned_after[1:]
            ):
                raise DataError(f"evidence of window {evidence.window}: numbers of losses of uid {peer.uid} do not fit")
    for pair in evidence.pairs:
        if pair.second_window > evidence.window or (
            pair.second_window == evidence.window and pair.first == pair.second
        ):
            raise DataError(f"evidence of window {evidence.window} compares a contribution with itself or a later one")


def encode(evidence: WindowEvidence) -> bytes:
    """One canonical line, the same whatever the order of peers and pairs. DataError as in `ordered`."""
    return canonical.encode(ordered(evidence))


def decode(line: bytes) -> WindowEvidence:
    """The evidence in one line. DataError for anything that `encode` did not write."""
    evidence = canonical.decode(WindowEvidence, line)
    if ordered(evidence) != evidence:
        raise DataError(f"evidence of window {evidence.window} is not in canonical order")
    return evidence


def digest(evidence: WindowEvidence) -> str:
    """sha256 of the line, hex: what a validator publishes beside its weights."""
    return hashlib.sha256(encode(evidence)).hexdigest()
