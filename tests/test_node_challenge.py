"""The state challenge: who holds theta_w answers like the validator; copies, silence and other parameters show."""

import asyncio
import dataclasses

import jax.numpy as jnp
import pytest
from node_network import RUN, assert_one_history, engine_of, events, open_run, play

from templar_jax.node import challenge
from templar_jax.node.craft import Craft
from templar_jax.node.engine import Engine, Params
from templar_jax.simulate.network import Network, Role
from templar_jax.simulate.zoo import owing
from templar_jax.simulate.zoo.table import ROLES
from templar_jax.store.contribution import root_key
from templar_jax.telemetry.events import Challenged, Registered, Scored, Warned

WINDOWS = 3


def drifted(engine: Engine) -> Engine:
    """An engine whose parameters are one bit off after every outer step, and whose root says otherwise."""
    right: dict[str, Params] = {}

    def apply(params: Params, momentum: Params, contributions, **options):
        after, momentum = engine.outer.apply(right.get("theta", params), momentum, contributions, **options)
        right["theta"] = after
        name = next(iter(after))
        return {**after, name: after[name].at[0, 0].add(jnp.float32(1e-3))}, momentum

    def root(params: Params) -> bytes:
        return engine.root(right.get("theta", params))

    return dataclasses.replace(engine, root=root, outer=dataclasses.replace(engine.outer, apply=apply))


ODD = {
    2: ROLES["fake-challenge"].roles(1)[0],
    3: Role(craft=Craft(answer=owing.silent)),
    4: Role(engine=drifted),
}


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Network:
    async def scenario(network: Network) -> None:
        miners = [network.node(f"peer-{n}", WINDOWS, ODD.get(n, Role())) for n in range(5)]
        await asyncio.gather(network.validator("validator-0", WINDOWS), *miners)

    return play(open_run(tmp_path_factory.mktemp("challenge")), scenario)


def test_answers_tell_who_holds_the_parameters(network):
    assert_one_history(network)
    assert not events(network, Warned)
    uids = [events(network, Registered, f"peer-{n}")[0].uid for n in range(5)]
    said = events(network, Challenged, "validator-0")
    assert len(said) == WINDOWS
    for number, event in enumerate(said):
        drift = "other" if number else "same"  # before its first outer step it has the right parameters
        assert [event.answers[uid] for uid in uids] == ["same", "same", "other", "absent", drift]


def test_it_changes_no_pay(network):
    for event in events(network, Scored, "validator-0"):
        assert not event.violations and event.evaluated == 5
        assert not any("challenge" in name for names in event.findings.values() for name in names)


def test_a_copy_is_a_copy(network):
    answers = [network.store.buckets[f"peer-{n}"][root_key(2)][0] for n in (0, 1, 2, 4)]
    assert answers[2] in answers[:2] and len(set(answers)) == 3


def test_the_salt_depends_on_block_and_hotkey_and_the_answer_on_every_bit():
    engine = engine_of(RUN)
    theta = engine.theta_0()
    salts = [challenge.salt(*what) for what in ((b"a" * 32, "one"), (b"a" * 32, "two"), (b"b" * 32, "one"))]
    assert len({engine.salted_root(theta, value) for value in salts}) == 3
    other = {**theta, "embed": theta["embed"].at[5, 5].set(jnp.nextafter(theta["embed"][5, 5], 1.0))}
    assert engine.salted_root(other, salts[0]) != engine.salted_root(theta, salts[0])
