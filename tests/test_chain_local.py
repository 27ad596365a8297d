"""The local chain as a file: creation, real processes, kills, and what goes wrong with files."""

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
import time

import pytest

from templar_jax.chain import ledger
from templar_jax.chain.keys import Keypair, load_or_create
from templar_jax.chain.local import Limits, LocalChain
from templar_jax.clock import WallClock
from templar_jax.errors import ChainError
from templar_jax.simulate.loop import VirtualClock, run_virtual

# Registers key `argv[2]` and commits `argv[3]` numbers; prints each once the chain has accepted it.
MEMBER = """
import asyncio, sys
from templar_jax.chain.keys import Keypair
from templar_jax.chain.local import Limits, LocalChain
from templar_jax.clock import WallClock

async def main(path, seed, count):
    chain = LocalChain.create(path, "test", 0.02, 1, 50, WallClock(), limits=Limits(space=10**9))
    key = Keypair.create_from_seed(int(seed).to_bytes(32, "big"))
    print("uid", await chain.register(key), chain._ledger.genesis, flush=True)
    for number in range(int(count)):
        await chain.commit(key, (str(number).encode(), b"x" * 100))
        print("done", number, await chain.head(), flush=True)

asyncio.run(main(*sys.argv[1:]))
"""


def start(path, seed, count) -> subprocess.Popen:
    command = [sys.executable, "-c", MEMBER, str(path), str(seed), str(count)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


async def read_all(path):
    chain = LocalChain.open(path, WallClock())
    try:
        head = await chain.head()
        return await chain.metagraph(), await chain.commitments(0, head), chain._db.execute("PRAGMA integrity_check")
    finally:
        chain.close()


def test_processes_that_start_together_share_one_chain_and_lose_nothing(tmp_path):
    path, processes, count = tmp_path / "chain.db", 5, 12
    members = [start(path, seed % 4, count) for seed in range(processes)]  # two of them with the same hotkey
    printed = [member.communicate(timeout=120) for member in members]
    assert [member.returncode for member in members] == [0] * processes, printed
    lines = [[line.split() for line in out.splitlines()] for out, _ in printed]
    assert len({genesis for [_, _, genesis], *_ in lines}) == 1
    assert {uid for [_, uid, _], *_ in lines} == {"0", "1", "2", "3"} and lines[0][0] == lines[4][0]
    metagraph, commitments, _ = asyncio.run(read_all(path))
    assert [n.uid for n in metagraph.neurons] == [0, 1, 2, 3]
    assert len(commitments) == processes * count
    assert [(c.block, c.index) for c in commitments] == sorted({(c.block, c.index) for c in commitments})
    for seed in range(1, 4):
        own = [c for c in commitments if c.hotkey == Keypair.create_from_seed(seed.to_bytes(32, "big")).ss58_address]
        assert [int(c.fields[0]) for c in own] == list(range(count))
        returned = [int(head) for _, _, head in lines[seed][1:]]
        assert all(c.block <= head for c, head in zip(own, returned, strict=True))
    assert sorted(os.listdir(tmp_path)) in (["chain.db"], ["chain.db", "chain.db-shm", "chain.db-wal"])  # no drafts


def test_a_process_killed_while_it_commits_leaves_a_whole_chain(tmp_path):
    path, acknowledged = tmp_path / "chain.db", 0
    bystander = start(path, 99, 60)
    for seed in range(1, 6):
        member = start(path, seed, 10_000)
        assert member.stdout is not None
        for line in member.stdout:
            if line.startswith(f"done {3 * seed}"):
                break
        time.sleep(0.003 * seed)  # a different moment of its cycle each time
        member.send_signal(signal.SIGKILL)
        rest = member.communicate(timeout=60)[0]
        last = [int(line.split()[1]) for line in rest.splitlines() if line.startswith("done")] or [3 * seed]
        metagraph, commitments, integrity = asyncio.run(read_all(path))
        hotkey = Keypair.create_from_seed(seed.to_bytes(32, "big")).ss58_address
        own = [int(c.fields[0]) for c in commitments if c.hotkey == hotkey]
        assert own == list(range(len(own))) and len(own) > last[-1]  # what was acknowledged is there, in order, once
        assert metagraph.by_hotkey(hotkey) is not None
        acknowledged += last[-1]
    assert acknowledged >= 45
    assert bystander.communicate(timeout=60)[0].count("done") == 60  # others go on


def on_file(path, scenario, **options):
    async def main():
        clock = VirtualClock()
        chain = LocalChain.create(path, "test", 1.0, 1, 50, clock, **options)
        try:
            return await scenario(chain, clock)
        finally:
            chain.close()

    return run_virtual(main)


def key(n=1):
    return Keypair.create_from_seed(n.to_bytes(32, "big"))


def test_creating_again_keeps_the_chain_and_its_rules(tmp_path):
    path = tmp_path / "chain.db"

    async def first(chain, clock):
        await clock.sleep(1000.0)
        return await chain.register(key()), await chain.head(), await chain.block_hash(3)

    async def main():
        clock = VirtualClock()
        chain = LocalChain.create(path, "test", 7.0, 9, 9, clock, limits=Limits(max_uids=3))
        assert chain.rules.block_seconds == chain.block_seconds == 1.0 and chain.rules.limits.max_uids == 256
        metagraph = await LocalChain.open(path, clock).metagraph(1001)
        with pytest.raises(ChainError, match="network 'test', not 'other'"):
            LocalChain.create(path, "other", 1.0, 1, 50, clock)
        return metagraph.neurons[0].uid, await chain.head(), await chain.block_hash(3)

    assert on_file(path, first) == run_virtual(main, start=1001.0)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no local chain at"),
        (b"hello" * 500, "not a readable local chain"),
        (b"", "not a readable local chain.*no such table"),
    ],
)
def test_a_file_that_is_no_chain_is_named(tmp_path, content, message):
    path = tmp_path / "chain.db"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ChainError, match=message) as caught:
        LocalChain.open(path, WallClock())
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


