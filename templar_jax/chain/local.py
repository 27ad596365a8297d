"""A Bittensor-like subnet in one SQLite file: any number of processes on one machine, or one process on virtual time.

Time makes the blocks: block n exists from `genesis + n * block_seconds` on, whether or not anybody looks. Whoever first
looks after that **seals** the blocks so far, in a transaction that also runs the epochs among them; the sealed height
never goes back. A change (register, commit, set_weights, set_stake) is written under the same lock into the first block
that is not sealed, and its call returns when that block exists. So nobody can write into a block that anybody has seen,
not even a process that was stopped in mid-call: everything at or below the head is as fixed as `finalized` promises.

Block hashes are an HMAC of the height under a secret drawn when the network is created (from the seed in a simulation):
nothing that the port offers predicts them, but whoever reads the file can. The machine's owner is trusted; so are the
clocks of its processes, which are one clock. The file must lie on a local disk: WAL does not work over a network.
"""

import hashlib
import hmac
import math
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Self, TypeVar

from templar_jax.chain import ledger, state
from templar_jax.chain.keys import Keypair
from templar_jax.chain.ledger import Ledger, Limits, Rules, guarded, transaction
from templar_jax.chain.port import FIELD_BYTES, FIELDS, Commitment, Metagraph
from templar_jax.clock import Clock
from templar_jax.errors import ChainError

T = TypeVar("T")

CHUNK_EPOCHS = 64  # sealed in one transaction, so that a chain that slept does not lock others out while it wakes up
CACHED_METAGRAPHS = 64
LATE_BLOCKS = 3  # a change that would wait for longer than so many blocks: the clock has gone back

__all__ = ["Limits", "LocalChain", "Rules"]


