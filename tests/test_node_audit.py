"""The full audit on virtual time: honest peers pass, whatever befalls them; lazy, other data, silence and lies fail."""

import asyncio
import dataclasses
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from node_network import RUN, engine_of, events, open_run, play, until

from templar_jax.chain.port import Chain
from templar_jax.config import ComputeConfig, RunConfig
from templar_jax.data.pages import Pages
from templar_jax.errors import ChainError, StoreError
from templar_jax.incentive import evidence as evidences
from templar_jax.incentive.config import IncentiveConfig
from templar_jax.incentive.evidence import Audit
from templar_jax.node import audit, audit_check, challenge, private, rerun
from templar_jax.node import craft as crafts
from templar_jax.node import engine as engines
from templar_jax.node.craft import Craft, Trained
from templar_jax.node.engine import Engine, Params
from templar_jax.node.forkchoice import Claim
from templar_jax.node.seals import SavedSeal
from templar_jax.node.snapshots import DiskSnapshots, MemorySnapshots
from templar_jax.node.world import Node
from templar_jax.simulate.network import BLOCK_SECONDS, NODE, Entry, Network
from templar_jax.simulate.role import Role
from templar_jax.simulate.zoo.table import ROLES
from templar_jax.store.merkle import CHUNK, merkle_root
from templar_jax.telemetry.events import PhaseEnded, PhaseStarted, Registered, Scored, Warned
from templar_jax.train.offload import copy

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


def opened(folder: Path) -> tuple[RunConfig, Engine, Pages]:
    run, _, pages = open_run(folder)
    run = dataclasses.replace(BIG, data=dataclasses.replace(run.data, slots=8))
    return run, engine_of(run), pages


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Network:
    run, engine, pages = opened(tmp_path_factory.mktemp("audit"))
    roles = odd(run)

    async def scenario(network: Network) -> None:
        miners = [network.node(f"peer-{n}", WINDOWS, roles.get(n, Role())) for n in range(6)]
        await asyncio.gather(network.validator("validator-0", WINDOWS), *miners)

    return play((run, engine, pages), scenario, seed=SEED, config=SCORED)


def audits(network: Network) -> list[tuple[int, int, Audit]]:
    """(window, number of the peer, its audit)."""
    records = network.disks["validator-0"].records
    names = {entry.node for entry in network.log if entry.node.startswith("peer-")}
    numbers = {events(network, Registered, name)[0].uid: int(name.removeprefix("peer-")) for name in names}
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


KILLS = (  # (the event that it comes a moment after, blocks until the next start)
    (PhaseStarted(3, "train"), 0.1),
    (PhaseStarted(4, "compress"), 0.1),
    (PhaseStarted(5, "commit"), 0.1),
    (PhaseEnded(6, "reveal", 0.0), 6.0),  # the window is over when it comes back, and its answer is still owed
    (PhaseEnded(7, "reveal", 0.0), 6.0),
    (PhaseEnded(8, "reveal", 0.0), 6.0),
    (PhaseStarted(10, "commit"), 12.0),  # no commitment: that window never was
)


async def unlucky(node: Node, window: int, slot: int, seed: bytes) -> Trained:
    """Its pages cannot be read to the end, in every third window."""
    if window % 3:
        return await crafts.train(node, window, slot, seed)
    params, first, loader = crafts.begin(node, window, crafts.own_pages(node, slot, seed), seed)
    await crafts.take_steps(node, window, params, loader, first, 3)
    raise StoreError("no page")


async def late(node: Node, window: int, saved: SavedSeal) -> bool:
    """Every fifth commitment fails; every seventh succeeds, and the chain says the opposite."""
    if window % 5 == 0:
        return False
    return await crafts.submit(node, window, saved) and window % 7 > 0


@dataclasses.dataclass(frozen=True)
class Flaky:
    """A chain that does not answer the first question for the hash of the block that picks."""

    chain: Any
    asked: set[int] = dataclasses.field(default_factory=set)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.chain, name)

    async def block_hash(self, block: int) -> bytes:
        if block % BIG.window.blocks == BIG.window.keys + BIG.window.evaluate and block not in self.asked:
            self.asked.add(block)
            raise ChainError("no answer")
        return await self.chain.block_hash(block)


SLOW = Role(speed=0.1)  # two blocks and more for its steps: a predecessor's answer cannot wait for them
UNLUCKY = Role(
    craft=Craft(train=unlucky, submit=late),
    alter=lambda world: dataclasses.replace(world, chain=cast(Chain, Flaky(world.chain))),
)


