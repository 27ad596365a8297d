"""The default rules: pay for what a contribution adds, times the effort that the peer's own data prove.

    value of a window = gain (capped, relative to the honest scale) * freshness * norm
                        (0 where a known peer sent nothing)
    merit             = shrunken mean of values * effort
    pay               = merit ** power * (1 / cluster size, averaged) * penalty * receipt * audit
                        * (finding_scale while a finding stands)

The parts are in gain, effort, similarity, norm, rating, penalty and receipt; this file only puts them together.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from templar_jax.errors import DataError
from templar_jax.incentive import canonical, effort, gain, norm, penalty, rating, receipt, similarity
from templar_jax.incentive.config import IncentiveConfig
from templar_jax.incentive.effort import Effort
from templar_jax.incentive.evidence import Identity, PeerEvidence, WindowEvidence, ordered
from templar_jax.incentive.rating import Rating
from templar_jax.incentive.similarity import Likeness
from templar_jax.incentive.state import Score
from templar_jax.incentive.statistics import half_power
from templar_jax.incentive.weights import normalised


@dataclass(frozen=True)
class Standing:
    """All that is remembered of one identity."""

    peer: Identity
    rating: Rating
    effort: Effort = Effort()
    alone: float = 0.0  # sum of 1 / cluster size, fading
    alone_count: float = 0.0
    penalty: float = 1.0
    receipt: float = 1.0
    audit: float = 1.0
    evaluated: int = -1  # last window with an evaluation; -1: never, and nothing is paid


@dataclass(frozen=True)
class State:
    """The validator's whole memory. `standings` ascend by identity."""

    rules: str = "default"
    window: int = -1  # the last one that is in
    standings: tuple[Standing, ...] = ()


def step(config: IncentiveConfig, state: State, evidence: WindowEvidence) -> tuple[State, dict[Identity, Score]]:
    """Takes in one window. DataError for one that is not later than the last, or contradicts itself."""
    if evidence.window <= state.window:
        raise DataError(f"window {evidence.window} after window {state.window}: take windows in ascending order")
    evidence = ordered(evidence)
    registered = set(evidence.registered)
    before = {known.peer: known for known in state.standings if known.peer in registered}
    start = rating.newcomer(config, _rated(config, before))
    seen = {peer.peer: peer for peer in evidence.peers}
    standings = before | {peer: Standing(peer, start) for peer in seen if peer not in before}
    trust = {peer: merit(config, standing) * share_alone(standing) for peer, standing in standings.items()}
    found, likeness = effort.gaps(evidence), similarity.likeness(config, evidence)
    gains = gain.gains(config, gain.improvements(evidence), trust)
    honest, normal = effort.honest_gap(found, trust), norm.factors(config, evidence, trust)
    values = {who: _value(gains[who], likeness[who].fresh * normal.get(who, 1.0)) for who in gains}
    count_absent = _most_are_here(trust, seen)

    def after(standing: Standing) -> Standing:
        peer = seen.get(standing.peer)
        if peer is None or not peer.accepted:
            return _without(config, standing, peer.violations if peer else (), count_absent)
        step0, audit = receipt.after(config, standing.receipt, peer), receipt.audited(config, standing.audit, peer)
        checked = replace(standing, receipt=step0, audit=audit)
        if peer.losses is None:
            return replace(checked, penalty=penalty.recover(config, standing.penalty))
        return _evaluated(config, checked, evidence.window, values, found[peer.peer], honest, likeness[peer.peer])

    new = tuple(after(standings[peer]) for peer in sorted(standings))
    scores = {
        one.peer: score(
            config,
            one,
            gains.get(one.peer),
            found.get(one.peer),
            likeness.get(one.peer, Likeness()),
            normal.get(one.peer, 1.0),
            seen.get(one.peer),
        )
        for one in new
    }
    return State(window=evidence.window, standings=new), scores


def _rated(config: IncentiveConfig, standings: Mapping[Identity, Standing]) -> list[tuple[float, float]]:
    """(mean, standing) of those who were ever evaluated."""
    known = (standings[peer] for peer in sorted(standings))
    return [(rating.mean(config, one.rating), merit(config, one)) for one in known if one.evaluated >= 0]


