"""What every Chain must do. Run on the local chain in memory and in a file, both on virtual time.

In the file world each test holds two handles of one chain, as two processes would: what one writes the other sees.
"""

import asyncio
import random

import pytest

from templar_jax.chain.keys import Keypair, verify
from templar_jax.chain.local import Limits, LocalChain
from templar_jax.chain.port import Chain
from templar_jax.errors import ChainError
from templar_jax.simulate.loop import VirtualClock, run_virtual

BLOCK = 0.7  # seconds; not a binary fraction, so that rounding is exercised
FINALITY = 2
TEMPO = 10


def key(n: int) -> Keypair:
    return Keypair.create_from_seed(n.to_bytes(32, "big"))


@pytest.fixture(params=["memory", "file"])
def world(request, tmp_path):
    """world(scenario, **options): runs `scenario(chain, other, clock)`, two handles of one new chain."""

    def run(scenario, **options):
        async def main():
            clock = VirtualClock()
            path = ":memory:" if request.param == "memory" else tmp_path / "chain" / "chain.db"
            chain = LocalChain.create(path, "test", BLOCK, FINALITY, TEMPO, clock, **options)
            other = chain if request.param == "memory" else LocalChain.open(path, clock)
            try:
                return await scenario(chain, other, clock)
            finally:
                chain.close()
                other.close()

        return run_virtual(main, start=0.0 if request.param == "memory" else 1.7e9 + 0.1, horizon=2e9)

    return run


async def until(chain: Chain, clock, block: int) -> None:
    await clock.sleep(await chain.eta(block) - clock.time())
    while clock.time() < await chain.eta(block):
        await clock.sleep(await chain.eta(block) - clock.time())
    assert await chain.head() == block


def test_blocks_come_with_the_clock(world):
    async def scenario(chain, other, clock):
        assert (chain.network, chain.block_seconds) == ("test", BLOCK)
        assert (await chain.head(), await chain.finalized()) == (0, 0)
        for block in (1, 2, 3, 500, 501):
            await until(chain, clock, block)
            assert await other.head() == block
            assert await other.finalized() == max(0, block - FINALITY)
            assert clock.time() == await other.eta(block)
        await clock.sleep(BLOCK * 0.9)
        assert await chain.head() == 501

    world(scenario)


def test_hashes_exist_only_for_blocks_and_differ_by_block_and_network(world):
    async def scenario(chain, other, clock):
        for block in (1, -1):
            with pytest.raises(ChainError, match="does not exist"):
                await chain.block_hash(block)
        await until(chain, clock, 20)
        hashes = [await chain.block_hash(block) for block in range(21)]
        assert [await other.block_hash(block) for block in range(21)] == hashes
        assert len(set(hashes)) == 21 and {len(h) for h in hashes} == {32}
        strangers = [LocalChain.create(":memory:", "test", BLOCK, 0, 9, clock, seed=seed) for seed in (1, 1, 2, None)]
        first, same, second, drawn = [await stranger.block_hash(0) for stranger in strangers]
        assert first == same and len({first, second, drawn, hashes[0]}) == 4
        assert first.hex()[:16] == "ab01c0d01ab54839", "block hashes changed: simulations with a seed no longer repeat"

    world(scenario)


def test_registration_is_in_the_next_block_and_remembered(world):
    async def scenario(chain, other, clock):
        await until(chain, clock, 5)
        assert await asyncio.gather(chain.register(key(1)), other.register(key(2)), chain.register(key(1))) == [0, 1, 0]
        assert await chain.head() == 6
        assert await other.register(key(3)) == 2
        assert await chain.register(key(2)) == 1  # known already
        assert (await other.metagraph(5)).neurons == ()
        assert [(n.uid, n.hotkey, n.registered) for n in (await other.metagraph()).neurons] == [
            (0, key(1).ss58_address, 6),
            (1, key(2).ss58_address, 6),
            (2, key(3).ss58_address, 7),
        ]
        assert [n.uid for n in (await chain.metagraph(6)).neurons] == [0, 1]
        found = await chain.metagraph(6)
        assert found.block == 6 and found.by_hotkey(key(3).ss58_address) is None
        for block in (99, -1):
            with pytest.raises(ChainError, match="does not exist"):
                await chain.metagraph(block)

    world(scenario)


