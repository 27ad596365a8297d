"""What the default rules pay, on synthetic evidence with the gaps that a real model showed (incentive_story)."""

import dataclasses

import numpy as np
import pytest
from incentive_story import FIFTH, HALF, HONEST, NOISE, STALE, Player, evidence, identity, play

from templar_jax.incentive.config import IncentiveConfig
from templar_jax.incentive.rules import rules

RULES = rules("default")
SEEDS = (0, 1, 2)
NINE = [HONEST] * 9


def pay(player: Player, seed: int, windows: int = 40, since: int = 20, count: int = 3) -> float:
    """Mean weight of `count` such players among nine honest ones, over the median honest one's."""
    table = play(RULES, NINE + [player] * count, windows, seed)[since:].mean(0)
    return float(table[9:].mean() / np.median(table[:9]))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("player", [STALE, NOISE, Player(gain=1.0, effort=0.0), Player(gain=-1.0, effort=-0.5)])
def test_no_work_earns_less_than_half(player, seed):
    assert pay(player, seed) < 0.1


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("player", "compute"), [(HALF, 0.5), (FIFTH, 0.2), (Player(gain=0.6, effort=0.45), 0.5)])
def test_partial_work_earns_no_more_per_compute(player, compute, seed):
    assert pay(player, seed) <= 1.05 * compute


@pytest.mark.parametrize("seed", SEEDS)
def test_groups_are_ordered_by_work(seed):
    table = play(RULES, [HONEST] * 4 + [HALF] * 4 + [FIFTH] * 4, 40, seed)[20:].mean(0)
    groups = table.reshape(3, 4).mean(1)
    assert groups[0] > groups[1] > groups[2] > 0  # a finding scales, it never zeroes


@pytest.mark.parametrize("seed", SEEDS)
def test_equal_peers_are_paid_alike(seed):
    table = play(RULES, [HONEST] * 12, 40, seed).mean(0)
    assert table.min() / np.median(table) > 0.5


@pytest.mark.parametrize("seed", SEEDS)
def test_planted_losers_change_nobodys_pay(seed):
    alone = play(RULES, NINE, 40, seed)
    crowded = play(RULES, NINE + [Player(gain=-0.5, effort=0.0)] * 3, 40, seed)
    assert crowded[:, 9:].max() < 0.02
    assert np.abs(crowded[:, :9].mean(0) / alone.mean(0) - 1).max() < 0.15  # early windows are noise
    assert np.abs(crowded[20:, :9] / alone[20:] - 1).max() < 0.05


def test_a_cluster_shares_one_members_pay():
    sybils = [Player(cluster=0, cosine=0.97)] * 3
    table = play(RULES, NINE + sybils, 40, seed=0)[20:].mean(0)
    assert table[9:].sum() == pytest.approx(np.median(table[:9]), rel=0.25)
    assert table[9:].min() > 0


def test_stale_likeness_scales_pay():
    assert pay(Player(stale=0.9), seed=0) < 0.1 < pay(HONEST, seed=0)


@pytest.mark.parametrize("norm", [100.0, 1e30])
def test_a_norm_far_beyond_the_others_scales_pay(norm):
    assert pay(Player(norm=norm), seed=0) < 0.1 < 0.8 < pay(Player(norm=3.0), seed=0)


@pytest.mark.parametrize("player", [STALE, HALF, NOISE])
def test_registering_again_never_pays(player):
    for lives in (3, 5, 10):
        rejoins = dataclasses.replace(player, lives=lives)
        assert pay(rejoins, seed=0) < 1.05 * max(pay(player, seed=0), 0.05)


def test_registering_again_after_a_penalty_never_pays():
    """After the worst penalty an honest worker is back at half of its pay sooner under its old name than a new one."""
    state = RULES.init()
    for window in range(30):
        state, _ = RULES.step(state, evidence(NINE, window, 0))
    guilty = dataclasses.replace(HONEST, violates=(30,))
    reborn = dataclasses.replace(HONEST, joins=31)
    players = [HONEST] * 8 + [guilty, reborn]
    stay = identity(guilty, 8, 30)
    paid, new = [], []
    for window in range(30, 50):
        seen = evidence(players, window, 0)
        refused = tuple(
            dataclasses.replace(one, violations=("equivocation",)) if one.violations else one for one in seen.peers
        )
        state, _ = RULES.step(state, dataclasses.replace(seen, peers=refused))
        paid.append(RULES.weights(state).get(stay, 0.0))
        new.append(RULES.weights(state).get(identity(reborn, 9, window), 0.0))
    assert paid[0] == 0.0  # at once
    assert sum(paid) > sum(new)
    assert paid[-1] > 0.9 * np.median([RULES.weights(state)[identity(HONEST, n, 0)] for n in range(8)])


def test_newcomers_start_low_and_catch_up():
    table = play(RULES, NINE + [dataclasses.replace(HONEST, joins=20)] * 3, 60, seed=0)
    share = table[:, 9:].mean(1) / np.median(table[:, :9], 1)
    assert 0 < share[20] < 0.35
    assert share[55:].mean() > 0.85


def test_absence_costs_but_an_outage_does_not():
    every_second = pay(dataclasses.replace(HONEST, sends=2), seed=0)
    assert every_second < 0.5
    state = RULES.init()
    for window in range(10):
        state, _ = RULES.step(state, evidence(NINE, window, 0))
    dark = evidence([dataclasses.replace(HONEST, sends=100)] * 9, 10, 0)
    after, _ = RULES.step(state, dark)
    assert RULES.weights(after) == RULES.weights(state)


def test_who_was_not_evaluated_keeps_its_pay():
    state = RULES.init()
    for window in range(10):
        state, _ = RULES.step(state, evidence(NINE, window, 0))
    seen = evidence(NINE, 10, 0)
    unseen = dataclasses.replace(seen, peers=tuple(dataclasses.replace(one, losses=None) for one in seen.peers))
    after, scores = RULES.step(state, unseen)
    assert RULES.weights(after) == RULES.weights(state)
    assert all(score.findings == () for score in scores.values())


def test_who_leaves_is_forgotten_and_who_never_sent_is_not_paid():
    state, _ = RULES.step(RULES.init(), evidence(NINE, 0, 0))
    silent = Player(sends=100)
    state, _ = RULES.step(state, evidence([*NINE[:8], silent], 1, 0))
    assert RULES.weights(state).keys() >= {identity(HONEST, 0, 0)}
    late = dataclasses.replace(HONEST, violates=(2,))
    state, _ = RULES.step(state, evidence([*NINE[:7], late], 2, 0))
    assert identity(HONEST, 8, 0) not in RULES.weights(state)
    only_late, _ = RULES.step(RULES.init(), evidence([late], 2, 0))
    assert RULES.weights(only_late) == {}


def test_power_changes_only_the_spread():
    flat = rules("default", IncentiveConfig(power=1.0))
    steep = rules("default", IncentiveConfig(power=2.0))
    one, two = (play(chosen, NINE + [HALF] * 3, 30, 0)[-1] for chosen in (flat, steep))
    assert np.all(np.argsort(one) == np.argsort(two)) and two[9:].sum() < one[9:].sum()
