"""Many nodes on virtual time in one process: the real node code on a simulated chain, store and clock.

The same seed gives the same events in the same order. What differs between nodes is their hotkey, the speed of their
hardware and, for an adversary, its ports; what they share is the engine (its functions are pure) and the pages.
"""

import asyncio
import hashlib
import itertools
import re
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from templar_jax.chain.keys import Keypair
from templar_jax.chain.local import Limits, LocalChain
from templar_jax.config import NodeConfig, RunConfig
from templar_jax.data.pages import Pages
from templar_jax.incentive.rules import rules
from templar_jax.node.engine import Engine
from templar_jax.node.lifecycle import miner, run_node
from templar_jax.node.records import MemoryRecords, read_all
from templar_jax.node.seals import MemorySeals
from templar_jax.node.snapshots import MemorySnapshots
from templar_jax.node.validator import validator
from templar_jax.node.world import Costs, Node, World
from templar_jax.simulate import faults as kinds
from templar_jax.simulate.faults import Faults
from templar_jax.simulate.faulty import around, live
from templar_jax.simulate.loop import VirtualClock, run_virtual
from templar_jax.simulate.role import HONEST, Role
from templar_jax.simulate.zoo.table import ROLES as ZOO
from templar_jax.store.checkpoint import MemoryCheckpoints
from templar_jax.store.simulated import SimStore
from templar_jax.telemetry.events import Event, ManifestApplied

BLOCK_SECONDS = 12.0
FINALITY = 2
WINDOWS_PER_TEMPO = 4
HONEST_COSTS = Costs()
STAKE = 1000.0  # of the first validator; each further one has 1 less, so that ranks are clear
LONGEST = 4  # times as many windows as were asked for: a simulation that goes on for longer never ends
NODE = replace(NodeConfig(), checkpoint_every=10, eval_sequences=0)


@dataclass(frozen=True)
class Entry:
    """One event of one node at one moment of virtual time."""

    time: float
    node: str
    event: Event


@dataclass(frozen=True)
class Outcome:
    """What a simulation came to: every event, and the nodes as they ended (None: stopped before it had a state).

    roles: the role of each node by its name, "honest" or a row of zoo/table.
    hotkeys: the node that each hotkey belongs to.
    evidence: what each validator recorded, by its name: one line of evidence a window.
    """

    log: tuple[Entry, ...]
    nodes: tuple[Node | None, ...]
    roles: Mapping[str, str] = field(default_factory=dict)
    hotkeys: Mapping[str, str] = field(default_factory=dict)
    evidence: Mapping[str, tuple[bytes, ...]] = field(default_factory=dict)

    def role(self, node: str) -> str:
        """Of a node, or of the one whose owner started it."""
        return self.roles.get(owner(node), "honest")


@dataclass
class Disk:
    """What a node's process leaves behind when it is killed."""

    checkpoints: MemoryCheckpoints = field(default_factory=MemoryCheckpoints)
    seals: MemorySeals = field(default_factory=MemorySeals)
    snapshots: MemorySnapshots = field(default_factory=MemorySnapshots)
    records: MemoryRecords = field(default_factory=MemoryRecords)