def test_a_commitment_stands_in_the_block_after_the_call(world):
    async def scenario(chain, other, clock):
        await asyncio.gather(*(chain.register(key(n)) for n in range(3)))
        await until(chain, clock, 4)
        await clock.sleep(0.1 * BLOCK)
        with pytest.raises(ChainError, match="does not exist"):
            await chain.commitments(0, 5)
        await asyncio.gather(
            chain.commit(key(2), (b"two",)),
            other.commit(key(0), (b"\x00" * 128, b"\xff" * 128)),
            chain.commit(key(2), (b"", b"again")),
        )
        assert await chain.head() == 5 and clock.time() == await chain.eta(5)
        await chain.commit(key(1), (b"late",))
        expected = [
            (5, 0, key(2).ss58_address, (b"two",)),
            (5, 1, key(0).ss58_address, (b"\x00" * 128, b"\xff" * 128)),
            (5, 2, key(2).ss58_address, (b"", b"again")),
            (6, 0, key(1).ss58_address, (b"late",)),
        ]
        for handle in (chain, other):
            assert [(c.block, c.index, c.hotkey, c.fields) for c in await handle.commitments(0, 6)] == expected
            assert [c.fields for c in await handle.commitments(6, 6)] == [(b"late",)]
            assert await handle.commitments(0, 4) == await handle.commitments(6, 5) == ()

    world(scenario)


def test_a_commitment_whose_caller_gave_up_still_stands(world):
    async def scenario(chain, other, clock):
        await chain.register(key(1))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(chain.commit(key(1), (b"x",)), BLOCK / 2)
        await until(chain, clock, 2)
        assert [c.fields for c in await other.commitments(2, 2)] == [(b"x",)]

    world(scenario)


def test_a_commitment_that_breaks_a_rule_is_refused(world):
    async def scenario(chain, other, clock):
        with pytest.raises(ChainError, match="not registered"):
            await chain.commit(key(1), (b"x",))
        await chain.register(key(1))
        for fields in ((), (b"",) * 3, (b"x" * 129,)):
            with pytest.raises(ChainError, match="1 to 2 fields of at most 128 bytes"):
                await chain.commit(key(1), fields)
        with pytest.raises(ChainError, match="public key only"):
            await chain.commit(Keypair(ss58_address=key(1).ss58_address), (b"forged",))
        assert await chain.commitments(0, await chain.head()) == ()

    world(scenario)


def test_space_is_limited_per_tempo(world):
    async def scenario(chain, other, clock):
        await chain.register(key(1))
        await chain.register(key(2))
        await until(chain, clock, TEMPO - 1)
        await chain.commit(key(1), (b"x",))  # 100: stands in the first block of a tempo
        await other.commit(key(1), (b"x" * 128, b"x" * 72))  # 200: full
        with pytest.raises(ChainError, match=r"300 of 300 bytes in this tempo.*wait for block 20"):
            await chain.commit(key(1), (b"x",))
        await chain.commit(key(2), (b"x",))  # each hotkey has its own
        await until(chain, clock, 2 * TEMPO - 1)
        await chain.commit(key(1), (b"y",))
        assert [c.block for c in await chain.commitments(0, 20)] == [10, 11, 12, 20]

    world(scenario, limits=Limits(space=300))


def test_permits_go_to_the_highest_stakes(world):
    async def scenario(chain, other, clock):
        for n in range(4):
            await chain.register(key(n))
        assert not any(n.permit for n in (await chain.metagraph()).neurons)
        for n, stake in enumerate([1.0, 5.0, 0.0, 5.0]):
            await other.set_stake(key(n).ss58_address, stake)
        before = await chain.head()
        await chain.set_stake(key(0).ss58_address, 9.0)
        assert [(n.stake, n.permit) for n in (await chain.metagraph(before)).neurons] == [
            (1.0, False),
            (5.0, True),
            (0.0, False),
            (5.0, True),
        ]
        assert [n.permit for n in (await other.metagraph()).neurons] == [True, True, False, False]
        for bad in (-1.0, float("nan"), float("inf")):
            with pytest.raises(ChainError, match="stake"):
                await chain.set_stake(key(0).ss58_address, bad)

    world(scenario, limits=Limits(max_validators=2))


