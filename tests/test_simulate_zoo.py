"""Every adversary of class (a) beside honest peers: one history, nobody else hurt, the reason where it is refused."""

import asyncio
import dataclasses

import numpy as np
import pytest
from node_network import RUN, applied, assert_one_history, events, open_run, play, together, until

from templar_jax.compress import aggregate
from templar_jax.compress.tiles import tilings
from templar_jax.node.craft import Craft
from templar_jax.node.scoring import norm
from templar_jax.node.seals import SavedSeal
from templar_jax.node.world import Node
from templar_jax.simulate.network import STAKE, Network, digest, hotkey
from templar_jax.simulate.role import Role
from templar_jax.simulate.zoo.malformed import plain
from templar_jax.simulate.zoo.others import evaluation_draw, last_moment
from templar_jax.simulate.zoo.sending import changed, negated, scaled
from templar_jax.simulate.zoo.table import ROLES, lines
from templar_jax.store.refusals import REASONS
from templar_jax.telemetry.events import Alarm, StepDone, Warned

VALID = {  # accepted in every window in which it contributes; the number of its inner steps in 3 windows of 2
    "noise": 0,
    "zeros": 0,
    "sign-flip": 6,
    "norm-x100": 6,
    "nan": 6,
    "stale-replay": 2,
    "last-aggregate": 0,
    "last-aggregate-noise": 0,
    "feedback-drain": 4,
    "copier-after-keys": 0,
    "other-data": 6,
    "eval-peeker": 6,
    "fake-challenge": 6,
}
REFUSED = {  # the reasons that a leader may give
    "garbage": {"indices", "padding"},
    "malformed-header": {"seal", "signature", "run", "size"},
    "wrong-shape": {"indices", "padding", "size"},
    "oversize": {"size"},
    "empty": {"size"},
    "wrong-window": {"window"},
    "wrong-uid": {"uid"},
    "wrong-run": {"run"},
    "no-steps": {"steps"},
    "no-index": {"index"},
    "other-bytes": {"hash"},
    "wrong-key": {"key"},
    "elsewhere": {"fetch"},
    "copier-before-keys": {"uid"},
    "copied-ciphertext": {"auth"},
    "never-opens": {"no-key"},
    "five-versions": {"key", "hash", "no-key"},
}
NEVER_THERE = {"late", "backdater", "nonsense", "absent"}  # no claim of theirs counts: manifests do not even name them
SOMETIMES = {  # accepted or refused for one of these
    "two-keys": {"key"},
    "withholds-when-bad": {"no-key"},
    "withholds-after-others": {"no-key"},
    "serves-some": {"fetch"},
}
HONEST = {0, 1, 2}


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory):
    return open_run(tmp_path_factory.mktemp("zoo"))


def beside_honest(opened, name: str, windows: int):
    """Peers 0 to 2 are honest, 3 is not. What one of them applied, after checking what holds for every adversary."""
    (role,) = ROLES[name].roles(1)
    network = play(opened, lambda network: together(network, 4, windows, {3: role}))
    assert_one_history(network)
    found = applied(network, "peer-01")
    assert len(found) == windows and all(set(event.accepted) >= HONEST for event in found.values())
    assert {reason for event in found.values() for _, reason in event.refused} <= set(REASONS)
    assert not [event for event in events(network, Warned) if "report this" in event.text]
    alarms = {entry.event.kind for entry in network.log if isinstance(entry.event, Alarm) and entry.node != "peer-03"}
    assert alarms <= ({"suspect"} if name in SOMETIMES else set())  # honest peers saw something else than the leader
    return network, found


@pytest.mark.parametrize("name", VALID)
def test_what_is_well_formed_is_accepted(opened, name: str):
    network, found = beside_honest(opened, name, 3)
    late = name in ("last-aggregate", "last-aggregate-noise", "copier-after-keys")  # window 1 has no past
    assert [3 in event.accepted for event in found.values()] == [not late, True, True]
    assert len(events(network, StepDone, "peer-03")) == VALID[name]