@dataclass
class Network:
    """One simulated world; made inside `run_virtual`. `node` runs a node in it; cancelling that kills the process."""

    run: RunConfig
    engine: Engine
    pages: Pages
    chain: LocalChain
    store: SimStore
    seed: int
    costs: Costs = HONEST_COSTS
    config: NodeConfig = NODE
    rules: Literal["default", "v213"] = "default"  # of the validators
    faults: Faults | None = None
    log: list[Entry] = field(default_factory=list)
    disks: dict[str, Disk] = field(default_factory=dict)
    stops: dict[str, asyncio.Event] = field(default_factory=dict)  # set one to stop its node cleanly
    until: int | None = None  # nodes stop when they have applied this window
    starts: dict[str, int] = field(default_factory=dict)
    hotkeys: dict[str, str] = field(default_factory=dict)  # hotkey -> name of its node
    watch: Callable[[Entry], None] = lambda entry: None  # hears everything as it happens

    def __post_init__(self) -> None:
        if (faults := self.faults) is not None:
            healthy = self.store.latency, self.store.bytes_per_second
            self.store.fault = lambda operation: kinds.of_store(faults, operation, *healthy)

    def heard(self, entry: Entry) -> None:
        self.log.append(entry)
        self.watch(entry)
        if isinstance(entry.event, ManifestApplied) and self.until is not None and entry.event.window >= self.until:
            self.stops[entry.node].set()

    def world(self, name: str, role: Role = HONEST) -> World:
        """The ports of one process; a second process of the same name finds the first one's disk and bucket."""
        clock = VirtualClock(name, role.speed)
        disk = self.disks.setdefault(name, Disk())
        stop = self.stops[name] = asyncio.Event()
        start = self.starts[name] = self.starts.get(name, 0) + 1
        world = World(
            chain=self.chain,
            clock=clock,
            key=hotkey(self.seed, name),
            bucket=self.store.bucket(name),
            open_reader=lambda locator: self.store.reader(locator, name),
            checkpoints=disk.checkpoints,
            seals=disk.seals,
            snapshots=disk.snapshots,
            emit=lambda event: self.heard(Entry(clock.time(), name, event)),
            stop=stop,
            costs=self.costs,
            threads=0,
            entropy=entropy(self.seed, f"{name}/{start}"),
        )
        self.store.owners[name] = role.serve
        world = role.alter(world if self.faults is None else around(world, self.chain, name, self.faults))
        self.hotkeys[world.hotkey] = name
        return world

    async def life(self, name: str, windows: int, role: Role = HONEST, stake: float | None = None) -> Node | None:
        """`windows` windows of a miner (with `stake`: a validator). With faults: until the chain's window of that
        number is applied, in as many processes as the faults make of it.
        """

        def start(windows: int | None) -> Coroutine[Any, Any, Node | None]:
            return self.node(name, windows, role) if stake is None else self.validator(name, windows, role, stake)

        if self.faults is None:
            return await start(windows)
        return await live(self.faults, VirtualClock(name), name, lambda: start(None))

    async def node(self, name: str, windows: int | None = None, role: Role = HONEST) -> Node | None:
        """Runs one miner as `lifecycle.run_node` does, or as its role wants to live."""
        if role.live is not None:
            return await role.live(self, name, windows)
        world = self.world(name, role)
        engine, pages = role.engine(self.engine), role.pages(self.pages)
        return await run_node(world, self.run, self.config, engine, pages, windows, miner(role.craft))

    async def validator(
        self, name: str, windows: int | None = None, role: Role = HONEST, stake: float = STAKE
    ) -> Node | None:
        """Runs one validator; it has `stake` from before it registers."""
        world = self.world(name, role)
        await self.chain.set_stake(world.hotkey, stake)
        duty = validator(self.disks[name].records, rules(self.rules))
        engine, pages = role.engine(self.engine), role.pages(self.pages)
        return await run_node(world, self.run, self.config, engine, pages, windows, duty)


def open_network(
    run: RunConfig, engine: Engine, pages: Pages, seed: int, limits: Limits | None = None, **settings
) -> Network:
    """A network without nodes. `limits`: of its chain; `settings`: further fields of `Network`."""
    clock = VirtualClock("chain")
    tempo = WINDOWS_PER_TEMPO * run.window.blocks
    chain = LocalChain.create(":memory:", "simulated", BLOCK_SECONDS, FINALITY, tempo, clock, limits=limits, seed=seed)
    return Network(run, engine, pages, chain, SimStore(clock), seed, **settings)


def entropy(seed: int, name: str) -> Callable[[int], bytes]:
    """A node's source of secret bytes, the same in every run with this seed."""
    counter = itertools.count()

    def draw(count: int) -> bytes:
        return hashlib.shake_256(f"{seed}/{name}/{next(counter)}".encode()).digest(count)

    return draw


def hotkey(seed: int, name: str) -> Keypair:
    """A node's key, the same in every run with this seed."""
    return Keypair.create_from_seed(hashlib.sha256(f"simulated {seed} {name}".encode()).digest())


