"""The parts of the default rules, one by one."""

import dataclasses
import math

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from incentive_story import FIFTH, HALF, HONEST, STALE, Player, evidence, identity

from templar_jax.incentive import default, effort, gain, norm, penalty, rating, select, similarity, weights
from templar_jax.incentive.config import IncentiveConfig
from templar_jax.incentive.evidence import Identity
from templar_jax.incentive.statistics import half_power, mean_and_variance, weighted_quantile

CONFIG = IncentiveConfig()
VALUES = st.floats(-100, 100)
PEERS = [Identity(f"peer-{number:02d}", number) for number in range(16)]


@hypothesis.given(st.lists(st.tuples(VALUES, st.floats(0, 10)), min_size=1, max_size=12), st.floats(0, 1), st.randoms())
def test_weighted_quantile(pairs, share, rng):
    found = weighted_quantile(pairs, share)
    assert found in [value for value, _ in pairs]
    rng.shuffle(pairs)
    assert weighted_quantile(pairs, share) == found
    equal = sorted(value for value, _ in pairs)
    assert weighted_quantile([(value, 1.0) for value in equal], 0.5) == equal[(len(equal) - 1) // 2]


@hypothesis.given(st.lists(VALUES, min_size=2, max_size=20))
def test_moments_against_numpy(values):
    assert mean_and_variance(values) == pytest.approx((np.mean(values), np.var(values, ddof=1)), rel=1e-9, abs=1e-9)


def test_powers():
    for power in (1.0, 1.5, 2.0):
        assert half_power(0.7, power) == pytest.approx(0.7**power)
    with pytest.raises(ValueError, match="choose"):
        half_power(0.7, 3.0)


def test_gap_is_the_standardised_difference_and_free_of_scale():
    seen = evidence([HONEST], 30, 0)
    losses = seen.peers[0].losses
    assert losses
    before, after = np.array(losses.assigned_before), np.array(losses.assigned_after)
    others = np.array(seen.unassigned_before) - losses.unassigned_after
    sd = math.sqrt(((before - after).var(ddof=1) + others.var(ddof=1)) / 2)
    gap = effort.gaps(seen)[seen.peers[0].peer]
    assert gap.d == pytest.approx(((before - after).mean() - others.mean()) / (sd * math.sqrt(2)))
    assert gap.n == 64
    scaled = dataclasses.replace(
        losses, assigned_after=tuple(b - 3 * (b - a) for b, a in zip(before, after, strict=True))
    )
    scaled = dataclasses.replace(scaled, unassigned_after=tuple(np.array(seen.unassigned_before) - 3 * others))
    tripled = dataclasses.replace(seen, peers=(dataclasses.replace(seen.peers[0], losses=scaled),))
    assert effort.gaps(tripled)[seen.peers[0].peer].d == pytest.approx(gap.d)


def test_gap_of_a_contribution_that_does_nothing_is_zero():
    seen = evidence([HONEST], 0, 0)
    losses = seen.peers[0].losses
    assert losses
    nothing = dataclasses.replace(
        losses, assigned_after=losses.assigned_before, unassigned_after=seen.unassigned_before
    )
    seen = dataclasses.replace(seen, peers=(dataclasses.replace(seen.peers[0], losses=nothing),))
    assert effort.gaps(seen)[seen.peers[0].peer].d == 0.0


def test_gains_have_the_scale_of_those_with_standing_and_are_capped():
    improvement = {PEERS[0]: 2.0, PEERS[1]: 4.0, PEERS[2]: 9.0, PEERS[3]: -90.0}
    standing = {PEERS[0]: 0.1, PEERS[1]: 1.0, PEERS[2]: 1.0, PEERS[3]: 0.0}
    found = gain.gains(CONFIG, improvement, standing)
    assert found == {PEERS[0]: 0.5, PEERS[1]: 1.0, PEERS[2]: 1.25, PEERS[3]: -1.25}
    losers = {peer: -1.0 for peer in PEERS[4:]}
    with_losers = gain.gains(CONFIG, improvement | losers, standing | dict.fromkeys(losers, 0.01))
    assert {peer: with_losers[peer] for peer in improvement} == found
    assert gain.gains(CONFIG, {PEERS[0]: -1.0}, {PEERS[0]: 1.0}) == {}  # a window that made everything worse


def test_norms_count_up_to_four_times_that_of_those_with_standing():
    seen = evidence([Player(norm=size) for size in (1.0, 1.0, 1.0, 80.0, 1000.0, 0.0)], 0, 0)
    everybody = norm.factors(CONFIG, seen, dict.fromkeys(seen.registered, 1.0))
    assert [everybody.get(peer) for peer in seen.registered] == [1, 1, 1, pytest.approx(0.05, rel=0.1), 0.05, None]
    planted = dict.fromkeys(seen.registered[:3], 0.01) | dict.fromkeys(seen.registered[3:], 1.0)
    assert norm.factors(CONFIG, seen, planted)[seen.registered[4]] > 0.05  # the median is of standing, not of heads
    few = dataclasses.replace(seen, peers=seen.peers[:1] + seen.peers[4:5])
    assert set(norm.factors(CONFIG, few, everybody).values()) == {1.0}


def pooled(player, windows: int, seed: int, start: int = 0) -> effort.Effort:
    state = effort.Effort()
    players = [HONEST] * 7 + [player]
    for window in range(start, windows):
        seen = evidence(players, window, seed)
        gaps = effort.gaps(seen)
        honest = effort.honest_gap(gaps, dict.fromkeys(gaps, 1.0))
        state = effort.add(CONFIG, state, gaps[identity(player, 7, window)], honest)
    return state


@pytest.mark.parametrize("seed", range(6))
def test_effort_orders_by_work(seed):
    shares = [effort.share(CONFIG, pooled(player, 30, seed)) for player in (STALE, FIFTH, HALF, HONEST)]
    assert shares == sorted(shares) and shares[3] > 0.75 and shares[0] < 0.15
    assert not effort.finding(CONFIG, pooled(HONEST, 30, seed))
    assert effort.finding(CONFIG, pooled(STALE, 40, seed))


def test_a_finding_ends_when_work_begins():
    state = pooled(STALE, 40, 0)
    for _ in range(60):
        state = effort.add(CONFIG, state, effort.Gap(0.45, 64.0), 0.45)
    assert not effort.finding(CONFIG, state) and effort.share(CONFIG, state) > 0.9


def test_false_findings_are_as_rare_as_promised():
    """Honest peers at threshold ln 100: a run of 100 windows sees a false finding at most about once."""
    config = dataclasses.replace(CONFIG, finding_log=math.log(100), finding_share=1.0)  # the worst honest case
    rng, found = np.random.default_rng(0), 0
    for _ in range(300):
        state = effort.Effort()
        for d in rng.normal(0.23, 1 / 8, size=20):
            state = effort.add(config, state, effort.Gap(float(d), 64.0), 0.23)
            found += effort.finding(config, state)
    assert 0 < found / (300 * 20) < 0.01 * 2


def test_rating_shrinks_and_bounds():
    newcomer = rating.newcomer(CONFIG, [])
    assert rating.mean(CONFIG, newcomer) == CONFIG.newcomer_most
    state = newcomer
    means = []
    for _ in range(40):
        state = rating.add(CONFIG, state, 1.0)
        means.append(rating.mean(CONFIG, state))
    assert means == sorted(means) and 0.85 < means[-1] < 1
    assert rating.lower_bound(CONFIG, newcomer) < rating.lower_bound(CONFIG, state) < means[-1]
    poor = rating.newcomer(CONFIG, [(0.1, 1.0), (0.2, 1.0)])
    assert rating.mean(CONFIG, poor) == pytest.approx(0.1)  # never better than those who stand


def test_penalties_cost_at_once_and_fade():
    after = penalty.add(CONFIG, 1.0, ("late", "late"))
    assert after == 0.75
    assert penalty.add(CONFIG, 1.0, ("hash", "late")) == 0.375
    assert penalty.add(CONFIG, 1.0, ("equivocation",)) == 0.0
    for _ in range(40):
        after = penalty.recover(CONFIG, after)
    assert 0.999 < after < 1.0


def similar(count: int, cosines: dict[tuple[int, int], float], stale: dict[int, float]):
    seen = evidence([HONEST] * count, 5, 0)
    who = [peer.peer for peer in seen.peers]
    pairs = [
        dataclasses.replace(pair, cosine=cosines.get((who.index(pair.first), who.index(pair.second)), pair.cosine))
        for pair in seen.pairs
    ]
    peers = [
        dataclasses.replace(peer, stale_cosine=stale.get(number, peer.stale_cosine))
        for number, peer in enumerate(seen.peers)
    ]
    found = similarity.likeness(CONFIG, dataclasses.replace(seen, peers=tuple(peers), pairs=tuple(pairs)))
    return [found[peer] for peer in who]


def test_clusters_are_connected_components_of_what_is_too_alike():
    found = similar(12, {(8, 9): 0.95, (9, 10): 0.9, (2, 3): 0.8}, {})
    assert [one.cluster for one in found] == [1, 1, 2, 2, 1, 1, 1, 1, 3, 3, 3, 1]
    assert all(one.fresh == 1.0 for one in found)


def test_stale_contributions_are_scaled_by_likeness():
    found = similar(12, {}, {4: 0.95, 5: 0.6})
    assert found[4].fresh == pytest.approx(CONFIG.similarity_floor) and 0.3 < found[5].fresh < 0.7
    assert all(found[number].fresh == 1.0 for number in range(12) if number not in (4, 5))


def test_similarity_is_off_below_eight_peers():
    assert all(one == similarity.Likeness() for one in similar(7, {(0, 1): 1.0}, {2: 1.0}))


def test_copies_of_earlier_windows():
    seen = evidence([HONEST] * 12, 5, 0)
    earlier = tuple(dataclasses.replace(pair, second_window=4) for pair in seen.pairs)
    copier = earlier[0].first
    earlier = (dataclasses.replace(earlier[0], cosine=1.0), *earlier[1:])
    found = similarity.likeness(CONFIG, dataclasses.replace(seen, pairs=earlier))
    assert {peer for peer, one in found.items() if one.fresh < 1} == {copier}
    assert found[copier].fresh == pytest.approx(CONFIG.similarity_floor) and found[copier].cluster == 1


def test_weights_for_the_chain():
    shares = weights.normalised({PEERS[1]: 3.0, PEERS[0]: 1.0, PEERS[2]: 0.0})
    assert shares == {PEERS[0]: 0.25, PEERS[1]: 0.75}
    assert weights.for_chain(shares, {PEERS[0]: 7, PEERS[1]: 3}) == {3: 65535, 7: 21845}
    assert weights.for_chain(shares, {PEERS[0]: 7}) == {7: 65535}  # the other has been replaced
    half = {peer: share / 2 for peer, share in shares.items()}
    assert weights.for_chain(half, {PEERS[0]: 7, PEERS[1]: 3}, burn_uid=0) == {0: 65535, 3: 49151, 7: 16384}
    assert weights.for_chain({}, {}) == {} and weights.for_chain({}, {}, burn_uid=1) == {1: 65535}


def test_selection_takes_the_sure_and_sees_everybody():
    state = default.State()
    players = [HONEST] * 6 + [STALE] * 4
    for window in range(25):
        state, _ = default.step(CONFIG, state, evidence(players, window, 0))
    who = [identity(player, number, 0) for number, player in enumerate(players)]
    fresh = [Identity(f"new-{number}", 9) for number in range(3)]
    chosen = select.contributors(CONFIG, state, who + fresh, 6, b"seed")
    assert chosen == select.contributors(CONFIG, state, reversed(who + fresh), 6, b"seed")
    assert len(set(chosen) & set(who[:6])) == 4 and len(set(chosen) & set(fresh)) == 2
    drawn = [peer for seed in range(30) for peer in select.contributors(CONFIG, state, who + fresh, 6, bytes([seed]))]
    assert set(fresh) < set(drawn)
    assert select.contributors(CONFIG, state, fresh, 6, b"seed") == tuple(fresh)
    assert set(select.for_evaluation(state, who + fresh, b"seed")[:3]) == set(fresh)
