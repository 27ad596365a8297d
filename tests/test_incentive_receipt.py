"""Receipts in the default rules: a wrong loss of step 0 scales pay at once, never to zero, and is forgiven."""

import dataclasses

import numpy as np
import pytest
from incentive_story import HONEST, evidence, identity

from templar_jax.incentive import receipt
from templar_jax.incentive.config import IncentiveConfig
from templar_jax.incentive.evidence import PeerEvidence, WindowEvidence
from templar_jax.incentive.rules import rules

CONFIG = IncentiveConfig()
RULES = rules("default")
NINE = [HONEST] * 9
LIAR = identity(HONEST, 0, 0)


def seen(**checks) -> PeerEvidence:
    return PeerEvidence(LIAR, 0, accepted=True, **checks)


def told(window: int, off: float, hardware: float = 5e-4) -> WindowEvidence:
    """Nine equal peers, on hardware that differs by so much; the first's loss of step 0 is `off` further away."""
    noise = np.random.default_rng([window, 7]).normal(0.0, hardware, 9)
    found = evidence(NINE, window, 0)
    peers = (dataclasses.replace(one, step0=float(noise[one.uid]) + off * (one.peer == LIAR)) for one in found.peers)
    return dataclasses.replace(found, peers=tuple(peers))


def share(off: list[float]) -> list[float]:
    """Pay of the first peer over the median peer's, window by window."""
    state, shares = RULES.init(), []
    for window, wrong in enumerate(off):
        state, scores = RULES.step(state, told(window, wrong))
        assert [name for name, score in scores.items() if "step0" in score.findings] == [LIAR] * (wrong != 0.0)
        others = [scores[identity(HONEST, n, window)].pay for n in range(1, 9)]
        shares.append(scores[LIAR].pay / float(np.median(others)))
    return shares


def test_a_wrong_loss_costs_at_once_never_everything_and_is_forgiven():
    honest = share([0.0] * 40)
    liar = share([0.0] * 10 + [0.05] * 10 + [0.0] * 20)
    ratio = np.array(liar) / np.array(honest)
    assert ratio[:10] == pytest.approx(1.0) and ratio[10] == pytest.approx(CONFIG.step0_factor)
    assert ratio[19] == pytest.approx(CONFIG.receipt_floor)
    assert ratio[39] > 0.99


def test_one_bad_window_is_nearly_forgotten_after_ten():
    factor = receipt.after(CONFIG, 1.0, seen(step0=0.1))
    for _ in range(10):
        factor = receipt.after(CONFIG, factor, seen(step0=0.001))
    assert factor > 0.97


def test_what_was_not_checked_changes_nothing():
    assert receipt.after(CONFIG, 0.3, seen()) == 0.3 and receipt.findings(CONFIG, seen()) == ()
    assert receipt.findings(CONFIG, None) == ()
    for off in (-1.0, 1e6, -0.0041):
        assert receipt.findings(CONFIG, seen(step0=off)) == ("step0",)