def test_weights_need_registration_permit_range_and_patience(world):
    async def scenario(chain, other, clock):
        with pytest.raises(ChainError, match="not registered"):
            await chain.set_weights(key(0), {0: 1})
        await asyncio.gather(*(chain.register(key(n)) for n in range(2)))
        with pytest.raises(ChainError, match="no validator permit"):
            await chain.set_weights(key(0), {1: 1})
        await chain.set_stake(key(0).ss58_address, 1.0)
        for weights, message in (({1: 65536}, "no u16"), ({1: -1}, "no u16"), ({7: 1}, "no neuron has uid 7")):
            with pytest.raises(ChainError, match=message):
                await chain.set_weights(key(0), weights)
        with pytest.raises(ChainError, match="no weights"):
            await chain.set_weights(key(0), {})
        await chain.set_weights(key(0), {1: 65535, 0: 0})
        set_at = await other.head()
        assert [n.last_update for n in (await other.metagraph()).neurons] == [set_at, 0]
        with pytest.raises(ChainError, match=f"again in block {set_at + 7}"):
            await other.set_weights(key(0), {1: 1})
        await until(chain, clock, set_at + 6)
        await other.set_weights(key(0), {1: 1})
        assert (await chain.metagraph()).neurons[0].last_update == set_at + 7
        assert (await chain.metagraph(set_at + 6)).neurons[0].last_update == set_at

    world(scenario, limits=Limits(weights_interval=7))


def test_each_tempo_pays_by_yuma_consensus(world):
    async def scenario(chain, other, clock):
        await asyncio.gather(*(chain.register(key(n)) for n in range(3)))
        await chain.set_stake(key(0).ss58_address, 1.0)
        await chain.set_weights(key(0), {1: 3, 2: 1})
        await until(chain, clock, TEMPO - 1)
        assert {n.emission for n in (await chain.metagraph()).neurons} == {0.0}
        await until(chain, clock, TEMPO)
        paid = [(n.incentive, n.dividends, n.emission) for n in (await other.metagraph()).neurons]
        assert paid == [(0.0, 1.0, 10.0), (0.75, 0.0, 7.5), (0.25, 0.0, 2.5)]  # 2 a block, half to each side
        await chain.set_weights(key(0), {2: 1})
        await until(chain, clock, 2 * TEMPO + 3)
        assert [n.emission for n in (await other.metagraph()).neurons] == [10.0, 0.0, 10.0]
        assert [n.emission for n in (await other.metagraph(2 * TEMPO - 1)).neurons] == [10.0, 7.5, 2.5]

    world(scenario, limits=Limits(emission=2.0, weights_interval=1))


def test_a_full_subnet_replaces_the_lowest_paid(world):
    async def scenario(chain, other, clock):
        for n in range(3):
            await chain.register(key(n))
        await chain.set_stake(key(0).ss58_address, 1.0)
        await chain.set_weights(key(0), {1: 1, 2: 2})
        await until(chain, clock, TEMPO)
        assert await chain.register(key(3)) == 1  # past immunity and paid least
        taken = await chain.head()
        assert await asyncio.gather(other.register(key(4)), chain.register(key(5))) == [2, 0]  # uid 1 is a newcomer
        assert (await chain.metagraph(taken - 1)).neurons[1].hotkey == key(1).ss58_address
        newcomer = (await other.metagraph(taken)).neurons[1]
        assert (newcomer.hotkey, newcomer.registered, newcomer.emission) == (key(3).ss58_address, taken, 0.0)
        with pytest.raises(ChainError, match="not registered"):
            await chain.commit(key(1), (b"x",))
        assert await chain.register(key(1)) == 1  # all are newcomers: the earliest of those who earned nothing
        with pytest.raises(ChainError, match="no more room"):
            await asyncio.gather(*(chain.register(key(n)) for n in range(10, 14)))

    world(scenario, limits=Limits(max_uids=3, immunity=6))


def test_weights_for_a_former_owner_of_the_uid_do_not_pay_the_next(world):
    async def scenario(chain, other, clock):
        await asyncio.gather(*(chain.register(key(n)) for n in range(3)))
        await chain.set_stake(key(0).ss58_address, 1.0)
        await chain.set_weights(key(0), {1: 1, 2: 1})
        await until(chain, clock, TEMPO + 1)
        assert await chain.register(key(3)) == 1
        await until(chain, clock, 3 * TEMPO)
        assert [n.incentive for n in (await chain.metagraph()).neurons] == [0.0, 0.0, 1.0]

    world(scenario, limits=Limits(max_uids=3, immunity=2))


async def snapshot(chain: Chain, block: int):
    return await chain.block_hash(block), await chain.metagraph(block), await chain.commitments(block, block)