@pytest.mark.parametrize("name", REFUSED)
def test_what_breaks_a_rule_is_refused_for_it(opened, name: str):
    _, found = beside_honest(opened, name, 5 if name == "malformed-header" else 1)
    reasons = [dict(event.refused).get(3) for event in found.values()]
    assert set(reasons) <= REFUSED[name], reasons


@pytest.mark.parametrize("name", sorted(NEVER_THERE))
def test_what_comes_after_the_deadline_does_not_exist(opened, name: str):
    _, found = beside_honest(opened, name, 2)
    assert not [event for event in found.values() if 3 in event.accepted or 3 in dict(event.refused)]


@pytest.mark.parametrize("name", SOMETIMES)
def test_what_is_opened_to_some_or_sometimes_splits_nobody(opened, name: str):
    _, found = beside_honest(opened, name, 4)
    for event in found.values():
        assert 3 in event.accepted or dict(event.refused).get(3) in SOMETIMES[name]


def test_the_evaluation_draw_is_known_to_nobody_while_a_key_may_still_be_withheld(opened):
    known = []

    async def reveal(node: Node, window: int, saved: SavedSeal, _: float) -> None:
        block = node.timetable(window).evaluation_block
        for moment in (await last_moment(node, window), await node.world.chain.eta(block) + 1.0):
            await node.world.clock.sleep(max(0.0, moment - node.world.clock.time()))
            known.append(await evaluation_draw(node, window))

    async def scenario(network: Network) -> None:
        watcher = hotkey(network.seed, "validator")  # whose draws they would be; it leads nothing, so windows are empty
        await network.chain.set_stake(watcher.ss58_address, STAKE)
        await network.chain.register(watcher)
        peeker = asyncio.ensure_future(network.node("peer-03", 1, Role(craft=Craft(reveal=reveal))))
        await until(network, lambda _: len(known) == 2)
        peeker.cancel()

    play(opened, scenario)
    assert known[0] is None and known[1] is not None and len(known[1])


def test_what_is_drawn_comes_from_the_seed(opened):
    logs = []
    for _ in range(2):
        roles = {n: ROLES[name].roles(1)[0] for n, name in ((2, "noise"), (3, "last-aggregate-noise"))}
        logs.append(tuple(play(opened, lambda network, roles=roles: together(network, 4, 2, roles)).log))
    assert digest(logs[0]) == digest(logs[1])


@pytest.mark.parametrize("quantizer", ["sign1", "v213"])
def test_changed_contributions_are_what_they_are_called(quantizer: str):
    run = dataclasses.replace(RUN, compress=dataclasses.replace(RUN.compress, quantizer=quantizer))
    scales = {"sign1": np.uint8(90), "v213": np.float32(0.01)}[quantizer]
    whole = changed(plain(run), lambda one: one._replace(scales=np.full_like(one.scales, scales)))
    assert norm(run, changed(whole, lambda one: scaled(one, 100.0))) == pytest.approx(100 * norm(run, whole), rel=0.05)
    opposite = changed(whole, negated)
    for name, tiling in tilings(run).items():
        there, back = (aggregate.values(tiling, one[name]) for one in (whole, opposite))
        entries = np.arange(4 * 90, 4 * 90 + 4) if quantizer == "sign1" else np.arange(4)
        codes = [np.asarray(one[name].codes).ravel()[0] for one in (whole, opposite)]
        assert there[0, entries[codes[0]]] == -back[0, entries[codes[1]]] != 0


def test_every_adversary_of_the_class_is_tried_here():
    tried = {*VALID, *REFUSED, *NEVER_THERE, *SOMETIMES}
    assert tried == {name for name, entry in ROLES.items() if entry.letter == "a"}


def test_the_table_can_be_read():
    assert len(lines()) == len(ROLES) and all(len(line) < 120 for line in lines())
