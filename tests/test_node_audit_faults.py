"""Full audits on virtual time where something fails: the miner, its disk, the chain, or the validator itself."""

import asyncio
import dataclasses
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from audit_network import BIG, SCORED, SEED, audits, opened, two
from node_network import HORIZON, events, play, until

from templar_jax.chain.port import Chain
from templar_jax.errors import ChainError, StoreError
from templar_jax.node import audit_check
from templar_jax.node import craft as crafts
from templar_jax.node.craft import Craft, Trained
from templar_jax.node.engine import Engine
from templar_jax.node.seals import SavedSeal
from templar_jax.node.world import Node, World
from templar_jax.simulate.loop import VirtualClock, run_virtual
from templar_jax.simulate.network import BLOCK_SECONDS, Entry, Network
from templar_jax.simulate.role import Role
from templar_jax.store.bucket import Reader
from templar_jax.store.merkle import merkle_root
from templar_jax.telemetry.events import PhaseEnded, PhaseStarted, Scored, Warned

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


def test_an_audit_that_would_not_end_in_time_is_given_up_and_the_evidence_published(tmp_path: Path):
    """Its steps alone take 107 s, and some 110 are left between the answer and the next deadline."""
    network = play(opened(tmp_path), two(3, Role(speed=0.03)), seed=SEED, config=SCORED)
    assert not audits(network) and not events(network, Warned)
    times = {e.event.window: e.time for e in network.log if isinstance(e.event, Scored)}
    due = {w: (w + 1) * BIG.window.blocks + BIG.window.deadline for w in times}
    assert len(times) == 3 and all(time < due[w] * BLOCK_SECONDS for w, time in times.items())


def test_no_part_of_an_audit_begins_that_would_not_end_in_time():
    async def scenario() -> None:
        node = cast(Node, SimpleNamespace(world=SimpleNamespace(clock=VirtualClock("a"))))
        pace = {"roots": 1.0, "step": 2.0}  # compress: guessed to take 2, compare: 4
        case = cast(audit_check.Case, SimpleNamespace(pace=pace))
        part = partial(audit_check._part, node, case)
        assert await part(1 + 5 * 2 + 2 + 4, "roots", 1.5, lambda: "done", 5) == "done"
        assert pace == {"roots": 1.5, "step": 2.0}
        with pytest.raises(audit_check._NoTimeError):
            await part(1.5 + 2 + 6 - 0.1, "compress", 1.0, lambda: pytest.fail("no time"))
        assert pace == {"roots": 0.75, "step": 1.0}
        assert await part(1.5 + 4 * 0.75, "compare", 1.0, lambda: "done") == "done"

    run_virtual(scenario, horizon=HORIZON)


async def withheld(node: Node, window: int, saved: SavedSeal, until: float) -> None:
    del node, window, saved, until


def test_who_withholds_its_key_is_held_to_its_signed_header(tmp_path: Path, monkeypatch):
    seen = {}
    may_begin = audit_check._may_begin

    def listening(*what: Any) -> Any:
        seen[what[1].state.window] = found = may_begin(*what)
        return found

    monkeypatch.setattr(audit_check, "_may_begin", listening)
    network = play(opened(tmp_path), two(4, second=Role(craft=Craft(reveal=withheld))), seed=SEED, config=SCORED)
    names = {who: network.hotkeys[who.hotkey] for who in seen[4]}
    assert sorted(names.values()) == ["peer-0", "peer-1"]
    for who, name in names.items():
        ends = {w: merkle_root(network.disks[name].snapshots.load(w)) for w in (3, 4)}
        assert all(ends[w] in seen[w][who] for w in ends)
        assert seen[4][who] == {ends[4]} if name == "peer-0" else ends[3] in seen[4][who]
    assert {number for _, number, _ in audits(network)} == {0}


@dataclasses.dataclass(frozen=True)
class Cut:
    """A link that breaks when the keys are out."""

    reader: Reader

    async def get(self, key: str, limit: int, timeout: float) -> bytes:
        if key.endswith(("/audit", "/root")):
            raise StoreError("unreachable")
        return await self.reader.get(key, limit, timeout)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.reader, name)


def test_a_validators_own_broken_link_is_nobodys_silence(tmp_path: Path):
    def cut(world: World) -> World:
        return dataclasses.replace(world, open_reader=lambda locator: cast(Reader, Cut(world.open_reader(locator))))

    network = play(opened(tmp_path), two(2, Role(alter=cut)), seed=SEED, config=SCORED)
    assert len(events(network, Scored)) == 2 and not audits(network)
    assert sum("own link" in warned.text for warned in events(network, Warned, "validator-0")) == 2


@pytest.mark.parametrize("how", ["lost", "damaged"])
def test_a_miner_whose_kept_state_is_gone_begins_anew(how: str, tmp_path: Path):
    async def scenario(network: Network) -> None:
        scoring = asyncio.ensure_future(network.validator("validator-0", 5))
        await network.node("peer-0", 2)
        kept = network.disks["peer-0"].snapshots.kept
        kept.update({w: state[:-1] for w, state in kept.items()})
        if how == "lost":
            kept.clear()
        await network.node("peer-0", 2)
        await scoring

    network = play(opened(tmp_path), scenario, seed=SEED, config=SCORED)
    found = {w: one for w, _, one in audits(network)}
    assert all(one.outcome == "done" and one.state > 1 - 1e-12 for one in found.values()), found
    assert [one.continuous for _, one in sorted(found.items())] == [None, True, None, True]
    (warned,) = events(network, Warned, "peer-0")
    assert "begin anew" in warned.text and ("damaged" in warned.text) == (how == "damaged")
