"""What one validator can show of another's records, from records of a real network with single numbers changed."""

import dataclasses

import pytest
from node_network import open_run, play
from test_node_validator import both

from templar_jax.incentive import canonical, evidence
from templar_jax.incentive.evidence import Losses
from templar_jax.incentive.replay import Outcome, Record
from templar_jax.node import scrutiny
from templar_jax.node.records import read_all
from templar_jax.node.scrutiny import File, Forecast, compare, take_in

WINDOW = 3


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Record]:
    opened = open_run(tmp_path_factory.mktemp("scrutiny"))
    network = play(opened, lambda network: both(network, 3, 1, 4))
    kept = list(read_all(network.disks["validator-0"].records))
    return {evidence.decode(one.evidence).window: one for one in kept}


def forecast(records: dict[int, Record]) -> Forecast:
    """What another honest node computes: the very numbers, as all of them run on one machine."""
    seen = evidence.decode(records[WINDOW].evidence)
    first = seen.peers[0]
    accepted = frozenset(peer.peer for peer in seen.peers)
    other: scrutiny.Neuron = None  # type: ignore[assignment]  # only named in alarms
    mine = seen.beta, seen.unassigned_before, first.peer, first.losses
    return Forecast(other, WINDOW, seen.registered, accepted, *mine)


def test_an_honest_record_stands(records):
    file = File()
    assert take_in(file, records) == [] and file.whole and file.newest == 4
    assert compare(forecast(records), evidence.decode(records[WINDOW].evidence)) == []


def test_other_weights_than_follow_from_the_evidence_are_shown(records):
    said = canonical.decode(Outcome, records[2].outcome)
    (who, share), *rest = said.weights
    forged = dataclasses.replace(said, weights=((who, share * 1.1), *rest))
    changed = {**records, 2: Record(records[2].evidence, canonical.encode(forged))}
    assert take_in(File(), changed) == ["the weights of window 2 do not follow from its records"]


def test_after_a_missing_record_weights_are_not_judged(records):
    file = File()
    assert take_in(file, {window: one for window, one in records.items() if window != 2}) == []
    assert not file.whole


def lower(losses: tuple[float, ...], factor: float) -> tuple[float, ...]:
    return tuple(loss * factor for loss in losses)


@pytest.mark.parametrize("what", ["beta", "registered", "before", "own", "other", "flat"])
def test_each_number_that_is_not_its_own_is_shown(records, what: str):
    one, seen = forecast(records), evidence.decode(records[WINDOW].evidence)
    first = seen.peers[0]
    losses = first.losses
    assert losses is not None
    flat = Losses(losses.assigned_before, losses.assigned_before, seen.unassigned_before)  # no improvement at all

    def with_losses(changed: Losses):
        return dataclasses.replace(seen, peers=(dataclasses.replace(first, losses=changed), *seen.peers[1:]))

    forged = {
        "beta": dataclasses.replace(seen, beta=1.2 - seen.beta),
        "registered": dataclasses.replace(seen, registered=seen.registered[1:]),
        "before": dataclasses.replace(seen, unassigned_before=lower(seen.unassigned_before, 1.03)),
        "own": with_losses(dataclasses.replace(losses, assigned_after=lower(losses.assigned_after, 0.9))),
        "other": with_losses(dataclasses.replace(losses, unassigned_after=lower(losses.unassigned_after, 0.9))),
        "flat": with_losses(flat),
    }[what]
    kinds = {kind for kind, _ in compare(one, forged)}
    assert kinds == {"false-evidence" if what in ("beta", "registered") else "false-losses"}


def test_losses_of_another_machine_are_close_and_a_guess_is_not():
    losses = tuple(150.0 + number for number in range(64))
    assert scrutiny.close(lower(losses, 1.004), losses)
    assert not scrutiny.close((sum(losses) / 64,) * 64, losses)  # the right mean of every sequence
    assert not scrutiny.close(losses[:-1], losses)
