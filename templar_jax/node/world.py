"""What a node needs of the world, and what it knows: two plain records that every function of node/ takes."""

import asyncio
import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from templar_jax.chain.keys import Keypair
from templar_jax.chain.port import Chain
from templar_jax.clock import Clock
from templar_jax.compress.packed import Packed
from templar_jax.config import NodeConfig, RunConfig
from templar_jax.data.cache import PageCache
from templar_jax.data.pages import Pages
from templar_jax.errors import RefusedError
from templar_jax.node.engine import Engine, Params
from templar_jax.node.seals import Seals
from templar_jax.node.snapshots import MemorySnapshots, Snapshots
from templar_jax.node.timetable import Timetable
from templar_jax.store.bucket import Bucket, Reader
from templar_jax.store.checkpoint import Checkpoints
from templar_jax.store.merkle import EMPTY
from templar_jax.store.seal import Header
from templar_jax.telemetry.events import Event, PhaseEnded, PhaseStarted


@dataclass(frozen=True)
class Costs:
    """Modelled seconds of each kind of work. Only virtual time passes them; real time takes what it takes."""

    step: float = 0.4
    compress: float = 0.5
    seal: float = 0.1
    open: float = 0.05
    apply: float = 0.5
    evaluate: float = 0.2
    likeness: float = 0.1
    checkpoint: float = 0.1
    root: float = 0.02
    snapshot: float = 0.05


@dataclass(frozen=True)
class World:
    """The ports. One instance a node; real, local or simulated, the node cannot tell."""

    chain: Chain
    clock: Clock
    key: Keypair
    bucket: Bucket
    open_reader: Callable[[str], Reader]  # locator -> somebody's bucket; StoreError for one that is not allowed
    checkpoints: Checkpoints
    seals: Seals
    emit: Callable[[Event], None]
    stop: asyncio.Event
    costs: Costs = Costs()
    snapshots: Snapshots = field(default_factory=MemorySnapshots)  # of the own private state, where a run audits
    threads: int = 1  # that make batches and fetch pages beside the loop; 0 in a simulation
    entropy: Callable[[int], bytes] = os.urandom  # n -> n bytes; seeded in a simulation

    @property
    def hotkey(self) -> str:
        return self.key.ss58_address

    @contextmanager
    def phase(self, name: str, window: int) -> Iterator[None]:
        """Says when a phase of a window starts and how long it took."""
        started = self.clock.time()
        self.emit(PhaseStarted(window=window, phase=name))
        try:
            yield
        finally:
            self.emit(PhaseEnded(window=window, phase=name, seconds=self.clock.time() - started))


@dataclass(frozen=True)
class GlobalState:
    """theta_w and where it stands in history. A pure function of its predecessor and one manifest."""

    window: int  # w: the window whose contributions start from `params`
    outer_step: int  # outer steps taken so far
    predecessor: bytes  # sha256 of the last manifest's body; zeros at genesis
    root: bytes  # state root of `params`
    params: Params
    momentum: Params


@dataclass
class Local:
    """A miner's own state: what no one else has and only its own checkpoints keep. Empty where a node never trains."""

    opt: Any
    feedback: Params
    own_steps: int = 0  # inner steps this miner has taken
    roots: tuple[bytes, bytes] = (EMPTY, EMPTY)  # of the private state before and after the newest window: audit.py
    ended: int = -1  # the window whose end `opt` and `feedback` are, as that root and the snapshots know it; -1: none
    first_loss: float = math.nan  # of inner step 0 of the newest window, at theta_w: nats per token
    contributed: int = -1  # newest window whose contribution left `feedback` as it is
    partial: "Partial | None" = None  # a window interrupted by a clean stop


@dataclass(frozen=True)
class Partial:
    """Where a clean stop interrupted a window's training."""

    cursor: dict
    params: Params


@dataclass(frozen=True)
class Opened:
    """A contribution after decryption, with the key that opened it."""

    key: bytes
    header: Header
    packed: dict[str, Packed]


@dataclass
class Node:
    """One running node. `sealed` and `opened` cache by `gather.cache_key`; they and `outcomes` last a window."""

    world: World
    run: RunConfig
    config: NodeConfig
    engine: Engine
    pages: Pages
    cache: PageCache  # before `pages`: the next window's are read early
    state: GlobalState
    local: Local
    sealed: dict[tuple[int, int, bytes], bytes] = field(default_factory=dict)
    opened: dict[tuple[int, int, bytes], Opened] = field(default_factory=dict)
    outcomes: dict[int, Opened | RefusedError] = field(default_factory=dict)  # by uid, as `lead.collect` found them
    foreign: int = 0  # windows in a row in which more of the others held another manifest than this node
    watched: int = -1  # newest window whose leaders were looked at (history.watch_leaders)
    invalid: set[bytes] = field(default_factory=set)  # hashes of manifests that are provably so, since then
    finish_seconds: float = 2.0  # from the last inner step to the commitment, as measured
    step_seconds: float = 0.0  # of one inner step, as measured
    led: bool = False  # has closed a window: others will ask it for checkpoints
    unpublished: bool = False  # a checkpoint was saved since the last publication
    tidying: "asyncio.Task[None] | None" = None  # publishes a checkpoint and removes what is old, beside the window
    answering: "asyncio.Task[None] | None" = None  # what a miner owes after its window: see craft.answer
    published: tuple[int, bytes] | None = None  # (window, sha256) of the newest checkpoint in the own bucket

    def timetable(self, window: int) -> Timetable:
        return Timetable(window, self.run.window)
