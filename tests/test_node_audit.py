"""The full audit on virtual time: honest peers pass, whatever befalls them; lazy, other data, silence and lies fail."""

import asyncio
import dataclasses

import pytest
from audit_network import SCORED, SEED, audits, opened
from node_network import events, play

from templar_jax.config import ComputeConfig, RunConfig
from templar_jax.incentive.config import IncentiveConfig
from templar_jax.node import challenge, private
from templar_jax.node import craft as crafts
from templar_jax.node import engine as engines
from templar_jax.node.craft import Craft, Trained
from templar_jax.node.engine import Params
from templar_jax.node.world import Node
from templar_jax.simulate.network import Network
from templar_jax.simulate.role import Role
from templar_jax.simulate.zoo.table import ROLES
from templar_jax.store.merkle import merkle_root
from templar_jax.telemetry.events import Registered, Scored, Warned

WINDOWS = 24
CONFIG = IncentiveConfig()


async def half(node: Node, window: int, slot: int, seed: bytes) -> Trained:
    """Half of the steps, twice as far, as if all had been done."""
    params, first, loader = crafts.begin(node, window, crafts.own_pages(node, slot, seed), seed)
    done = await crafts.take_steps(node, window, params, loader, first, node.run.inner.steps // 2)
    further = {name: 2.0 * x - node.state.params[name] for name, x in done.params.items()}
    return dataclasses.replace(done, params=further, steps=node.run.inner.steps)


def forging(node: Node) -> None:
    """The next window begins with other moments than the last one ended with."""
    other = bytes(private.state_bytes(node.run))
    newest = node.world.snapshots.windows()[-1]
    node.world.snapshots.save(newest, other)
    node.local.roots = node.local.roots[0], merkle_root(other)
    node.local.opt, node.local.feedback = private.from_bytes(node.engine, other)


async def forgetful(node: Node, window: int, params: Params) -> None:
    await crafts.answer(node, window, params)
    forging(node)


async def unaudited(node: Node, window: int, params: Params) -> None:
    """The state challenge only."""
    await challenge.answer(node, window, params)


def bf16(run: RunConfig) -> Role:
    compute = ComputeConfig(attention="xla", dtype="bfloat16")
    return Role(engine=lambda engine: engines.build(run, compute, engine.mesh))


def odd(run: RunConfig) -> dict[int, Role]:
    return {
        1: bf16(run),
        2: Role(craft=Craft(train=half)),
        3: ROLES["other-data"].roles(1)[0],
        4: Role(craft=Craft(answer=unaudited)),
        5: Role(craft=Craft(answer=forgetful)),
    }


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Network:
    run, engine, pages = opened(tmp_path_factory.mktemp("audit"))
    roles = odd(run)

    async def scenario(network: Network) -> None:
        miners = [network.node(f"peer-{n}", WINDOWS, roles.get(n, Role())) for n in range(6)]
        await asyncio.gather(network.validator("validator-0", WINDOWS), *miners)

    return play((run, engine, pages), scenario, seed=SEED, config=SCORED)


def test_honest_peers_pass_and_nobody_else_does(network):
    found = audits(network)
    assert len(found) == WINDOWS and {number for _, number, _ in found} == set(range(6)), found
    for window, number, one in found:
        scored = next(e for e in events(network, Scored, "validator-0") if e.window == window)
        uid = events(network, Registered, f"peer-{number}")[0].uid
        failed = "audit" in scored.findings.get(uid, ())
        assert failed == (number > 1 and not (number == 5 and one.continuous is None)), (window, number, one)
        match number:
            case 0:
                assert min(one.sent, one.overlap, one.state) > 1 - 1e-12 and one.continuous in (True, None)
            case 1:
                assert min(one.sent, one.state) > (1 + CONFIG.audit_likeness) / 2 and one.continuous is not False
                assert one.overlap > (1 + CONFIG.audit_overlap) / 2
            case 2 | 3:
                assert one.outcome == "done" and one.state < CONFIG.audit_likeness - 0.02 and one.overlap < 0.95
            case 4:
                assert one.outcome == "absent"
            case 5:
                assert one.continuous is not True


def test_failing_costs_nine_tenths_until_it_is_made_good(network):
    last = events(network, Scored, "validator-0")[-1]
    parts = {n: last.scores[events(network, Registered, f"peer-{n}")[0].uid]["audit"] for n in range(6)}
    assert parts[0] == parts[1] == 1.0 and all(parts[n] < 0.5 for n in (2, 3, 4))


def test_nobody_warns(network):
    assert not events(network, Warned)
