"""The chain port: all that a node knows of a chain. Implementations: `local` (SQLite), `bittensor`.

Everything read at or below `finalized()` never changes. Methods are coroutines because a real chain is remote;
in simulation they complete without leaving the loop.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from templar_jax.chain.keys import Keypair

FIELD_BYTES = 128  # of one commitment field
FIELDS = 2  # of one commitment


@dataclass(frozen=True)
class Neuron:
    """One registered uid as the metagraph shows it."""

    uid: int
    hotkey: str  # ss58 address
    registered: int  # block of registration: (hotkey, registered) is an identity, uid alone is not
    stake: float
    permit: bool  # may set weights and lead
    last_update: int  # block of its last set_weights, 0 if never
    incentive: float
    dividends: float
    emission: float  # paid at the last tempo


@dataclass(frozen=True)
class Metagraph:
    """The neurons as of the end of `block`, ascending by uid."""

    block: int
    neurons: tuple[Neuron, ...]

    def by_hotkey(self, hotkey: str) -> Neuron | None:
        return next((n for n in self.neurons if n.hotkey == hotkey), None)


@dataclass(frozen=True)
class Commitment:
    """One commitment as it was made, in the chain's order (block, then index in the block)."""

    block: int
    index: int
    hotkey: str
    fields: tuple[bytes, ...]


class Chain(Protocol):
    """A Bittensor-like subnet. Every method may raise `ChainError`."""

    network: str  # name of the network, the same for all its nodes
    block_seconds: float

    async def head(self) -> int:
        """Newest block."""
        ...

    async def finalized(self) -> int:
        """Newest block that can no longer change."""
        ...

    async def eta(self, block: int) -> float:
        """Clock time (seconds) at which `block` is, or is expected to be, produced."""
        ...

    async def block_hash(self, block: int) -> bytes:
        """32 bytes; not predictable before the block exists. ChainError for a block that does not exist yet."""
        ...

    async def metagraph(self, block: int | None = None) -> Metagraph:
        """State at the end of `block` (default: head)."""
        ...

    async def commitments(self, first: int, last: int) -> tuple[Commitment, ...]:
        """All commitments of the blocks first..last inclusive, in chain order."""
        ...

    async def weights(self, block: int | None = None) -> Mapping[int, Mapping[int, int]]:
        """By uid, the newest weights (u16 by uid) of everyone who has set any, at the end of `block` (default: head).

        Those set by a hotkey before it registered are gone; those set on a uid before that changed hands still stand.
        """
        ...

    async def register(self, key: Keypair) -> int:
        """Registers the hotkey (no-op if it is) and returns its uid."""
        ...

    async def commit(self, key: Keypair, fields: tuple[bytes, ...]) -> None:
        """Replaces the hotkey's commitment. Returns once it is in a block or raises; at most FIELDS x FIELD_BYTES."""
        ...

    async def set_weights(self, key: Keypair, weights: Mapping[int, int]) -> None:
        """u16 weights per uid. ChainError if not registered, no permit, or inside the rate limit."""
        ...
