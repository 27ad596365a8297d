"""Validators on virtual time: they lead, score, pay, and come to the same weights again from what they recorded."""

import asyncio
import dataclasses

import numpy as np
import pytest
from node_network import applied, assert_one_history, commitments, events, open_run, play, until

from templar_jax.chain.messages import EvidenceMessage, ManifestMessage, SealMessage, parse_commitment
from templar_jax.incentive import evidence as evidences
from templar_jax.incentive.replay import Record, replay
from templar_jax.node.records import DiskRecords, read_all
from templar_jax.node.validator import read_records
from templar_jax.simulate.network import BLOCK_SECONDS, STAKE, Network, hotkey
from templar_jax.simulate.role import Role
from templar_jax.store.contribution import evidence_key
from templar_jax.telemetry.events import Alarm, ManifestApplied, Registered, Scored, Warned, WeightsSet

WINDOWS = 6


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory):
    return open_run(tmp_path_factory.mktemp("validator"))


async def kill(process: asyncio.Task) -> None:
    process.cancel()
    await asyncio.gather(process, return_exceptions=True)


async def both(network: Network, miners: int, validators: int, windows: int) -> None:
    jobs = [network.node(f"peer-{n:02d}", windows) for n in range(miners)]
    jobs += [network.validator(f"validator-{n}", windows, stake=STAKE - n) for n in range(validators)]
    await asyncio.gather(*jobs)


@pytest.fixture(scope="module")
def network(opened) -> Network:
    return play(opened, lambda network: both(network, 4, 2, WINDOWS))


def test_one_history_led_by_validators(network):
    assert_one_history(network)
    last = applied(network)[WINDOWS]
    assert last.outer_step == WINDOWS and len(last.accepted) == 4 and not last.refused
    assert applied(network, "validator-1")[WINDOWS] == last
    leaders = {key for key, _ in commitments(network, ManifestMessage)}
    assert leaders == {hotkey(1, "validator-0").ss58_address}
    assert not events(network, Warned) and not events(network, Alarm)


def test_every_peer_is_scored_in_every_window(network):
    for name in ("validator-0", "validator-1"):
        scored = events(network, Scored, name)
        assert [event.window for event in scored] == list(range(1, WINDOWS + 1))
        assert all(event.evaluated == event.accepted == 4 for event in scored)
        assert not any(event.violations or event.refused for event in scored)
        assert sum(scored[-1].weights.values()) == pytest.approx(1)


def test_draws_differ_between_validators_and_the_losses_before_do_not_between_peers(network):
    seen = [evidences.decode(network.disks[f"validator-{n}"].records.load(2).evidence) for n in range(2)]
    assert seen[0].unassigned_before != seen[1].unassigned_before
    assert {len(peer.losses.unassigned_after) for peer in seen[0].peers if peer.losses} == {
        len(seen[0].unassigned_before)
    }
    assert len({peer.norm for peer in seen[0].peers}) == 4 and all(peer.norm > 0 for peer in seen[0].peers)
    assert [peer.norm for peer in seen[0].peers] == [peer.norm for peer in seen[1].peers]
    assert seen[0].pairs == seen[1].pairs and len(seen[0].pairs) == 6 + 16
    assert all(-1 <= (peer.stale_cosine or 0.0) < 0.99 and peer.stale_cosine for peer in seen[0].peers)
    betas = {evidences.decode(r.evidence).beta for n in range(2) for r in records(network, n)}
    assert betas == {0.2, 1.0}


def run_read(call):
    """The answer of a chain that waits for nothing."""
    try:
        call.send(None)
    except StopIteration as done:
        return done.value
    raise AssertionError("reading the chain waited for something")


def records(network: Network, number: int) -> list[Record]:
    return list(read_all(network.disks[f"validator-{number}"].records))


def test_weights_are_set_pinned_and_paid(network):
    first = events(network, WeightsSet, "validator-0")[0]
    assert first.window == 1 and set(first.weights) <= set(range(6))
    pinned = [message for key, message in commitments(network, EvidenceMessage)]
    links = {event.window: event.link for event in events(network, Scored, "validator-0")}
    assert links[1] in {message.chain_sha256.hex() for message in pinned}
    paid = {
        neuron.uid: neuron.incentive for neuron in run_read(network.chain.metagraph()).neurons if neuron.incentive > 0
    }
    assert set(paid) == set(first.weights) and sum(paid.values()) == pytest.approx(1)


def test_replay_gives_the_same_weights_bit_for_bit(network, tmp_path):
    for number in range(2):
        again = replay(records(network, number))
        assert len(again) == WINDOWS and all(one.equal for one in again)
    disk = DiskRecords(tmp_path)
    for one in again:
        disk.save(one.evidence.window, network.disks["validator-1"].records.load(one.evidence.window), b"{}")
    assert [w.weights for w in read_records(disk)] == [w.weights for w in again]
    bucket = network.store.buckets["validator-1"]
    assert bucket[evidence_key(3)][0] == b"".join(records(network, 1)[2].__dict__.values())


