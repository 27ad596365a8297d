"""The reference's rules (Templar v2.1.3), to measure against: equal to its own functions' outputs.

A window's relative improvements on random data are ranked by OpenSkill (Plackett-Luce); the sign of the gap between
assigned and random data is averaged; final = (mu - 3 sigma) * max(0, average) * sync score; penalties multiply it.

What is fitted to our evidence: "missing or late" is a known peer with a broken rule, "inactive" one that gave nothing
at all; of two contributions that overlap, the one committed later is the offender, and where neither is, nobody.
"""

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from openskill.models import PlackettLuce

from templar_jax.errors import DataError
from templar_jax.incentive import canonical
from templar_jax.incentive.evidence import Identity, Losses, Pair, WindowEvidence, ordered
from templar_jax.incentive.state import Score

GATHER, RESERVE = 20, 10  # ranks that are paid
GATHER_SHARE, RESERVE_DECAY = 0.75, 0.5
BURN = 0.5
BETA, TAU, MU, SIGMA = 7.0, 0.1, 25.0, 25.0 / 3.0
AVERAGE_KEEP = 0.95
SYNC_STEPS, SYNC_POWER, SYNC_LIMIT = 5.0, 2.5, 3.0
PENALTY = 0.75
GATHER_SUCCESS = 0.4  # below, missing costs everything
INACTIVE_WINDOWS = 3
OVERLAPS = ((0.6, 0.0), (0.5, 0.0), (0.4, 0.5))  # from this overlap on: what is left of the score
CORNER_OVERLAP, CORNER_WINDOWS, OVERLAP_FIRST_STEP = 0.6, 200, 20


@dataclass(frozen=True)
class Standing:
    """What the reference keeps of one peer."""

    peer: Identity
    mu: float = MU
    sigma: float = SIGMA
    average: float = 0.0  # of the signs
    final: float = 0.0
    inactive: int = 0  # windows without anything, in a row
    corner_until: int = 0  # first window in which it may be paid again


@dataclass(frozen=True)
class State:
    """`standings` ascend by identity."""

    rules: str = "v213"
    window: int = -1
    standings: tuple[Standing, ...] = ()


@functools.cache
def _model() -> PlackettLuce:
    return PlackettLuce(beta=BETA, tau=TAU)


def rate(ratings: Mapping[Identity, tuple[float, float]], scores: Mapping[Identity, float]):
    """{peer: (mu, sigma)} of the peers in `scores` after one window; nothing changes with fewer than two."""
    if len(scores) < 2:
        return {peer: ratings[peer] for peer in scores}
    model, order = _model(), sorted(scores)
    teams = [[model.rating(mu=ratings[peer][0], sigma=ratings[peer][1])] for peer in order]
    rated = model.rate(teams, scores=[scores[peer] for peer in order])
    return {peer: (team[0].mu, team[0].sigma) for peer, team in zip(order, rated, strict=True)}


def sync_score(steps_behind: float) -> float:
    """1 in step, 0 from five outer steps on."""
    return (1.0 - min(steps_behind, SYNC_STEPS) / SYNC_STEPS) ** SYNC_POWER


def moving_average(average: float, own: float, random: float) -> float:
    """One more sign: whether the improvement on assigned data exceeds that on random data."""
    return AVERAGE_KEEP * average + (1.0 - AVERAGE_KEEP) * (1.0 if own > random else -1.0)


def window_seed(uid: int, window: int) -> int:
    """The seed of a miner's samples."""
    return (uid * 1_000_003 ^ window) & 0xFFFFFFFF


def weights_of(final: Mapping[Identity, float]) -> dict[Identity, float]:
    """Shares of the positive scores by rank; they sum to 1 - BURN, or nobody is paid."""
    ranked = sorted((peer for peer in final if final[peer] > 0.0), key=lambda peer: (-final[peer], peer))
    gather, reserve = ranked[:GATHER], ranked[GATHER : GATHER + RESERVE]
    if not gather:
        return {}
    ramp = [2.0 - place / max(1, len(gather) - 1) for place in range(len(gather))]
    shares = [GATHER_SHARE * step / math.fsum(ramp) for step in ramp]
    decaying = [RESERVE_DECAY**place for place in range(len(reserve))]
    if reserve:
        first = min((1.0 - GATHER_SHARE) / math.fsum(decaying), RESERVE_DECAY * shares[-1])
        shares += [first * part for part in decaying]
    total = math.fsum(shares)
    return {peer: (1.0 - BURN) * share / total for peer, share in sorted(zip(gather + reserve, shares, strict=True))}