async def act(chain, clock, rng: random.Random) -> None:
    """A node doing anything at any time; the chain's refusals are part of the test."""
    for _ in range(12):
        await clock.sleep(rng.choice([0.0, BLOCK, rng.random() * 3 * BLOCK]))
        who = key(rng.randrange(8))
        try:
            match rng.randrange(4):
                case 0:
                    await chain.register(who)
                case 1:
                    await chain.commit(who, (rng.randbytes(rng.randrange(129)),))
                case 2:
                    await chain.set_stake(who.ss58_address, rng.randrange(4))
                case 3:
                    await chain.set_weights(who, {rng.randrange(5): rng.randrange(65536) for _ in range(3)})
        except ChainError:
            pass


@pytest.mark.parametrize("seed", range(3))
def test_nothing_that_was_seen_ever_changes(world, seed):
    async def scenario(chain, other, clock):
        nodes = [
            asyncio.create_task(act(handle, clock, random.Random(f"{seed} {number} {index}")))
            for number, handle in enumerate((chain, other))
            for index in range(3)
        ]
        seen = []
        while not all(node.done() for node in nodes):
            seen += [await snapshot(chain, block) for block in range(len(seen), await chain.head() + 1)]
            await clock.sleep(BLOCK / 3)
        await asyncio.gather(*nodes)
        await until(chain, clock, await chain.head() + 5 * TEMPO)
        chain._metagraphs.clear()  # from the file again, not from memory
        assert [await snapshot(chain, block) for block in range(len(seen))] == seen
        assert sum(len(commitments) for _, _, commitments in seen) >= 3
        assert any(n.emission for _, metagraph, _ in seen for n in metagraph.neurons)

    world(scenario, limits=Limits(max_uids=5, immunity=8, weights_interval=2, space=10_000))


def test_a_chain_that_nobody_watched_is_in_the_same_state(world):
    """Epochs are run when somebody looks: every block, or after a thousand tempos in one go."""

    async def scenario(chain, other, clock):
        unwatched = LocalChain.create(":memory:", "test", BLOCK, FINALITY, TEMPO, clock, limits=chain.rules.limits)

        async def prepare(handle):
            await asyncio.gather(*(handle.register(key(n)) for n in range(4)))
            for n, stake in enumerate([3.0, 2.0]):
                await handle.set_stake(key(n).ss58_address, stake)
            for n, weights in enumerate([{2: 3, 3: 1}, {2: 1, 3: 1}]):
                await handle.set_weights(key(n), weights)
                await clock.sleep(8 * TEMPO * BLOCK)  # the second validator's bonds come later and catch up slowly

        await asyncio.gather(prepare(chain), prepare(unwatched))
        blocks = [*range(17 * TEMPO, 40 * TEMPO), *range(40 * TEMPO, 1000 * TEMPO, 7 * TEMPO)]
        watched = []
        for block in blocks:
            await until(other, clock, block)
            watched.append((await other.metagraph(block)).neurons)
        assert len({neurons[0].emission for neurons in watched}) > 10  # bonds move
        assert (watched[-1][0].emission, watched[-1][2].emission) == (6.0, 0.0)  # idle validators have no vote
        assert [(await unwatched.metagraph(block)).neurons for block in blocks] == watched

    world(scenario, limits=Limits(activity_cutoff=600 * TEMPO))


def test_a_clock_that_goes_back_never_moves_the_chain_back(world):
    class Broken:
        def __init__(self, clock):
            self.clock, self.shift = clock, 0.0

        def time(self):
            return self.clock.time() - self.shift

        async def sleep(self, seconds):
            await self.clock.sleep(seconds)

        async def spend(self, phase, modelled_seconds, work):
            return work()

    async def scenario(chain, other, clock):
        await chain.register(key(1))
        await until(chain, clock, 20)
        chain._clock = other._clock = broken = Broken(clock)
        broken.shift = 2 * BLOCK
        assert await chain.head() == 20
        await other.commit(key(1), (b"a little back: only a longer wait",))
        assert [c.block for c in await chain.commitments(0, 21)] == [21]
        broken.shift = 100 * BLOCK
        assert await chain.head() == 21
        with pytest.raises(ChainError, match="ahead of this machine's clock"):
            await other.commit(key(1), (b"x",))

    world(scenario)


def test_a_hotkey_signs_what_others_verify():
    signature = key(1).sign(b"message")
    assert verify(key(1).ss58_address, b"message", signature)
    assert not verify(key(2).ss58_address, b"message", signature)
    assert not verify("nonsense", b"message", signature)