class LocalChain:
    """The chain port on SQLite. Calls are quick and run inline on the event loop; no threads.

    In memory (path ":memory:") the object is the chain: all nodes of a simulation share it.
    """

    def __init__(self, opened: Ledger, clock: Clock) -> None:
        self.network = opened.network
        self.rules = opened.rules
        self.block_seconds = opened.rules.block_seconds
        self._ledger = opened
        self._db = opened.db
        self._clock = clock
        self._height = 0  # sealed, as far as this process knows
        self._metagraphs: OrderedDict[int, Metagraph] = OrderedDict()

    @classmethod
    def create(
        cls,
        path: str | Path,
        network: str,
        block_seconds: float,
        finality: int,
        tempo: int,
        clock: Clock,
        *,
        limits: Limits | None = None,
        seed: int | None = None,
    ) -> Self:
        """Opens the chain at `path`, creating it if there is none; safe when several processes start together.

        Args:
          path: a file, or ":memory:".
          network: its name; ChainError if the file belongs to another.
          block_seconds, finality (blocks), tempo (blocks), limits: fixed at creation; an existing chain keeps its own
            (see `rules`). A miner needs max(100, bytes) of `limits.space` a tempo for each commitment: choose the
            tempo so that the windows in it, two commitments each, fit.
          clock: where blocks come from; block 0 is now.
          seed: draws the secret of the block hashes, for simulations. None: from the system.
        """
        rules = Rules(block_seconds, finality, tempo, limits or Limits())
        secret = None if seed is None else hashlib.sha256(f"local chain {network} {seed}".encode()).digest()
        return cls(ledger.create(path, network, rules, clock.time(), secret), clock)

    @classmethod
    def open(cls, path: str | Path, clock: Clock) -> Self:
        """The existing chain at `path`; ChainError if there is none."""
        return cls(ledger.open_file(path), clock)

    def close(self) -> None:
        self._db.close()

    async def head(self) -> int:
        return self._seal()

    async def finalized(self) -> int:
        return max(0, self._seal() - self.rules.finality)

    async def eta(self, block: int) -> float:
        """Clock time of `block`: its timestamp, if it exists."""
        return self._ledger.genesis + block * self.block_seconds

    async def block_hash(self, block: int) -> bytes:
        self._check_exists(block)
        return hmac.digest(self._ledger.secret, f"{self.network}\0{block}".encode(), "sha256")

    async def metagraph(self, block: int | None = None) -> Metagraph:
        block = self._seal() if block is None else block
        self._check_exists(block)
        if (found := self._metagraphs.get(block)) is None:
            with guarded(self._ledger.path):
                found = state.metagraph(self._db, self.rules.limits, block)
            self._metagraphs[block] = found
            if len(self._metagraphs) > CACHED_METAGRAPHS:
                self._metagraphs.popitem(last=False)
        return found

    async def commitments(self, first: int, last: int) -> tuple[Commitment, ...]:
        """Empty if last < first; ChainError if `last` does not exist yet (the answer could still grow)."""
        if last < first:
            return ()
        self._check_exists(last)
        query = "SELECT block, idx, hotkey, fields FROM commitments WHERE block BETWEEN ? AND ? ORDER BY block, idx"
        with guarded(self._ledger.path):
            rows = self._db.execute(query, (first, last)).fetchall()
        return tuple(Commitment(block, index, key, state.unpack_fields(data)) for block, index, key, data in rows)

    async def weights(self, block: int | None = None) -> Mapping[int, Mapping[int, int]]:
        neurons = (await self.metagraph(block)).neurons
        with guarded(self._ledger.path):
            return {neuron.uid: state.weights_of(self._db, neuron) for neuron in neurons if neuron.last_update}

    async def register(self, key: Keypair) -> int:
        """Registration is free. In a full subnet the lowest-paid neuron past its immunity makes room."""
        hotkey = _signer(key)
        return await self._change(lambda block: self._register(hotkey, block))

    async def commit(self, key: Keypair, fields: tuple[bytes, ...]) -> None:
        """Stands in the block after the head at the time of the call. If the wait for it is cancelled it still does."""
        hotkey = _signer(key)
        if not 1 <= len(fields) <= FIELDS or any(len(field) > FIELD_BYTES for field in fields):
            sizes = [len(field) for field in fields]
            raise ChainError(f"a commitment has 1 to {FIELDS} fields of at most {FIELD_BYTES} bytes, not {sizes}")
        await self._change(lambda block: self._commit(hotkey, fields, block))

    async def set_weights(self, key: Keypair, weights: Mapping[int, int]) -> None:
        hotkey = _signer(key)
        for uid, weight in weights.items():
            if not 0 <= weight <= 65535:
                raise ChainError(f"weight {weight} of uid {uid} is no u16: scale weights to 0..65535")
        await self._change(lambda block: self._set_weights(hotkey, dict(weights), block))

    async def set_stake(self, hotkey: str, stake: float) -> None:
        """Local only, a faucet: the stake of `hotkey` (ss58 address, registered or not) from the next block on."""
        if not (math.isfinite(stake) and stake >= 0.0):
            raise ChainError(f"stake must be finite and not negative, not {stake}")
        query = "INSERT OR REPLACE INTO stakes VALUES (?, ?, ?)"
        await self._change(lambda block: self._db.execute(query, (hotkey, block, float(stake))))

    def _register(self, hotkey: str, block: int) -> int:
        found = state.metagraph(self._db, self.rules.limits, block)
        if (known := found.by_hotkey(hotkey)) is not None:
            return known.uid
        uid = len(found.neurons)
        if uid >= self.rules.limits.max_uids:
            leaving = state.replaceable(found.neurons, self.rules.limits, block)
            if leaving is None:
                raise ChainError(f"block {block} has no more room for registrations: try again in the next one")
            uid = leaving.uid
            self._db.execute("UPDATE neurons SET replaced = ? WHERE uid = ? AND replaced IS NULL", (block, uid))
        self._db.execute("INSERT INTO neurons VALUES (?, ?, ?, NULL)", (uid, block, hotkey))
        return uid

    def _commit(self, hotkey: str, fields: tuple[bytes, ...], block: int) -> None:
        limits, tempo = self.rules.limits, self.rules.tempo
        self._check_registered(hotkey)
        space = max(limits.min_space, sum(map(len, fields)))
        query = "SELECT coalesce(sum(space), 0) FROM commitments WHERE hotkey = ? AND block >= ?"
        used = self._db.execute(query, (hotkey, block // tempo * tempo)).fetchone()[0]
        if used + space > limits.space:
            raise ChainError(
                f"hotkey {hotkey} has committed {used} of {limits.space} bytes in this tempo, {space} more do not fit: "
                f"commit less, or wait for block {(block // tempo + 1) * tempo}"
            )
        query = "INSERT INTO commitments SELECT ?, count(*), ?, ?, ? FROM commitments WHERE block = ?"
        self._db.execute(query, (block, hotkey, state.pack_fields(fields), space, block))

    def _set_weights(self, hotkey: str, weights: dict[int, int], block: int) -> None:
        found = state.metagraph(self._db, self.rules.limits, block)
        neuron = found.by_hotkey(hotkey)
        if neuron is None:
            raise ChainError(f"hotkey {hotkey} is not registered on {self.network!r}: register it first")
        if not neuron.permit:
            raise ChainError(f"uid {neuron.uid} has no validator permit: it needs stake among the highest")
        allowed = neuron.last_update + self.rules.limits.weights_interval if neuron.last_update else 0
        if block < allowed:
            raise ChainError(f"weights rate limit: uid {neuron.uid} may set weights again in block {allowed}")
        if unknown := sorted(weights.keys() - {n.uid for n in found.neurons}):
            raise ChainError(f"no neuron has uid {unknown[0]}: read the metagraph again")
        if not weights:
            raise ChainError("no weights given: name at least one uid")
        self._db.execute(
            "INSERT OR REPLACE INTO weights VALUES (?, ?, ?)", (hotkey, block, state.pack_weights(weights))
        )

    def _check_registered(self, hotkey: str) -> None:
        query = "SELECT 1 FROM neurons WHERE hotkey = ? AND replaced IS NULL"
        if self._db.execute(query, (hotkey,)).fetchone() is None:
            raise ChainError(f"hotkey {hotkey} is not registered on {self.network!r}: register it first")

    def _check_exists(self, block: int) -> None:
        if not 0 <= block <= self._height and not 0 <= block <= self._seal():
            raise ChainError(f"block {block} does not exist (yet): the chain {self.network!r} stands at {self._height}")

    def _clock_block(self) -> int:
        """The newest block that the clock allows; exact at the moments that `eta` gives, whatever the rounding."""
        genesis, seconds, now = self._ledger.genesis, self.block_seconds, self._clock.time()
        block = max(0, math.floor((now - genesis) / seconds))
        while genesis + (block + 1) * seconds <= now:
            block += 1
        while block > 0 and genesis + block * seconds > now:
            block -= 1
        return block

    def _seal(self) -> int:
        """Fixes every block up to now and runs the epochs among them, unless some process has. Returns the head."""
        now = self._clock_block()
        if now > self._height:
            with guarded(self._ledger.path):
                self._height = self._read_height()
                while now > self._height:
                    with transaction(self._db):
                        reached = self._seal_locked(min(now, self._height + CHUNK_EPOCHS * self.rules.tempo))
                    self._height = reached
        return self._height

    def _seal_locked(self, block: int) -> int:
        """Seals up to `block`, inside the transaction; returns the height, which may be beyond it already."""
        height = self._read_height()
        if block > height:
            state.run_epochs(self._db, self.rules, height + 1, block)
            self._db.execute("UPDATE sealed SET height = ?", (block,))
        return max(height, block)

    def _read_height(self) -> int:
        return self._db.execute("SELECT height FROM sealed").fetchone()[0]

    async def _change(self, change: Callable[[int], T]) -> T:
        """Runs `change(block)` under the write lock for the first unsealed block and waits until that exists."""
        self._seal()
        with guarded(self._ledger.path):
            with transaction(self._db):
                height = self._seal_locked(self._clock_block())
                self._check_clock(height)
                result = change(height + 1)
            self._height = height
        produced = await self.eta(height + 1)
        while (now := self._clock.time()) < produced:
            await self._clock.sleep(produced - now)
        self._seal()
        return result

    def _check_clock(self, height: int) -> None:
        behind = height - self._clock_block()
        if behind > LATE_BLOCKS:
            raise ChainError(f"the newest block is {behind} blocks ahead of this machine's clock: set the clock right")


def _signer(key: Keypair) -> str:
    """The hotkey's address, after it has shown that it holds the private key: nobody acts for another."""
    try:
        key.sign(b"templar local chain")
    except ValueError as error:
        raise ChainError(
            f"hotkey {key.ss58_address} is a public key only: use the key that the wallet holds"
        ) from error
    return key.ss58_address
