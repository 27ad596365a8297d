"""Who earns too little on the chain: not added by the leader that opened it, and a manifest that adds it is invalid."""

import dataclasses

import pytest
from node_network import applied, assert_one_history, events, open_run, play, together

from templar_jax.chain.local import LocalChain
from templar_jax.chain.port import Metagraph
from templar_jax.node import forkchoice
from templar_jax.node.judge import PROVABLE
from templar_jax.simulate.network import Network, hotkey
from templar_jax.simulate.role import Role
from templar_jax.simulate.zoo.ports import Port
from templar_jax.telemetry.events import Alarm

SEED, POOR = 1, 3  # uid of peer-03, the last to register


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory):
    return open_run(tmp_path_factory.mktemp("standing"))


@pytest.fixture(autouse=True)
def incentives(monkeypatch: pytest.MonkeyPatch) -> None:
    """A chain on which everybody earns the same, but for peer-03, which earns nothing; three who earn are enough."""
    poor, read = hotkey(SEED, f"peer-{POOR:02d}").ss58_address, LocalChain.metagraph

    async def metagraph(chain: LocalChain, block: int | None = None) -> Metagraph:
        found = await read(chain, block)
        rows = (dataclasses.replace(one, incentive=float(one.hotkey != poor)) for one in found.neurons)
        return dataclasses.replace(found, neurons=tuple(rows))

    monkeypatch.setattr(LocalChain, "metagraph", metagraph)
    monkeypatch.setattr(forkchoice, "STANDING_LEAST", 3)


def test_a_leader_opens_it_and_leaves_it_out(opened):
    network = play(opened, lambda network: together(network, 4, 2), SEED)
    assert_one_history(network)
    for window in applied(network).values():
        assert window.accepted == (0, 1, 2) and dict(window.refused) == {POOR: "standing"}
    assert not events(network, Alarm)


def test_a_manifest_that_adds_it_is_passed_over_and_its_leader_named(opened):
    async def scenario(network: Network) -> None:
        async def blind(block: int | None = None) -> Metagraph:
            """As if nobody earned anything, so that all stand."""
            found = await network.chain.metagraph(block)
            rows = tuple(dataclasses.replace(one, incentive=0.0) for one in found.neurons)
            return dataclasses.replace(found, neurons=rows)

        role = Role(alter=lambda world: dataclasses.replace(world, chain=Port(world.chain, metagraph=blind)))
        await together(network, 4, 1, {0: role})

    network = play(opened, scenario, SEED)
    for number in (1, 2, 3):
        name = f"peer-{number:02d}"
        (window,) = applied(network, name).values()
        assert window.accepted == (0, 1, 2) and dict(window.refused) == {POOR: "standing"}
        assert [(alarm.kind, alarm.uid) for alarm in events(network, Alarm, name)] == [("manifest-standing", 0)]
    assert "manifest-standing" in PROVABLE