def test_replay_notices_another_number(network):
    recorded = records(network, 0)
    seen = evidences.decode(recorded[2].evidence)
    changed = evidences.encode(dataclasses.replace(seen, beta=0.3))
    recorded[2] = Record(changed, recorded[2].outcome)
    assert [one.equal for one in replay(recorded)] == [True, True] + [False] * (WINDOWS - 2)


@pytest.mark.parametrize("state", ["kept", "older", "damaged"])
def test_killed_in_the_middle_it_keeps_what_it_knows(opened, state: str):
    async def scenario(network: Network) -> None:
        others = asyncio.ensure_future(both(network, 3, 1, 5))
        victim = asyncio.ensure_future(network.validator("validator-1", None, stake=STAKE - 1))
        await until(network, lambda e: e.node == "validator-1" and isinstance(e.event, WeightsSet))
        kept = network.disks["validator-1"].records
        older = kept.newest
        await until(network, lambda e: e.node == "validator-1" and isinstance(e.event, Scored) and e.event.window == 2)
        await asyncio.sleep(7.0)
        await kill(victim)
        kept.newest = {"kept": kept.newest, "older": older, "damaged": b"{"}[state]
        await network.validator("validator-1", 3, stake=STAKE - 1)  # window 2 once more, then 3 and 4
        await others

    network = play(opened, scenario)
    assert_one_history(network)
    assert [event.window for event in events(network, Scored, "validator-1")] == [1, 2, 3, 4]
    again = replay(records(network, 1))
    assert len(again) == 4 and all(one.equal for one in again)
    assert not events(network, Warned)


def test_miners_do_not_lead_once_there_is_a_validator(opened):
    async def scenario(network: Network) -> None:
        miners = asyncio.gather(*(network.node(f"peer-{n:02d}", 4) for n in range(3)))
        await until(network, lambda e: isinstance(e.event, ManifestApplied) and e.event.window == 1)
        leading = asyncio.ensure_future(network.validator("validator-0"))
        await miners
        await kill(leading)

    network = play(opened, scenario)
    assert_one_history(network)
    by = {m.window: key for key, m in commitments(network, ManifestMessage)}
    mine = hotkey(1, "validator-0").ss58_address
    assert by[1] != mine and {by[3], by[4]} == {mine}, by
    assert np.isclose(sum(events(network, Scored)[-1].weights.values()), 1)


class Keyless:
    """A bucket in which no key ever appears."""

    def __init__(self, bucket) -> None:
        self._bucket = bucket

    def __getattr__(self, name: str):
        return getattr(self._bucket, name)

    async def put(self, key: str, data: bytes) -> None:
        if not key.endswith("/key"):
            await self._bucket.put(key, data)


class Slow:
    """A chain that hears this node's seals ten blocks after they were sent: after K(w)."""

    def __init__(self, chain) -> None:
        self._chain = chain

    def __getattr__(self, name: str):
        return getattr(self._chain, name)

    async def commit(self, key, fields) -> None:
        parsed = parse_commitment(fields)
        if parsed is not None and isinstance(parsed.message, SealMessage):
            await asyncio.sleep(10 * BLOCK_SECONDS)
        await self._chain.commit(key, fields)


def test_late_is_proven_and_not_served_is_not(opened):
    keyless = Role(alter=lambda world: dataclasses.replace(world, bucket=Keyless(world.bucket)))
    slow = Role(alter=lambda world: dataclasses.replace(world, chain=Slow(world.chain)))

    async def scenario(network: Network) -> None:
        others = [network.validator(f"validator-{n}", 3, stake=STAKE - n) for n in range(2)]
        others += [network.node(f"peer-{n:02d}", 3) for n in range(2)]
        villains = [asyncio.ensure_future(network.node("keyless", None, keyless))]
        villains += [asyncio.ensure_future(network.node("slow", None, slow))]
        await asyncio.gather(*others)
        for one in villains:
            await kill(one)

    network = play(opened, scenario)
    assert_one_history(network)
    uids = {name: events(network, Registered, name)[0].uid for name in ("keyless", "slow", "peer-00", "peer-01")}
    leader, other = (events(network, Scored, f"validator-{n}") for n in range(2))
    assert [event.refused for event in leader] == [{uids["keyless"]: "no-key"}] * 3
    late = {uids["slow"]: ("late",)}
    assert [event.violations for event in leader] == [late, {}, late]  # in window 2 it is still busy with window 1
    assert [event.violations for event in other] == [late, {}, late]
    for event in (leader[-1], other[-1]):
        assert set(event.weights) == {uids["peer-00"], uids["peer-01"]}
