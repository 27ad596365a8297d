"""Bad peers, bad leaders and broken stores on virtual time: each costs itself, and nobody ends with another root."""

import asyncio
import dataclasses

import pytest
from node_network import applied, assert_one_history, commitments, events, open_run, play, together

from templar_jax.chain.messages import ManifestMessage, encode_commitment
from templar_jax.node import gather
from templar_jax.simulate.network import BLOCK_SECONDS, NODE, Network, hotkey, roots
from templar_jax.simulate.role import HONEST
from templar_jax.simulate.zoo.leading import entry, forging, wrong_root
from templar_jax.simulate.zoo.ports import committing
from templar_jax.store.simulated import Fault, Operation
from templar_jax.telemetry.events import Alarm, Noted, Warned

OFTEN = dataclasses.replace(NODE, checkpoint_every=2)


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory):
    return open_run(tmp_path_factory.mktemp("villains"))


def faulty(network: Network, fault) -> None:
    network.store.fault = fault


def window_at(operation: Operation) -> int:
    return int(operation.at / BLOCK_SECONDS) // 16


@pytest.mark.parametrize("which", ["/sealed", "/key"])
def test_a_peer_that_stalls_does_not_cost_the_leader_its_slot(opened, which: str):
    def stall(op: Operation) -> Fault | None:
        foreign = op.bucket == "peer-02" and op.actor != "peer-02" and which in op.key
        return Fault("stall") if op.kind == "get" and foreign else None

    async def scenario(network: Network) -> None:
        faulty(network, stall)
        await together(network, 3, 2)

    network = play(opened, scenario)
    assert_one_history(network)
    for window in (1, 2):
        assert applied(network)[window].accepted == (0, 1)
        assert applied(network)[window].refused == ((2, "fetch" if which == "/sealed" else "no-key"),)
    assert {key for key, _ in commitments(network, ManifestMessage)} == {hotkey(1, "peer-00").ss58_address}


def test_a_peer_that_serves_the_leader_only_is_read_from_the_mirror(opened):
    def stall(op: Operation) -> Fault | None:
        return Fault("stall") if op.kind == "get" and op.bucket == "peer-02" and op.actor == "peer-01" else None

    async def scenario(network: Network) -> None:
        faulty(network, stall)
        await together(network, 3, 2)

    network = play(opened, scenario)
    assert_one_history(network)
    assert [applied(network, "peer-01")[w].accepted for w in (1, 2)] == [(0, 1, 2)] * 2


def test_an_error_of_ours_in_a_peers_bytes_costs_that_peer(opened, monkeypatch: pytest.MonkeyPatch):
    real = gather.check

    def check(run, claim, window, sealed):
        if claim.uid == 1:
            raise ValueError("unexpected")
        return real(run, claim, window, sealed)

    monkeypatch.setattr(gather, "check", check)
    network = play(opened, lambda network: together(network, 3, 1))
    assert applied(network)[1].accepted == (0, 2) and applied(network)[1].refused == ((1, "error"),)
    assert any("report this" in event.text for event in events(network, Warned))


FORGERIES = {
    "history": lambda m: dataclasses.replace(m, predecessor=bytes(32)),
    "root": wrong_root,
    "root of a longer run": lambda m: dataclasses.replace(m, outer_step=10**9),
    "late": entry(sealed_sha256=b"\1" * 32),
    "plaintext": entry(plaintext_sha256=b"\1" * 32),
    "steps": entry(inner_steps=1),
    "key": entry(key=bytes(32)),
    "run": lambda m: dataclasses.replace(m, run_id=bytes(16)),
}


@pytest.mark.parametrize("kind", FORGERIES)
def test_a_forged_manifest_is_alarmed_and_the_next_leader_closes_the_window(opened, kind: str):
    network = play(opened, lambda network: together(network, 3, 2, {0: forging(FORGERIES[kind])}))
    assert_one_history(network)
    for window in (1, 2):
        assert applied(network, "peer-01")[window].accepted == (0, 1, 2)
        assert applied(network, "peer-01")[window].outer_step == window
    alarms = {(event.kind, event.uid) for event in events(network, Alarm, "peer-01")}
    assert alarms == {(f"manifest-{kind.split()[0]}", 0)}


def test_a_manifest_served_to_one_peer_reaches_all(opened):
    def partly(op: Operation) -> Fault | None:
        hidden = op.bucket == "peer-00" and op.key.startswith("manifest/") and op.actor not in ("peer-00", "peer-02")
        return Fault("drop") if op.kind == "get" and hidden else None

    async def scenario(network: Network) -> None:
        faulty(network, partly)
        await together(network, 4, 2)

    network = play(opened, scenario)
    assert_one_history(network)
    assert [applied(network, "peer-01")[w].outer_step for w in (1, 2)] == [1, 2]


@pytest.mark.parametrize("what", ["/sealed", "/key", "", "manifest/"])
def test_an_own_bucket_that_fails_costs_that_window_only(opened, what: str):
    def broken(op: Operation) -> Fault | None:
        own = op.kind == "put" and op.bucket == "peer-01" and what in op.key and window_at(op) == 1
        return Fault("drop") if own else None

    async def scenario(network: Network) -> None:
        faulty(network, broken)
        await together(network, 3, 3)

    network = play(opened, scenario)
    assert_one_history(network)
    assert (1 in applied(network)[1].accepted) == (what == "manifest/")
    assert applied(network)[2].accepted == (0, 1, 2)
    assert events(network, Warned, "peer-01")


@pytest.mark.parametrize("config", [NODE, OFTEN], ids=["from theta_0", "from a checkpoint"])
@pytest.mark.parametrize("victim", ["peer-02", "peer-00"], ids=["follower", "first leader"])
def test_a_fork_heals(opened, config, victim: str):
    """The victim sees nothing of the others in window 2 until long after the grace, and then finds itself alone.

    The first leader is the hard case: in its own eyes its manifests are the canonical ones.
    """

    async def no_manifest_of_window_2(world, locator: str, message):
        if isinstance(message, ManifestMessage) and message.window == 2:
            return None
        return encode_commitment(locator, message)

    def blind(op: Operation) -> Fault | None:
        lost = op.actor == victim and op.bucket != victim and op.kind == "get"
        return Fault("drop") if lost and 2 * 16 + 8 <= op.at / BLOCK_SECONDS <= 3 * 16 + 4 else None

    async def scenario(network: Network) -> None:
        faulty(network, blind)
        names = [f"peer-{number:02d}" for number in range(3)]
        role = committing(no_manifest_of_window_2)
        await asyncio.gather(*(network.node(name, 8, role if name == victim else HONEST) for name in names))

    network = play(opened, scenario, config=config)
    split = {window for window, found in roots(network.log).items() if len(found) > 1}
    assert split and max(split) <= 3, f"windows with two roots: {split}"
    joined = [entry.node for entry in network.log if "joining the others" in getattr(entry.event, "text", "")]
    assert joined == [victim]
    uid = int(victim[-1])
    other = "peer-01"
    assert applied(network, victim)[8].root == applied(network, other)[8].root
    assert uid in applied(network, other)[8].accepted


def test_nobody_is_led_away_by_one_leader_with_a_longer_history(opened):
    """Served and signed, with a checkpoint that does not exist: the others neither crash nor follow."""
    network = play(opened, lambda network: together(network, 3, 4, {0: forging(FORGERIES["root of a longer run"])}))
    assert_one_history(network)
    assert not [e for e in events(network, Noted, "peer-01") if "joining" in e.text]
