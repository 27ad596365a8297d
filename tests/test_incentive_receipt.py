"""Receipts in the default rules: a wrong loss of step 0 scales pay at once, never to zero, and is forgiven."""

import dataclasses

import numpy as np
import pytest
from incentive_story import HONEST, evidence, identity

from templar_jax.errors import DataError
from templar_jax.incentive import evidence as evidences
from templar_jax.incentive import receipt
from templar_jax.incentive.config import IncentiveConfig
from templar_jax.incentive.evidence import Audit, PeerEvidence, WindowEvidence
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


GOOD = Audit("done", sent=0.99, overlap=0.95, state=0.99, continuous=True)
BAD = [
    dataclasses.replace(GOOD, outcome="absent"),
    dataclasses.replace(GOOD, outcome="wrong"),
    dataclasses.replace(GOOD, sent=0.9),
    dataclasses.replace(GOOD, overlap=0.7),
    dataclasses.replace(GOOD, state=0.9),
    dataclasses.replace(GOOD, continuous=False),
]


@pytest.mark.parametrize("audit", BAD)
def test_whatever_fails_an_audit_costs_the_same_and_the_next_one_lifts_it(audit):
    one = seen(audit=audit)
    assert receipt.findings(CONFIG, one) == ("audit",)
    factor = receipt.audited(CONFIG, 1.0, one)
    assert factor == CONFIG.audit_factor > 0.0
    later = factor
    for _ in range(20):
        later = receipt.audited(CONFIG, later, seen())
    assert 0.45 < later < 0.55  # half is back after twenty windows without another
    assert receipt.audited(CONFIG, factor, seen(audit=GOOD)) == 1.0
    assert receipt.audited(CONFIG, 1.0, seen(audit=dataclasses.replace(GOOD, continuous=None))) == 1.0


def test_audits_are_part_of_the_evidence():
    found = told(3, 0.0)
    with_audit = dataclasses.replace(found, peers=(dataclasses.replace(found.peers[0], audit=GOOD), *found.peers[1:]))
    assert evidences.decode(evidences.encode(with_audit)) == evidences.ordered(with_audit)
    strange = dataclasses.replace(found.peers[0], audit=dataclasses.replace(GOOD, outcome="fine"))
    with pytest.raises(DataError):
        evidences.encode(dataclasses.replace(found, peers=(strange, *found.peers[1:])))
    state, _ = RULES.step(RULES.init(), with_audit)
    failed, _ = RULES.step(
        RULES.init(),
        dataclasses.replace(found, peers=(dataclasses.replace(found.peers[0], audit=BAD[0]), *found.peers[1:])),
    )
    who = found.peers[0].peer
    ours, theirs = (RULES.weights(one) for one in (failed, state))
    rest = next(peer.peer for peer in found.peers[1:] if theirs[peer.peer] > 0.0)
    assert ours[who] / ours[rest] == pytest.approx(CONFIG.audit_factor * theirs[who] / theirs[rest])
