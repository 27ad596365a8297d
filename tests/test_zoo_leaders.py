"""Class (c) of the zoo: the network goes on within the timetable, with one history, and the alarm names what is so."""

from collections.abc import Iterable

import numpy as np
import pytest
from node_network import RUN, open_run

from templar_jax.chain import yuma
from templar_jax.simulate.network import NODE, Outcome, simulate
from templar_jax.simulate.report import figures
from templar_jax.simulate.zoo.table import ROLES
from templar_jax.telemetry.events import ManifestApplied, Scored

PEERS, VALIDATORS = 3, 3
BAD = PEERS  # uid of the first validator: miners register first
SECONDS = 12.0
ALARMS = {  # kind -> can it be proven; nothing where silence breaks no rule
    "silent-leader": {},
    "silent-validator": {},
    "withholding-leader": {"unserved": False},
    "omitting-leader": {"omitted": True},
    "refusing-leader": {"suspect": False},
    "slandering-leader": {"false-refusal": True},
    "late-leader": {"manifest-late": True},
    "root-leader": {"manifest-root": True},
    "equivocating-leader": {"two-manifests": True},
}


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory):
    return open_run(tmp_path_factory.mktemp("leaders"))


def play(opened, name: str, windows: int, seed: int = 3) -> Outcome:
    return simulate(
        *opened, peers=PEERS, validators=VALIDATORS, windows=windows, seed=seed, attacks={name: 1}, config=NODE
    )


def raised(outcome: Outcome) -> dict[str, bool]:
    found = figures(outcome)["alarms_by_kind"]
    assert all(alarm["uids"] == [BAD] for alarm in found.values()), "somebody honest was accused"
    return {kind: alarm["proven"] for kind, alarm in found.items()}


@pytest.mark.parametrize("name", ALARMS)
def test_a_leader_costs_no_window_and_is_named_where_that_can_be_proven(opened, name: str):
    windows = 3
    outcome = play(opened, name, windows)
    found = figures(outcome)
    assert outcome.role("validator-0") == name
    assert found["state_roots_equal"] and found["windows"] == windows and not found["windows_empty"]
    assert raised(outcome) == ALARMS[name]
    for entry in outcome.log:  # within the timetable: applied before the next window's deadline
        if isinstance(entry.event, ManifestApplied):
            assert entry.time < ((entry.event.window + 1) * RUN.window.blocks + RUN.window.deadline) * SECONDS
    left_out = name in ("omitting-leader", "refusing-leader", "slandering-leader")
    taken = {entry.event.accepted for entry in outcome.log if isinstance(entry.event, ManifestApplied)}
    assert taken == {(0, 1) if left_out else (0, 1, 2)}
    paid = [e.event.weights for e in outcome.log if isinstance(e.event, Scored) and e.node == "validator-1"]
    assert set(paid[-1]) == {0, 1, 2}, "who is left out of the outer step is paid all the same"


@pytest.mark.parametrize(
    ("name", "alarms"),
    [
        ("weight-copier", {"false-losses": True, "false-weights": True}),
        ("seed-grinder", {"false-evidence": True, "false-losses": True}),
        ("picky-validator", {"no-evidence": False}),
    ],
)
def test_what_a_validator_makes_up_is_found_by_the_others(opened, name: str, alarms: dict[str, bool]):
    outcome = play(opened, name, 7, seed=4)  # beta of the first one: twice 0.2, three times 1, 0.2, 1
    assert figures(outcome)["state_roots_equal"]
    assert raised(outcome) == alarms


def test_planted_losers_are_no_matter_of_alarm(opened):
    outcome = play(opened, "loser-planting", 3)
    found = figures(outcome)
    assert found["state_roots_equal"] and not found["alarms_by_kind"] and found["violations"] == 0
    loser = PEERS - 1
    weights = [e.event.weights for e in outcome.log if isinstance(e.event, Scored)][-1]
    assert weights.get(loser, 0.0) < 0.5 * min(weights[uid] for uid in (0, 1))


def dividends(copied: Iterable[int], epochs: int = 40, seed: int = 1) -> np.ndarray:
    """Dividends a epoch of 4 validators of equal stake; those in `copied` set the mean of the others' last weights."""
    chance, miners, validators = np.random.default_rng(seed), 8, 4
    n, copiers = validators + miners, sorted(copied)
    stake, paid = np.zeros(n), np.zeros(n)
    stake[:validators] = 1.0
    bonds, merit, before = np.zeros((n, n)), chance.uniform(0.5, 1.5, miners), np.zeros((n, n))
    for _ in range(epochs):
        merit = np.clip(merit + chance.normal(0.0, 0.1, miners), 0.1, None)  # what miners are worth changes
        weights = np.zeros((n, n))
        weights[:validators, validators:] = merit * (1.0 + chance.normal(0.0, 0.05, (validators, miners)))
        for copier in copiers:
            weights[copier] = np.mean([before[v] for v in range(validators) if v not in copiers], 0)
        result = yuma.epoch(stake, weights, bonds, permit_N=stake > 0, active_N=np.ones(n, bool), emission=1.0)
        bonds, before = result.bonds_NN, weights
        paid += result.dividends_N
    return paid[:validators] / epochs


def test_consensus_alone_pays_a_copier_most_of_what_an_honest_validator_earns():
    """Why evidence is checked: under Yuma consensus a minority that copies earns 9/10 without working."""
    shares = [dividends({3}, seed=seed) for seed in range(8)]
    earned = np.mean([share[3] / share[:3].mean() for share in shares])
    assert 0.8 < earned < 1.0
    assert np.ptp(np.mean([dividends((), seed=seed) for seed in range(8)], 0)) < 0.01


def test_every_adversary_of_the_class_is_played():
    mine = {name for name, entry in ROLES.items() if entry.letter == "c"}
    assert mine == {*ALARMS, "weight-copier", "seed-grinder", "picky-validator", "loser-planting"}