def relative_improvements(losses: Losses, unassigned_before: tuple[float, ...]) -> tuple[float, float]:
    """(on assigned, on random data): fall of the loss over the loss before; 0 where there was none."""

    def relative(before: tuple[float, ...], after: tuple[float, ...]) -> float:
        start = math.fsum(before)
        return (start - math.fsum(after)) / start if start > 0.0 else 0.0

    assigned = relative(losses.assigned_before, losses.assigned_after)
    return assigned, relative(unassigned_before, losses.unassigned_after)


def step(state: State, evidence: WindowEvidence) -> tuple[State, dict[Identity, Score]]:
    """Takes in one window. DataError for one that is not later than the last, or contradicts itself."""
    if evidence.window <= state.window:
        raise DataError(f"window {evidence.window} after window {state.window}: take windows in ascending order")
    evidence = ordered(evidence)
    registered = set(evidence.registered)
    known = {one.peer: one for one in state.standings if one.peer in registered}
    known |= {seen.peer: Standing(seen.peer) for seen in evidence.peers if seen.peer not in known}
    improved = {
        seen.peer: relative_improvements(seen.losses, evidence.unassigned_before)
        for seen in evidence.peers
        if seen.losses
    }
    ratings = rate(
        {p: (one.mu, one.sigma) for p, one in known.items()}, {p: random for p, (_, random) in improved.items()}
    )
    for peer, (own, random) in improved.items():
        mu, sigma = ratings[peer]
        known[peer] = replace(known[peer], mu=mu, sigma=sigma, average=moving_average(known[peer].average, own, random))
    for seen in evidence.peers:
        if seen.losses:
            one = known[seen.peer]
            final = (one.mu - 3.0 * one.sigma) * max(0.0, one.average) * sync_score(seen.steps_behind)
            known[seen.peer] = replace(one, final=final)
    new = _penalised(known, evidence)
    scores = {peer: _score(new[peer], improved.get(peer)) for peer in sorted(new)}
    return State(window=evidence.window, standings=tuple(new[peer] for peer in sorted(new))), scores


def _penalised(known: dict[Identity, Standing], evidence: WindowEvidence) -> dict[Identity, Standing]:
    seen = {peer.peer: peer for peer in evidence.peers}
    accepted = sum(peer.accepted for peer in seen.values())
    missing = PENALTY if accepted >= GATHER_SUCCESS * len(seen) else 0.0
    new = {}
    for peer, one in known.items():
        if peer not in seen:
            one = replace(_scaled(one, PENALTY), inactive=one.inactive + 1)
            one = Standing(peer, corner_until=one.corner_until) if one.inactive >= INACTIVE_WINDOWS else one
        else:
            factor = 1.0 if seen[peer].accepted else missing
            factor *= PENALTY if seen[peer].steps_behind > SYNC_LIMIT else 1.0
            one = replace(_scaled(one, factor), inactive=0)
        new[peer] = one
    if evidence.outer_step >= OVERLAP_FIRST_STEP:
        order = {peer: found.sealed for peer, found in seen.items() if found.accepted and found.sealed}
        for pair in evidence.pairs:
            _punish_overlap(new, order, pair, evidence.window)
    return new


def _scaled(one: Standing, factor: float) -> Standing:
    return replace(one, final=one.final * factor) if one.final > 0.0 else one


def _punish_overlap(new: dict[Identity, Standing], order: Mapping[Identity, tuple[int, int]], pair: Pair, window: int):
    """The later of two contributions of this window that overlap too much."""
    factor = next((left for least, left in OVERLAPS if pair.overlap >= least), 1.0)
    both = pair.first in order and pair.second in order and pair.second_window == window
    if factor == 1.0 or not both or order[pair.first] == order[pair.second]:
        return
    offender = max(pair.first, pair.second, key=lambda peer: order[peer])
    if factor > 0.0:
        new[offender] = _scaled(new[offender], factor)
        return
    corner = window + CORNER_WINDOWS if pair.overlap >= CORNER_OVERLAP else new[offender].corner_until
    new[offender] = Standing(offender, corner_until=corner)


def _score(one: Standing, improved: tuple[float, float] | None) -> Score:
    parts = [("ordinal", one.mu - 3.0 * one.sigma), ("average", one.average)]
    if improved is not None:
        parts += [("improvement_assigned", improved[0]), ("improvement", improved[1])]
    return Score(max(0.0, one.final), tuple(parts))


def weights(state: State) -> dict[Identity, float]:
    """Shares that sum to 1 - BURN."""
    return weights_of({one.peer: one.final for one in state.standings if one.corner_until <= state.window})


def encode(state: State) -> bytes:
    return canonical.encode(state)


def decode(line: bytes) -> State:
    state = canonical.decode(State, line)
    peers = [one.peer for one in state.standings]
    if state.rules != "v213" or peers != sorted(set(peers)):
        raise DataError("not a state of the rules v213: start from the recorded evidence")
    return state