def _most_are_here(trust: Mapping[Identity, float], seen: Mapping[Identity, PeerEvidence]) -> bool:
    """Whether an absence is the peer's and not the network's: half of all standing was accepted in this window."""
    present = math.fsum(trust[peer] for peer in trust if peer in seen and seen[peer].accepted)
    return present > 0.0 and 2.0 * present >= math.fsum(trust.values())


def _without(config: IncentiveConfig, standing: Standing, violations: tuple[str, ...], count_absent: bool) -> Standing:
    """After a window without a valid contribution: worth nothing, and a broken rule costs at once."""
    factor = penalty.add(config, standing.penalty, violations)
    worth = rating.add(config, standing.rating, 0.0) if violations or count_absent else standing.rating
    return replace(standing, penalty=factor, rating=worth)


def _value(gain: float, factor: float) -> float:
    """A factor below 1 makes a loss no smaller."""
    return gain * factor if gain > 0.0 else gain


def _evaluated(
    config: IncentiveConfig,
    standing: Standing,
    window: int,
    values: Mapping[Identity, float],
    gap: effort.Gap,
    honest: float,
    likeness: Likeness,
) -> Standing:
    worth = standing.rating
    if standing.peer in values:  # empty in a window whose scale tells nothing
        worth = rating.add(config, worth, values[standing.peer])
    return replace(
        standing,
        rating=worth,
        effort=effort.add(config, standing.effort, gap, honest),
        alone=config.memory * standing.alone + 1.0 / likeness.cluster,
        alone_count=config.memory * standing.alone_count + 1.0,
        penalty=penalty.recover(config, standing.penalty),
        evaluated=window,
    )


def merit(config: IncentiveConfig, standing: Standing) -> float:
    """Shrunken mean of values, never negative, times effort."""
    return max(0.0, rating.mean(config, standing.rating)) * effort.share(config, standing.effort)


def share_alone(standing: Standing) -> float:
    """1 for a peer unlike all others; 1 / size for a steady member of a cluster."""
    return standing.alone / standing.alone_count if standing.alone_count else 1.0


def pay(config: IncentiveConfig, standing: Standing) -> float:
    """What the peer is owed relative to others; 0 before its first evaluation."""
    if standing.evaluated < 0:
        return 0.0
    scale = config.finding_scale if effort.finding(config, standing.effort) else 1.0
    return (
        half_power(merit(config, standing), config.power)
        * share_alone(standing)
        * standing.penalty
        * standing.receipt
        * standing.audit
        * scale
    )


def selection_bound(config: IncentiveConfig, standing: Standing) -> float:
    """What a peer is worth at least, for choosing who contributes."""
    bound = max(0.0, rating.lower_bound(config, standing.rating)) * effort.share(config, standing.effort)
    return bound * share_alone(standing) * standing.penalty * standing.receipt * standing.audit


def score(
    config: IncentiveConfig,
    standing: Standing,
    gain: float | None,
    gap: effort.Gap | None,
    likeness: Likeness,
    normal: float = 1.0,
    seen: PeerEvidence | None = None,
) -> Score:
    """The standing after a window, and the window's own figures where there are any."""
    parts = [
        ("rating", rating.mean(config, standing.rating)),
        ("effort", effort.share(config, standing.effort)),
        ("share", share_alone(standing)),
        ("penalty", standing.penalty),
        ("receipt", standing.receipt),
        ("audit", standing.audit),
        ("fresh", likeness.fresh),
        ("norm", normal),
    ]
    parts += [("gain", gain)] if gain is not None else []
    parts += [("gap", gap.d)] if gap is not None else []
    findings = [
        name
        for name, is_found in (
            ("effort", effort.finding(config, standing.effort)),
            ("stale", likeness.fresh < 1.0),
            ("cluster", likeness.cluster > 1),
            ("norm", normal < 1.0),
        )
        if is_found
    ]
    return Score(pay(config, standing), tuple(parts), (*findings, *receipt.findings(config, seen)))


def weights(config: IncentiveConfig, state: State) -> dict[Identity, float]:
    """Shares of pay, sum 1; empty where nobody has earned anything."""
    return normalised({one.peer: pay(config, one) for one in state.standings})


def encode(state: State) -> bytes:
    return canonical.encode(state)


def decode(line: bytes) -> State:
    state = canonical.decode(State, line)
    peers = [one.peer for one in state.standings]
    if state.rules != "default" or peers != sorted(set(peers)):
        raise DataError("not a state of the default rules: start from the recorded evidence")
    return state
