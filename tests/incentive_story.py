"""Synthetic evidence: peers whose gains and gaps are those that a first experiment with a real model measured.

The gap d of honest peers was .08 / .23 / .49 in windows 0-10 / 10-20 / 20-40, proportional to the share of the steps
that were done; without training on the assignment it was 0. Gains are relative to honest ones. Improvements of single
sequences
have a standard deviation like their mean, half of their variance shared by all peers (a sequence is hard for all).
"""

import math
from dataclasses import dataclass, replace

import numpy as np

from templar_jax.incentive.evidence import Identity, Losses, Pair, PeerEvidence, WindowEvidence, nats
from templar_jax.incentive.state import Rules

SEQUENCES = 64


@dataclass(frozen=True)
class Player:
    """How one peer behaves. `gain` and `effort` are relative to an honest peer's."""

    gain: float = 1.0
    effort: float = 1.0
    cosine: float | None = None  # with fellow members of `cluster`, instead of an honest pair's
    cluster: int = -1
    stale: float | None = None  # cosine with the last aggregate, instead of an honest peer's
    joins: int = 0
    lives: int = 10**6  # windows until it registers again under another hotkey
    violates: tuple[int, ...] = ()  # windows in which it is late
    sends: int = 1  # in every n-th window
    norm: float = 1.0  # of its contribution, in honest peers'


HONEST = Player()
HALF = Player(gain=1.25, effort=0.45)  # half of the steps, rescaled to the median norm
FIFTH = Player(gain=1.2, effort=0.22)
STALE = Player(gain=0.9, effort=0.0)
NOISE = Player(gain=0.0, effort=0.0)


def honest_gap(window: int) -> float:
    return 0.08 if window < 10 else 0.23 if window < 20 else 0.49


def _rng(seed: int, window: int, what: int, *who: int) -> np.random.Generator:
    return np.random.default_rng([1, seed, window, what, *who, 1])  # trailing zeros would not count


def identity(player: Player, number: int, window: int) -> Identity:
    life = (window - player.joins) // player.lives
    return Identity(f"peer-{number:02d}-{life}", 1000 * (player.joins + life * player.lives))


def evidence(players: list[Player], window: int, seed: int) -> WindowEvidence:
    """One window of these players; the draws of a player do not depend on who else is there."""
    here = [(number, player) for number, player in enumerate(players) if player.joins <= window]
    shared = _rng(seed, window, 0).normal(size=SEQUENCES)
    before = np.full(SEQUENCES, 300.0)

    def losses(number: int, player: Player) -> Losses:
        rng = _rng(seed, window, 1, number)
        own = rng.normal(size=(2, SEQUENCES))
        assigned = player.gain + own[0] + math.sqrt(2) * honest_gap(window) * player.effort
        others = player.gain + math.sqrt(0.5) * (own[1] + shared)
        return Losses(nats(before), nats(before - assigned), nats(before - others))

    def sends(player: Player) -> bool:
        return window % player.sends == 0 and window not in player.violates

    peers = []
    for number, player in here:
        seen = PeerEvidence(identity(player, number, window), number, sealed=(100 * window, number))
        if sends(player):
            rng = _rng(seed, window, 2, number)
            stale = player.stale if player.stale is not None else float(rng.uniform(0.06, 0.16))
            size = player.norm * float(_rng(seed, window, 4, number).uniform(0.95, 1.06))
            seen = replace(seen, accepted=True, norm=size, stale_cosine=stale, losses=losses(number, player))
            peers.append(seen)
        elif window in player.violates:
            peers.append(replace(seen, violations=("late",)))
    usual = _rng(seed, window, 3).uniform(0.1, 0.3, size=(64, 64))
    pairs = [
        Pair(identity(a, i, window), identity(b, j, window), window, cosine(a, b, float(usual[i, j])), 0.2)
        for i, a in here
        for j, b in here
        if i < j and sends(a) and sends(b)
    ]
    registered = tuple(identity(player, number, window) for number, player in here)
    return WindowEvidence("run", window, window, 0.2, registered, nats(before), tuple(peers), tuple(pairs))


def cosine(a: Player, b: Player, usual: float) -> float:
    alike = a.cluster >= 0 and a.cluster == b.cluster and a.cosine is not None
    return a.cosine if alike and a.cosine is not None else usual


def play(rules: Rules, players: list[Player], windows: int, seed: int) -> np.ndarray:
    """Weight of each player, under whatever name, after each window: [windows, players]."""
    state = rules.init()
    table = np.zeros((windows, len(players)))
    for window in range(windows):
        state, _ = rules.step(state, evidence(players, window, seed))
        weights = rules.weights(state)
        for number, player in enumerate(players):
            if player.joins <= window:
                table[window, number] = weights.get(identity(player, number, window), 0.0)
    return table