def simulate(
    run: RunConfig,
    engine: Engine,
    pages: Pages,
    *,
    peers: int,
    windows: int,
    seed: int,
    attacks: Mapping[str, int] | None = None,
    costs: Costs = HONEST_COSTS,
    validators: int = 0,
    faults: Mapping[str, float] | None = None,
    **settings,
) -> Outcome:
    """Runs `peers` miners through `windows` windows each; the last of them in the roles that `attacks` counts.

    Of the validators likewise, where a role acts as one.

    It ends when the honest ones are done: an adversary may never get anything onto the chain.

    Args:
      attacks: NAME -> COUNT, names of zoo/table or "honest".
      validators: run beside them. Without one the miners lead, and nobody is paid.
      faults: shares by name, see `faults`; in windows 2 to `windows` - 3.
      settings: further fields of `Network`.
    """
    log: list[Entry] = []
    hotkeys: dict[str, str] = {}
    disks: dict[str, Disk] = {}
    miners = cast(attacks or {}, "miner", [f"peer-{number:02d}" for number in range(peers)])
    scorers = cast(attacks or {}, "validator", [f"validator-{number}" for number in range(validators)])

    weather = None
    if faults:
        weather = kinds.make(faults, [*miners, *scorers], seed, run.window, BLOCK_SECONDS, windows)
    full = any(ZOO[name].full for name in attacks or {} if name != "honest")
    limits = Limits(max_uids=peers + validators) if full else None

    async def world() -> tuple[Node | None, ...]:
        kept: Any = dict(log=log, hotkeys=hotkeys, disks=disks)
        network = open_network(run, engine, pages, seed, limits, costs=costs, faults=weather, **kept, **settings)
        network.until = windows if faults else None
        jobs = [network.life(name, windows, role) for name, (_, role) in miners.items()]
        for rank, (name, (_, role)) in enumerate(scorers.items()):
            jobs.append(network.life(name, windows, role, stake=STAKE - rank))
        tasks = [asyncio.ensure_future(job) for job in jobs]
        played = [role for role, _ in (*miners.values(), *scorers.values())]
        adversaries = [task for task, role in zip(tasks, played, strict=True) if role != "honest"]
        await asyncio.gather(*(task for task in tasks if task not in adversaries))
        for task in adversaries:
            task.cancel()
        ends = await asyncio.gather(*tasks, return_exceptions=True)
        return tuple(None if isinstance(end, BaseException) else end for end in ends)

    nodes = run_virtual(world, horizon=(LONGEST * windows + 20) * run.window.blocks * BLOCK_SECONDS)
    roles = {name: role for name, (role, _) in (miners | scorers).items()}
    evidence = {name: tuple(each.evidence for each in read_all(disks[name].records)) for name in scorers}
    return Outcome(tuple(log), nodes, roles, hotkeys, evidence)


def owner(node: str) -> str:
    """The node whose owner started this one: NAME.2 belongs to NAME."""
    return node.partition(".")[0]


def cast(attacks: Mapping[str, int], acts: str, names: list[str]) -> dict[str, tuple[str, Role]]:
    """(name of the role, role) of each of `names`, some of them adversaries that act as `acts`.

    Of the miners the last ones, of the validators the first: those of most stake, whose turn to lead comes first.
    """
    chosen = {name: count for name, count in attacks.items() if name != "honest" and ZOO[name].acts == acts}
    played = [(name, role) for name, count in chosen.items() for role in ZOO[name].roles(count)]
    honest = [("honest", HONEST)] * (len(names) - len(played))
    return dict(zip(names, played + honest if acts == "validator" else honest + played, strict=True))


def roots(log: tuple[Entry, ...] | list[Entry]) -> dict[int, set[str]]:
    """State roots (hex) that nodes came to at the end of each window: one a window, or something is wrong."""
    found: dict[int, set[str]] = {}
    for entry in log:
        if isinstance(entry.event, ManifestApplied):
            found.setdefault(entry.event.window, set()).add(entry.event.root)
    return found


def healed(log: tuple[Entry, ...] | list[Entry]) -> bool:
    """Whether all nodes end with one history: the same last word on the newest window that all have reached."""
    last: dict[str, dict[int, str]] = {}
    for entry in log:
        if isinstance(entry.event, ManifestApplied):
            last.setdefault(entry.node, {})[entry.event.window] = entry.event.root
    reached = min((max(windows) for windows in last.values()), default=-1)
    return len({windows.get(reached) for windows in last.values()}) == 1


def digest(log: tuple[Entry, ...]) -> str:
    """Names an event log: sha256 over every event, its node and its moment, in order.

    Names of parts, which errors quote, are left out: they hash a whole object with its signature, and sr25519 signs
    differently each time.
    """
    return hashlib.sha256(re.sub(r"\.parts/[0-9a-f]{16}", ".parts/", repr(log)).encode()).hexdigest()
