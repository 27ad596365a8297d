"""Yuma consensus: values worked out by hand, and what must hold for any input."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from templar_jax.chain import yuma


def run(stake, weights, bonds=None, **options):
    stake = np.array(stake, float)
    n = len(stake)
    options.setdefault("permit_N", stake > 0)
    options.setdefault("active_N", np.ones(n, bool))
    options.setdefault("emission", 1.0)
    return yuma.epoch(stake, np.array(weights, float), np.zeros((n, n)) if bonds is None else bonds, **options)


def test_one_validator_by_hand():
    # It gives 3:1, so does the incentive; it holds all bonds, so all dividends; each side gets half the emission.
    result = run([10, 0, 0], [[0, 3, 1], [0, 0, 0], [0, 0, 0]], emission=100.0)
    np.testing.assert_allclose(result.consensus_N, [0, 0.75, 0.25])
    np.testing.assert_allclose(result.incentive_N, [0, 0.75, 0.25])
    np.testing.assert_allclose(result.dividends_N, [1, 0, 0])
    np.testing.assert_allclose(result.emission_N, [50, 37.5, 12.5])
    np.testing.assert_allclose(result.bonds_NN[0], [0, 0.075, 0.025])


def test_a_minority_is_clipped_by_hand():
    # Validators 0, 1, 2 with stake .4, .4, .2; miners 3 and 4. Validator 2 gives all to its friend 4.
    # Support of miner 3: w 0.8 (.4), then 0.6 (.8 of stake) -> median 0.6; miner 4: 1.0 (.2), 0.4 (.6) -> 0.4.
    weights = np.zeros((5, 5))
    weights[0, 3:], weights[1, 3:], weights[2, 3:] = (0.8, 0.2), (0.6, 0.4), (0, 1)
    result = run([4, 4, 2, 0, 0], weights)
    np.testing.assert_allclose(result.consensus_N[3:], [0.6, 0.4])
    np.testing.assert_allclose(result.trust_N[:3], [0.8, 1.0, 0.4])
    # Ranks: miner 3: .4*.6 + .4*.6 = .48; miner 4: .4*.2 + .4*.4 + .2*.4 = .32.
    np.testing.assert_allclose(result.incentive_N[3:], [0.6, 0.4])
    # Bonds (first epoch): columns (.6, .6, 0) and (.2, .4, .4) normalised: (.5, .5, 0) and (.2, .4, .4); times the
    # incentive: .38, .46, .16; times stake: .152, .184, .032 of .368.
    np.testing.assert_allclose(result.dividends_N[:3], np.array([0.152, 0.184, 0.032]) / 0.368)


def test_bonds_move_by_a_tenth_each_epoch():
    weights = [[0, 1], [0, 0]]
    bonds = np.zeros((2, 2))
    for expected in (0.1, 0.19, 0.271):
        bonds = run([1, 0], weights, bonds).bonds_NN
        assert bonds[0, 1] == pytest.approx(expected)


def test_bonds_come_to_rest():
    # The local chain skips epochs that change nothing: every average must reach a fixed point, also one that fades.
    bonds = np.array([[0, 0.7], [0, 0]])
    for weights in ([[0, 1], [0, 0]], [[0, 0], [0, 0]]):
        for _ in range(250):
            before, bonds = bonds, run([1, 0], weights, bonds).bonds_NN
        np.testing.assert_array_equal(bonds, before)
        np.testing.assert_allclose(bonds, weights, atol=1e-8)


def test_early_bonds_earn_more():
    # Two equal validators agree today; the first has held the bond for longer: .9 * .5 + .1 = .55 against .1.
    bonds = np.zeros((3, 3))
    bonds[0, 2] = 0.5
    result = run([1, 1, 0], [[0, 0, 1], [0, 0, 1], [0, 0, 0]], bonds)
    np.testing.assert_allclose(result.dividends_N, [0.55 / 0.65, 0.1 / 0.65, 0])


def test_half_of_the_stake_is_a_majority():
    weights = np.array([[0, 0, 0.9, 0.1], [0, 0, 0.2, 0.8]] + [[0.0] * 4] * 2)
    np.testing.assert_allclose(yuma.weighted_median(np.array([0.5, 0.5, 0, 0]), weights), [0, 0, 0.9, 0.8])
    np.testing.assert_allclose(yuma.weighted_median(np.array([0.49, 0.51, 0, 0]), weights), [0, 0, 0.2, 0.8])


def test_own_weight_no_permit_and_inactivity_count_for_nothing():
    weights = [[5, 5, 0], [0, 0, 1], [1, 1, 1]]  # 0 votes also for itself, 2 has no permit
    result = run([1, 0, 3], weights, permit_N=np.array([True, False, False]))
    np.testing.assert_allclose(result.incentive_N, [0, 1, 0])
    idle = run([1, 1, 0], [[0, 0, 1], [1, 0, 0], [0] * 3], active_N=np.array([True, False, True]))
    np.testing.assert_allclose(idle.incentive_N, [0, 0, 1])


def test_without_weights_emission_follows_stake():
    np.testing.assert_allclose(run([3, 1, 0], np.zeros((3, 3)), emission=8).emission_N, [6, 2, 0])
    active = np.array([False, True, True])
    np.testing.assert_allclose(run([3, 1, 0], np.zeros((3, 3)), active_N=active).emission_N, [0, 1, 0])
    assert not run([0, 0], np.zeros((2, 2))).emission_N.any()
    assert run([], np.zeros((0, 0))).emission_N.shape == (0,)


@given(st.integers(1, 12), st.integers(0, 2**32 - 1))
def test_shares_sum_to_one_and_a_minority_cannot_lift_its_friend(n, seed):
    rng = np.random.default_rng(seed)
    stake = rng.random(n) * (rng.random(n) < 0.6)
    weights = rng.integers(0, 65536, (n, n)) * (rng.random((n, n)) < 0.7)
    result = run(stake, weights, emission=7.0)
    for share in (result.incentive_N, result.dividends_N):
        assert share.min() >= 0 and (share.sum() == pytest.approx(1) or not share.any())
    assert result.emission_N.sum() == pytest.approx(7.0 if stake.any() else 0.0)
    assert 0 <= result.bonds_NN.min() and result.bonds_NN.max() <= 1
    cabal = np.argsort(stake)[: n // 2]  # less than half: whatever it says of j cannot lift j's consensus
    if stake[cabal].sum() < 0.49 * stake.sum():
        lifted, honest = weights.copy(), weights.copy()
        lifted[cabal], honest[cabal] = 0, 0
        lifted[cabal, n - 1] = 1
        most = run(stake, lifted).consensus_N[n - 1]
        others = np.delete(np.arange(n), cabal)
        rows = np.where(np.eye(n, dtype=bool) | (stake == 0)[:, None], 0, honest).astype(float)
        assert most <= yuma._divide(rows, rows.sum(1, keepdims=True))[others, n - 1].max(initial=0) + 1e-12
