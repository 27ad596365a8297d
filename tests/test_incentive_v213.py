"""The reference's rules against outputs of the reference's own functions."""

import json
from pathlib import Path

import pytest

from templar_jax.incentive import v213
from templar_jax.incentive.evidence import Identity, Losses, Pair, PeerEvidence, WindowEvidence

A, B, C = (Identity(name, 1) for name in "abc")
BURN_UID = "1"  # in the vectors


@pytest.fixture(scope="module")
def vectors() -> dict:
    return json.loads((Path(__file__).parent / "data" / "incentive_v213.json").read_text())


def peer(uid) -> Identity:
    return Identity(f"{int(uid):03d}", 0)


def test_weights(vectors):
    for case in vectors["weights"]:
        found = v213.weights_of({peer(uid): score for uid, score in case["final_scores"].items()})
        expected = {peer(uid): weight for uid, weight in case["weights"].items() if uid != BURN_UID}
        assert found == pytest.approx(expected, rel=1e-6)  # the reference computes in f32
        assert case["weights"][BURN_UID] == v213.BURN


def test_openskill_series(vectors):
    ratings = {peer(uid): (v213.MU, v213.SIGMA) for uid in range(8)}
    for window in vectors["openskill"]:
        ratings |= v213.rate(ratings, {peer(u): s for u, s in zip(window["uids"], window["scores"], strict=True)})
        for uid, after in window["after"].items():
            mu, sigma = ratings[peer(uid)]
            assert (mu, sigma) == pytest.approx((after["mu"], after["sigma"]), rel=1e-12)
            assert mu - 3 * sigma == pytest.approx(after["ordinal"], abs=1e-10)


def test_sync_average_and_seed(vectors):
    for case in vectors["sync"]:
        assert v213.sync_score(case["avg_steps_behind"]) == pytest.approx(case["sync_score"], rel=1e-12)
    average = 0.0
    for case in vectors["binary_moving_average"]:
        average = v213.moving_average(average, case["improvement_own"], case["improvement_random"])
        assert average == pytest.approx(case["bma"], rel=1e-12)
    for case in vectors["window_seed"]:
        assert v213.window_seed(case["uid"], case["window"]) == case["seed"]


def window(number: int, peers, pairs=(), registered=(A, B, C)) -> WindowEvidence:
    return WindowEvidence("run", number, number, 0.2, registered, (10.0, 10.0), tuple(peers), tuple(pairs))


def good(who: Identity, order: int, gain: float, **more) -> PeerEvidence:
    losses = Losses((10.0, 10.0), (10 - 2 * gain, 10 - 2 * gain), (10 - gain, 10 - gain))
    return PeerEvidence(who, order, sealed=(5, order), accepted=True, losses=losses, **more)


def settled(windows: int = 30) -> v213.State:
    """Three peers, a > b > c, after so many windows."""
    state = v213.State()
    for number in range(windows):
        state, _ = v213.step(state, window(number, [good(A, 0, 0.3), good(B, 1, 0.2), good(C, 2, 0.1)]))
    return state


def final(state: v213.State, who: Identity) -> float:
    return next(one.final for one in state.standings if one.peer == who)


def test_a_series_ends_in_final_scores():
    state = settled()
    standing = state.standings[0]
    assert standing.average == pytest.approx(1 - 0.95**30)
    assert final(state, A) == (standing.mu - 3 * standing.sigma) * standing.average > final(state, B)
    assert sum(v213.weights(state).values()) == pytest.approx(0.5)


def test_missing_inactive_and_out_of_step_cost_a_quarter():
    state = settled()
    late = PeerEvidence(A, 0, violations=("late",))
    after, _ = v213.step(state, window(30, [late, good(B, 1, 0.2), good(C, 2, 0.1)]))
    assert final(after, A) == 0.75 * final(state, A) > 0
    behind, _ = v213.step(state, window(30, [PeerEvidence(A, 0, accepted=True, steps_behind=4.0)]))
    assert final(behind, A) == 0.75 * final(state, A)
    for windows in (1, 2, 3):  # nothing at all; after three windows it is as if it had never been here
        state_before = state
        state, _ = v213.step(state, window(29 + windows, [good(B, 1, 0.2), good(C, 2, 0.1)]))
        if windows < 3:
            assert final(state, A) == 0.75 * final(state_before, A)
    assert v213.Standing(A) in state.standings


def test_a_failed_gather_costs_everything():
    after, _ = v213.step(settled(), window(30, [PeerEvidence(p, 0, violations=("late",)) for p in (A, B)]))
    assert final(after, A) == final(after, B) == 0.0


@pytest.mark.parametrize(("overlap", "left", "corner"), [(0.39, 1, 0), (0.4, 0.5, 0), (0.5, 0, 0), (0.6, 0, 230)])
def test_overlap_punishes_the_later(overlap, left, corner):
    state, pair = settled(), Pair(A, B, 30, 0.2, overlap)
    peers = [PeerEvidence(A, 0, sealed=(5, 1), accepted=True), PeerEvidence(B, 1, sealed=(5, 0), accepted=True)]
    after, _ = v213.step(state, window(30, peers, [pair]))
    assert final(after, A) == left * final(state, A)  # a committed second
    assert final(after, B) == final(state, B)
    assert next(one.corner_until for one in after.standings if one.peer == A) == corner
    assert (A in v213.weights(after)) == (left > 0)


def test_overlap_costs_nothing_in_the_first_outer_steps_nor_when_unresolved():
    state, pair = settled(10), Pair(A, B, 10, 0.2, 0.9)
    peers = [PeerEvidence(A, 0, sealed=(5, 1), accepted=True), PeerEvidence(B, 1, sealed=(5, 0), accepted=True)]
    after, _ = v213.step(state, window(10, peers, [pair]))
    assert final(after, A) == final(state, A)
    state, pair = settled(), Pair(A, B, 30, 0.2, 0.9)
    peers = [PeerEvidence(p, 0, sealed=(5, 1), accepted=True) for p in (A, B)]
    after, _ = v213.step(state, window(30, peers, [pair]))
    assert (final(after, A), final(after, B)) == (final(state, A), final(state, B))
