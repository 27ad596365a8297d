"""Several validators on one network: one history, leaders by stake, draws of their own, one consensus on the chain."""

import asyncio
import dataclasses

import pytest
from node_network import applied, assert_one_history, commitments, events, open_run, play, until

from templar_jax.chain.messages import ManifestMessage
from templar_jax.incentive import canonical, evidence
from templar_jax.incentive.replay import Outcome, replay
from templar_jax.node.records import read_all
from templar_jax.simulate.network import NODE, STAKE, Network, hotkey
from templar_jax.telemetry.events import Alarm, ManifestApplied, PhaseEnded, Scored, Warned, WeightsSet

MINERS, VALIDATORS, WINDOWS = 3, 4, 4  # one validator more than a window has leaders
CONFIG = dataclasses.replace(NODE, checkpoint_every=2)


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory):
    return open_run(tmp_path_factory.mktemp("validators"))


async def everybody(network: Network) -> None:
    jobs = [network.node(f"peer-{n:02d}", WINDOWS) for n in range(MINERS)]
    jobs += [network.validator(f"validator-{n}", WINDOWS, stake=STAKE - n) for n in range(VALIDATORS)]
    await asyncio.gather(*jobs)


@pytest.fixture(scope="module")
def network(opened) -> Network:
    return play(opened, everybody, config=CONFIG)


def weights(network: Network, number: int) -> dict[int, tuple]:
    """By window, as recorded."""
    kept = (canonical.decode(Outcome, record.outcome) for record in read_all(records(network, number)))
    return {outcome.window: outcome.weights for outcome in kept}


def records(network: Network, number: int):
    return network.disks[f"validator-{number}"].records


def read(call):
    """The answer of a chain that waits for nothing."""
    try:
        call.send(None)
    except StopIteration as done:
        return done.value
    raise AssertionError("reading the chain waited for something")


def test_one_history_led_by_the_highest_stake_and_nobody_is_accused(network):
    assert_one_history(network)
    for number in range(VALIDATORS):
        assert applied(network, f"validator-{number}") == applied(network)
    assert [len(applied(network)[w].accepted) for w in range(1, WINDOWS + 1)] == [MINERS] * WINDOWS
    assert {key for key, _ in commitments(network, ManifestMessage)} == {hotkey(1, "validator-0").ss58_address}
    assert not events(network, Alarm) and not events(network, Warned)
    assert not any(event.violations or event.findings for event in events(network, Scored))


def test_each_draws_for_itself_and_all_see_the_same_bytes(network):
    seen = [evidence.decode(records(network, n).load(2).evidence) for n in range(VALIDATORS)]
    assert len({one.unassigned_before for one in seen}) == VALIDATORS
    assert len({one.registered for one in seen}) == 1
    assert len({tuple((peer.peer, peer.sealed, peer.norm) for peer in one.peers) for one in seen}) == 1
    assert all(peer.losses is not None for one in seen for peer in one.peers)


def test_the_chain_pays_by_the_consensus_of_all_of_them(network):
    sets = {f"validator-{n}": events(network, WeightsSet, f"validator-{n}")[0].weights for n in range(VALIDATORS)}
    assert len({tuple(sorted(one.items())) for one in sets.values()}) == VALIDATORS  # each by its own draws
    stands = read(network.chain.weights())
    assert sorted(tuple(sorted(one.items())) for one in stands.values()) == sorted(
        tuple(sorted(one.items())) for one in sets.values()
    )
    neurons = read(network.chain.metagraph()).neurons
    incentive = {neuron.uid: neuron.incentive for neuron in neurons if neuron.incentive > 0.0}
    assert set(incentive) == set(range(MINERS)) and sum(incentive.values()) == pytest.approx(1.0)
    dividends = [neuron.dividends for neuron in neurons if neuron.permit]
    assert len(dividends) == VALIDATORS and min(dividends) > 0.9 / VALIDATORS


def test_who_gains_the_most_stake_leads_from_the_next_deadline_on(opened):
    async def scenario(network: Network) -> None:
        running = asyncio.ensure_future(everybody(network))
        await until(network, lambda e: isinstance(e.event, ManifestApplied) and e.event.window == 2)
        await network.chain.set_stake(hotkey(1, "validator-3").ss58_address, 2 * STAKE)
        await running

    network = play(opened, scenario, config=CONFIG)
    assert_one_history(network)
    by = {message.window: key for key, message in commitments(network, ManifestMessage)}
    first, last = (hotkey(1, f"validator-{n}").ss58_address for n in (0, 3))
    assert [by[w] for w in (1, 2, 3, 4)] == [first, first, last, last]
    assert not events(network, Alarm)


def unlikened(network: Network, number: int) -> list[evidence.WindowEvidence]:
    """The evidence of every window without likeness to earlier windows."""
    found = [evidence.decode(record.evidence) for record in read_all(records(network, number))]
    return [
        dataclasses.replace(
            one,
            peers=tuple(dataclasses.replace(peer, stale_cosine=None) for peer in one.peers),
            pairs=tuple(pair for pair in one.pairs if pair.second_window == one.window),
        )
        for one in found
    ]


@pytest.mark.parametrize("moment", ["between", "while scoring"])
def test_killed_and_resumed_it_goes_on_as_if_nothing_had_been(opened, network, moment: str):
    """The losses and weights of an undisturbed run, bit for bit. What a restart forgets is what earlier contributions
    were like: a run without that memory is the measure where the kill cost it.
    """

    async def scenario(network: Network) -> None:
        running = [network.node(f"peer-{n:02d}", WINDOWS) for n in range(MINERS)]
        running += [network.validator(f"validator-{n}", WINDOWS, stake=STAKE - n) for n in range(VALIDATORS - 1)]
        others = asyncio.gather(*running)
        victim = asyncio.ensure_future(network.validator("validator-3", None, stake=STAKE - 3))
        if moment == "between":
            await until(network, lambda e: e.node == "validator-3" and isinstance(e.event, Scored))
        else:
            await until(network, lambda e: e.node == "validator-3" and e.event == PhaseEnded(2, "apply", 0.5))
            await asyncio.sleep(0.3)  # one evaluation is done, others are not
            assert records(network, 3).windows() == [1]
        victim.cancel()
        await asyncio.gather(victim, return_exceptions=True)
        await network.validator("validator-3", WINDOWS - 1, stake=STAKE - 3)
        await others

    again = play(opened, scenario, config=CONFIG)
    assert_one_history(again)
    assert unlikened(again, 3) == unlikened(network, 3) and len(unlikened(network, 3)) == WINDOWS
    if moment == "between":
        assert weights(again, 3) == weights(network, 3)
    assert all(one.equal for one in replay(read_all(records(again, 3))))