def test_a_damaged_chain_is_named(tmp_path):
    path = tmp_path / "chain.db"

    async def fill(chain, clock):
        await chain.register(key())

    on_file(path, fill)
    data = bytearray(path.read_bytes())
    data[4096:] = os.urandom(len(data) - 4096)
    path.write_bytes(data)
    with pytest.raises(ChainError, match="not a readable local chain"):
        on_file(path, fill)


def test_impossible_rules_and_places_are_named(tmp_path):
    with pytest.raises(ChainError, match="block_seconds > 0"):
        LocalChain.create(":memory:", "test", 0.0, 1, 50, WallClock())
    (tmp_path / "file").write_text("")
    with pytest.raises(ChainError, match="cannot create the local chain"):
        LocalChain.create(tmp_path / "file" / "chain.db", "test", 1.0, 1, 50, WallClock())


def test_a_lock_that_is_never_released_is_an_error_not_a_hang(tmp_path, monkeypatch):
    monkeypatch.setattr(ledger, "BUSY_SECONDS", 0.05)
    path = tmp_path / "chain.db"

    async def scenario(chain, clock):
        await chain.register(key())
        holder = sqlite3.connect(path, isolation_level=None)
        holder.execute("BEGIN IMMEDIATE")
        with pytest.raises(ChainError, match="locked by another process"):
            await chain.commit(key(), (b"x",))
        assert (await chain.metagraph(1)).neurons  # reading sealed blocks goes on
        await clock.sleep(1.0)
        with pytest.raises(ChainError, match="locked by another process"):
            await chain.head()  # whoever holds the lock may be about to write into block 2: nobody may see it yet
        holder.execute("ROLLBACK")
        await chain.commit(key(), (b"x",))
        return len(await chain.commitments(0, await chain.head()))

    assert on_file(path, scenario) == 1


def test_a_full_disk_is_an_error_and_loses_nothing(tmp_path):
    async def scenario(chain, clock):
        await chain.register(key())
        await chain.commit(key(), (b"before",))
        pages = chain._db.execute("PRAGMA page_count").fetchone()[0]
        chain._db.execute(f"PRAGMA max_page_count = {pages + 2}")  # SQLite's own way to be full
        accepted = 1
        with pytest.raises(ChainError, match="disk full at local chain") as caught:
            for _ in range(1000):
                await chain.commit(key(), (b"x" * 128, b"y" * 128))
                accepted += 1
        assert "\n" not in str(caught.value)
        chain._db.execute("PRAGMA max_page_count = 1000000")  # space was freed
        await chain.commit(key(), (b"after",))
        commitments = await chain.commitments(0, await chain.head())
        assert len(commitments) == accepted + 1
        assert (commitments[0].fields, commitments[-1].fields) == ((b"before",), (b"after",))

    on_file(tmp_path / "chain.db", scenario, limits=Limits(space=10**9))


def test_twelve_nodes_and_a_hundred_windows_take_seconds():
    """Each block every node reads the chain, each window it commits twice: the load of a simulation."""

    async def node(chain, clock, n):
        await chain.register(key(n + 1))
        for window in range(1, 101):
            for block in range(40 * window, 40 * window + 40):
                while clock.time() < await chain.eta(block):
                    await clock.sleep(await chain.eta(block) - clock.time())
                await chain.metagraph(await chain.finalized())
                await chain.block_hash(block - 3)
                if block % 20 == n:
                    await chain.commit(key(n + 1), (b"x" * 100, b"y" * 40))
                    await chain.commitments(block - 40, await chain.head())

    async def main():
        clock = VirtualClock()
        chain = LocalChain.create(":memory:", "test", 12.0, 2, 360, clock, seed=0, limits=Limits(space=10**5))
        async with asyncio.TaskGroup() as group:
            for n in range(12):
                group.create_task(node(chain, clock, n))
        return len(await chain.commitments(0, await chain.head()))

    began = time.process_time()
    assert run_virtual(main) == 12 * 100 * 2
    seconds = time.process_time() - began
    assert seconds < 20.0, f"{seconds:.1f} s of CPU (measured: 0.8 s); what became slow?"


def test_a_hotkey_file_is_made_once_and_checked(tmp_path):
    path = tmp_path / "wallet" / "my.key"
    made = load_or_create(path)
    assert load_or_create(path).ss58_address == made.ss58_address
    assert load_or_create(tmp_path / "wallet" / "my.other").ss58_address != made.ss58_address
    assert sorted(os.listdir(path.parent)) == ["my.key", "my.other"] and path.stat().st_mode & 0o777 == 0o600
    for content in ("no hex", "abcd"):
        path.write_text(content)
        with pytest.raises(ChainError, match="is no hotkey"):
            load_or_create(path)
    with pytest.raises(ChainError, match="cannot read or make"):
        load_or_create(path / "below a file")
