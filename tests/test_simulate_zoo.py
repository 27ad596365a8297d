"""Every adversary of the zoo beside honest peers: one history, nobody else hurt, and the reason where it is refused."""

import pytest
from node_network import applied, assert_one_history, open_run, play, together

from templar_jax.simulate.zoo.table import ROLES, lines
from templar_jax.telemetry.events import StepDone

WINDOWS = 2


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory):
    return open_run(tmp_path_factory.mktemp("zoo"))


@pytest.mark.parametrize("name", ["noise", "zeros", "sign-flip", "norm-x100", "nan"])
def test_well_formed_contributions_are_accepted_whatever_their_values(opened, name: str):
    (role,) = ROLES[name].roles(1)
    network = play(opened, lambda network: together(network, 4, WINDOWS, {3: role}))
    assert_one_history(network)
    assert {event.accepted for event in applied(network).values()} == {(0, 1, 2, 3)}
    steps = sum(isinstance(entry.event, StepDone) and entry.node == "peer-03" for entry in network.log)
    assert (steps == 0) == (name in ("noise", "zeros"))


def test_the_table_can_be_read():
    assert len(lines()) == len(ROLES) and all(len(line) < 120 for line in lines())
