"""The full audit on virtual time: honest peers pass, on whatever dtype; lazy, other data, silence and lies fail."""

import asyncio
import dataclasses
from functools import partial

import numpy as np
import pytest
from node_network import RUN, engine_of, events, open_run, play

from templar_jax.config import ComputeConfig
from templar_jax.incentive import evidence as evidences
from templar_jax.incentive.config import IncentiveConfig
from templar_jax.incentive.evidence import Audit
from templar_jax.node import audit, private
from templar_jax.node import craft as crafts
from templar_jax.node import engine as engines
from templar_jax.node.craft import Craft, Trained
from templar_jax.node.engine import Params
from templar_jax.node.forkchoice import Claim
from templar_jax.node.snapshots import DiskSnapshots, MemorySnapshots
from templar_jax.node.world import Node
from templar_jax.simulate.network import NODE, Network
from templar_jax.simulate.role import Role
from templar_jax.simulate.zoo.table import ROLES
from templar_jax.store.merkle import CHUNK, merkle_root
from templar_jax.telemetry.events import Registered, Scored, Warned

WINDOWS = 24
SEED = 3
CONFIG = IncentiveConfig()
BIG = dataclasses.replace(
    RUN,
    audit_bytes_max=2**24,
    inner=dataclasses.replace(RUN.inner, steps=8, lr=3e-3, warmup=2, decay_steps=2000),
    data=dataclasses.replace(RUN.data, slots=8),
)
SCORED = dataclasses.replace(NODE, score_sequences=8)


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
    node.local.roots = (b"", merkle_root(other))
    node.local.opt, node.local.feedback = private.from_bytes(node.engine, other)


async def forgetful(node: Node, window: int, params: Params) -> None:
    await crafts.answer(node, window, params)
    forging(node)


def bf16(run) -> Role:
    compute = ComputeConfig(attention="xla", dtype="bfloat16")
    return Role(engine=lambda engine: engines.build(run, compute, engine.mesh))


def odd(run) -> dict[int, Role]:
    return {
        1: bf16(run),
        2: Role(craft=Craft(train=half)),
        3: ROLES["other-data"].roles(1)[0],
        4: ROLES["audit-dodger"].roles(1)[0],
        5: Role(craft=Craft(answer=forgetful)),
    }


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Network:
    run, _, pages = open_run(tmp_path_factory.mktemp("audit"))
    run = dataclasses.replace(BIG, data=dataclasses.replace(run.data, slots=8))
    roles = odd(run)

    async def scenario(network: Network) -> None:
        miners = [network.node(f"peer-{n}", WINDOWS, roles.get(n, Role())) for n in range(6)]
        await asyncio.gather(network.validator("validator-0", WINDOWS), *miners)

    return play((run, engine_of(run), pages), scenario, seed=SEED, config=SCORED)


def audits(network: Network) -> list[tuple[int, int, Audit]]:
    """(window, number of the peer, its audit)."""
    records = network.disks["validator-0"].records
    numbers = {events(network, Registered, f"peer-{n}")[0].uid: n for n in range(6)}
    seen = [evidences.decode(records.load(window).evidence) for window in records.windows()]
    return [(one.window, numbers[peer.uid], peer.audit) for one in seen for peer in one.peers if peer.audit]


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
                assert one == Audit("done", one.cosine, 1.0, one.state, one.continuous)
                assert one.state > 1 - 1e-12 and one.cosine > 0.99 and one.continuous in (True, None)
            case 1:
                assert min(one.cosine, one.state) > (1 + CONFIG.audit_cosine) / 2 and one.continuous is not False
                assert one.overlap > (1 + CONFIG.audit_overlap) / 2
            case 2 | 3:
                assert one.outcome == "done" and one.state < CONFIG.audit_cosine - 0.02 and one.overlap < 0.95
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


def test_the_private_state_survives_as_bytes():
    run, engine = BIG, engine_of(BIG)
    params = engine.theta_0()
    batch = np.random.default_rng(0).integers(0, 255, (run.inner.batch, run.data.sequence)).astype(np.int32)
    start = engines.copy(params)
    params, opt, _ = engine.inner.step(params, engine.inner.init(start), batch, 3)
    feedback, _ = engine.compressor.update(engine.compressor.init(), start, params)
    state = private.to_bytes(run, opt, feedback)
    assert len(state) == private.state_bytes(run)
    again = private.from_bytes(engine, state)
    assert private.to_bytes(run, *again) == state
    ours, theirs = private.leaves(run, opt, feedback), private.leaves(run, *again)
    assert private.likeness(run, ours, theirs) == pytest.approx(1.0, abs=1e-12)
    zeros = [np.zeros_like(x) for x in theirs]
    assert private.likeness(run, ours, zeros) == 0.0 and private.likeness(run, zeros, zeros) == 1.0
    nans = [np.full_like(x, np.nan) if x.dtype == np.float32 else x for x in theirs]
    assert private.likeness(run, ours, nans) == 0.0


def test_the_tree_pins_content_order_and_length():
    data = bytes(range(256)) * (CHUNK // 64)  # four chunks
    roots = [merkle_root(x) for x in (b"", b"\0", data, data[:-1], data + b"\0", data[CHUNK:] + data[:CHUNK][::-1])]
    assert len(set(roots)) == len(roots) and merkle_root(data) == roots[2]
    for at in (0, CHUNK, 3 * CHUNK + 5):
        assert merkle_root(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]) != roots[2]


def test_the_pick_is_the_chains_and_fair():
    claims = [Claim(uid, f"key-{uid}", "sim:x", bytes(32), 1, uid) for uid in (5, 1, 9)]
    hashes = [bytes([n]) * 32 for n in range(200)]
    found = [audit.picked(claims, value) for value in hashes]
    assert found == [audit.picked(claims[::-1], value) for value in hashes]
    counts = [sum(one is not None and one.uid == uid for one in found) for uid in (1, 5, 9)]
    assert sum(counts) == 200 and min(counts) > 40
    assert audit.picked([], hashes[0]) is None


def test_audits_are_off_unless_they_fit():
    need = 2 * private.state_bytes(RUN)
    allowed = partial(dataclasses.replace, RUN)
    assert not audit.allowed(RUN) and not audit.allowed(allowed(audit_bytes_max=need - 1))
    assert audit.allowed(allowed(audit_bytes_max=need))


@pytest.mark.parametrize("kind", ["memory", "disk"])
def test_snapshots_keep_the_newest(kind: str, tmp_path):
    kept = MemorySnapshots() if kind == "memory" else DiskSnapshots(tmp_path / "s")
    for window in range(5):
        kept.save(window, b"%d" % window)
    assert kept.windows() == [2, 3, 4] and kept.load(3) == b"3"
    kept.save(3, b"again")
    kept.drop(4)
    assert kept.windows() == [2, 3] and kept.load(3) == b"again"