def test_what_befalls_an_honest_miner_fails_no_audit(tmp_path: Path):
    async def victim(network: Network) -> None:
        for after, blocks in KILLS:
            task = asyncio.ensure_future(network.node("peer-0", role=SLOW))

            def wanted(entry: Entry, after: PhaseStarted | PhaseEnded = after) -> bool:
                one = entry.event
                same = isinstance(one, type(after)) and (one.window, one.phase) == (after.window, after.phase)
                return entry.node == "peer-0" and same

            await until(network, wanted)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await asyncio.sleep(blocks * BLOCK_SECONDS)
        await network.node("peer-0", role=SLOW)

    async def scenario(network: Network) -> None:
        others = [victim(network), network.node("peer-1", role=UNLUCKY)]
        tasks = [asyncio.ensure_future(one) for one in others]
        await network.validator("validator-0", 16)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    network = play(opened(tmp_path), scenario, seed=SEED, config=SCORED)
    assert not any(scored.findings for scored in events(network, Scored)), audits(network)
    found = audits(network)
    assert all(one.outcome == "done" and one.state > 1 - 1e-12 for _, _, one in found), found
    assert {(window, 0) for window in (6, 7, 8)} & {(window, number) for window, number, _ in found}
    assert sum(one.continuous is True for _, number, one in found if number == 1) > 2
    assert network.starts["peer-0"] == len(KILLS) + 1


def broken_device(engine: Engine) -> Engine:
    def step(*_: Any) -> Any:
        raise RuntimeError("RESOURCE_EXHAUSTED: out of memory")

    return dataclasses.replace(engine, inner=dataclasses.replace(engine.inner, step=step))


@pytest.mark.parametrize("where", ["begin", "finish"])
def test_a_failing_audit_costs_nobody_the_windows_evaluation(where: str, tmp_path: Path, monkeypatch):
    def full(*_: Any, **__: Any) -> Any:
        raise RuntimeError("RESOURCE_EXHAUSTED: out of memory")

    role = Role(engine=broken_device) if where == "finish" else Role()
    if where == "begin":
        monkeypatch.setattr(audit_check, "copy", full)

    async def scenario(network: Network) -> None:
        await asyncio.gather(network.validator("validator-0", 2, role), *(network.node(f"peer-{n}", 2) for n in (0, 1)))

    network = play(opened(tmp_path), scenario, seed=SEED, config=SCORED)
    assert [one.evaluated for one in events(network, Scored)] == [2, 2] and not audits(network)
    assert [warned.text for warned in events(network, Warned)] == [
        f"window {window}: no audit: RuntimeError: RESOURCE_EXHAUSTED: out of memory" for window in (1, 2)
    ]


def test_nobody_warns(network):
    assert not events(network, Warned)


def test_the_private_state_survives_as_bytes():
    run, engine = BIG, engine_of(BIG)
    params = engine.theta_0()
    batch = np.random.default_rng(0).integers(0, 255, (run.inner.batch, run.data.sequence)).astype(np.int32)
    start = copy(params, offloaded=False)
    params, opt, _ = engine.inner.step(params, engine.inner.init(), batch, 3)
    feedback, packed = engine.compressor.update(engine.compressor.init(), start, params)
    state = private.to_bytes(run, opt, feedback)
    assert len(state) == private.state_bytes(run)
    again = private.from_bytes(engine, state)
    assert private.to_bytes(run, *again) == state
    leaves, ours = private.leaves(run, opt, feedback), private.leaves(run, *again)
    assert rerun.compare(run, packed, leaves, packed, ours) == pytest.approx((1.0, 1.0, 1.0))


def test_likeness_falls_with_direction_and_with_length():
    a, b = np.random.default_rng(0).standard_normal((2, 50))

    def like(x: np.ndarray, y: np.ndarray) -> float:
        with np.errstate(invalid="ignore"):
            return rerun.likeness(float(x @ y), float(x @ x), float(y @ y))

    assert like(a, a) == pytest.approx(1.0) == like(0 * a, 0 * a) and like(a, -a) == pytest.approx(-1.0)
    assert like(a, 100 * a) == pytest.approx(2 * 100 / (1 + 100**2)) and like(a, 0 * a) == 0.0
    same_length = b * np.sqrt((a @ a) / (b @ b))
    assert like(a, same_length) == pytest.approx(a @ b / np.sqrt((a @ a) * (b @ b)))
    assert like(a, np.full_like(a, np.nan)) == like(a, np.full_like(a, np.inf)) == 0.0


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
    assert f"takes {need}" in audit.why_not(allowed(audit_bytes_max=need - 1))
    assert not audit.why_not(RUN) and not audit.why_not(allowed(audit_bytes_max=need))


@pytest.mark.parametrize("kind", ["memory", "disk"])
def test_snapshots_keep_the_newest(kind: str, tmp_path):
    kept = MemorySnapshots() if kind == "memory" else DiskSnapshots(tmp_path / "s")
    for window in range(5):
        kept.save(window, b"%d" % window)
    assert kept.windows() == [2, 3, 4] and kept.load(3) == b"3"
    kept.save(3, b"again")
    kept.drop(4)
    assert kept.windows() == [2, 3] and kept.load(3) == b"again"
