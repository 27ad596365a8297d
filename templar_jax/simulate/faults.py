"""Faults of a simulated world: what goes wrong with its stores, its chain's answers, its clocks and its processes.

A fault is a name and a share. Faults of operations (`OPERATIONS`) hit that share of all bucket operations and chain
commitments; faults of nodes (`NODES`) hit that share of the nodes, at least one. All of it is drawn by hashing the
seed with what is about to happen, so the same seed brings the same faults, and one fault more moves no other's draws.

They act from the start of window `first` to the end of window `last`, so that a run can show how it heals.
"""

import difflib
import hashlib
import random
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from templar_jax.config import WindowConfig
from templar_jax.errors import ConfigError
from templar_jax.node.timetable import Timetable, window_of
from templar_jax.store.simulated import Fault, Operation

OPERATIONS = {
    "drop": "fails at once, without effect",
    "delay": "takes up to 2.5 blocks longer (a commitment: up to 2)",
    "stall": "never answers; the caller's time limit ends it",
    "torn": "a put stores half and fails, a get returns half; a commitment stands, yet its call fails",
    "reorder": "takes up to one block longer, so that what was begun first ends last",
    "race": "ends within 20 ms of the next block that begins or ends a phase: S, D, K, M, each leader's slot",
}
NODES = {
    "slow": "its store moves 20 kB/s and answers after two seconds",
    "crash": "its process is killed once in three windows, at a random moment, and comes back within 1.5 windows",
    "skew": "its clock is wrong by up to one block, to either side",
    "partition": "its store is cut off from the others' and theirs from it, for up to 1.5 of every five windows",
    "lag": "it sees no new block and gets nothing onto the chain, for up to 1.5 of every five windows",
}
SHARES = {**dict.fromkeys(OPERATIONS, 0.1), **dict.fromkeys(NODES, 0.25)}  # where no share is given

SLOW_BYTES = 20e3  # a second
SLOW_LATENCY = 2.0  # seconds
LONGEST_DELAY = 2.5  # blocks
LONGEST_COMMIT = 2.0  # blocks that a commitment may take longer
RACE_BLOCKS = 2.0  # an operation this long before a boundary may be drawn to it
JITTER = (-0.02, 0.0, 0.02)  # seconds around the boundary
CUT_EVERY, CUT_LONGEST = 5, 1.5  # windows
CRASH_EVERY, DOWN_LONGEST = 3, 1.5  # windows


@dataclass(frozen=True)
class Faults:
    """What goes wrong in one simulation. The chain's block 0 is made at virtual second 0.

    Attributes:
      shares: by name, of OPERATIONS and NODES.
      hit: nodes, by name of a fault of nodes.
      first, last: windows in which they act, both included.
    """

    shares: Mapping[str, float]
    hit: Mapping[str, frozenset[str]]
    seed: int
    window: WindowConfig
    block_seconds: float
    first: int
    last: int

    @property
    def window_seconds(self) -> float:
        return self.window.blocks * self.block_seconds

    def draw(self, *what: object) -> random.Random:
        """A source of chance of its own for `what`."""
        text = "/".join(map(str, (self.seed, *what)))
        return random.Random(hashlib.sha256(text.encode()).digest())

    def active(self, at: float) -> bool:
        return self.first <= window_of(int(at / self.block_seconds), self.window) <= self.last


def make(
    shares: Mapping[str, float], names: Iterable[str], seed: int, window: WindowConfig, seconds: float, windows: int
) -> Faults:
    """Faults for a network of these nodes: they begin in window 2 and leave the last three of `windows` in peace.

    Args:
      seconds: of a block.
    """
    known = sorted(names)
    hit = {}
    for name in sorted(shares.keys() & NODES.keys()):
        count = min(len(known), max(1, round(shares[name] * len(known))))
        chosen = random.Random(hashlib.sha256(f"{seed}/{name}".encode()).digest()).sample(known, count)
        hit[name] = frozenset(chosen)
    return Faults(dict(shares), hit, seed, window, seconds, first=2, last=max(2, windows - 3))


def parse(words: Iterable[str]) -> dict[str, float]:
    """Shares by name, from words NAME or NAME:SHARE. ConfigError for an unknown name, or a share outside (0, 1]."""
    found = {}
    for word in words:
        name, _, share = word.partition(":")
        if name not in SHARES:
            near = difflib.get_close_matches(name, SHARES, 1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(SHARES)}"
            raise ConfigError(f'--fault "{name}": {hint}')
        try:
            found[name] = float(share) if share else SHARES[name]
        except ValueError:
            found[name] = 0.0
        if not 0.0 < found[name] <= 1.0:
            raise ConfigError(f'--fault "{word}": write NAME:SHARE with a share above 0 and at most 1, e.g. {name}:0.1')
    return found


def of_store(faults: Faults, operation: Operation, latency: float, bytes_per_second: float) -> Fault | None:
    """What a bucket operation meets: a cut first, then one of the drawn faults, then a slow store.

    Args:
      latency, bytes_per_second: of the healthy store, to end an operation at a chosen moment.
    """
    if not faults.active(operation.at):
        return None
    actor, bucket = operation.actor, operation.bucket
    if cut_between(faults, actor, bucket, operation.at):
        return Fault("stall")
    key = re.sub(r"[0-9a-f]{16,}", "", operation.key)  # names of parts hold hashes of random signatures
    what = actor, bucket, operation.kind, key, f"{operation.at:.3f}"
    for name in _drawn(faults, what):
        chance = faults.draw(name, "how", *what)
        if name in ("drop", "stall", "torn"):
            return Fault(name)  # type: ignore[arg-type]
        if name == "race":
            natural = latency + operation.size / bytes_per_second
            seconds = race_delay(faults, operation.at + natural, chance)
        else:
            longest = LONGEST_DELAY if name == "delay" else 1.0
            seconds = chance.uniform(0.0, longest * faults.block_seconds)
        return Fault("delay", seconds)
    if {actor, bucket} & faults.hit.get("slow", frozenset()):
        return Fault("delay", SLOW_LATENCY + operation.size / SLOW_BYTES)
    return None


def of_commitment(faults: Faults, actor: str, at: float) -> Fault | None:
    """What the sending of a commitment meets."""
    if not faults.active(at):
        return None
    what = actor, "commit", f"{at:.3f}"
    for name in _drawn(faults, what):
        chance = faults.draw(name, "how", *what)
        if name in ("drop", "stall", "torn"):
            return Fault(name)  # type: ignore[arg-type]
        longest = LONGEST_COMMIT if name == "delay" else 1.0
        drawn = chance.uniform(0.0, longest * faults.block_seconds)
        return Fault("delay", race_delay(faults, at, chance) if name == "race" else drawn)
    return None


def _drawn(faults: Faults, what: tuple[object, ...]) -> list[str]:
    """The faults of operations that hit this one, in the order of OPERATIONS."""
    chosen = [name for name in OPERATIONS if name in faults.shares]
    return [name for name in chosen if faults.draw(name, *what).random() < faults.shares[name]]


def boundaries(window: WindowConfig, block: int) -> list[int]:
    """Blocks of the window of `block`, and the next one's first, at which something begins or ends, ascending."""
    t = Timetable(window_of(block, window), window)
    slots = [t.leader_slot(rank)[0] for rank in range(window.leaders)]
    end = [t.start + window.blocks]
    return sorted({t.start, t.deadline, t.deadline + 1, t.keys, *slots, t.manifest_end, *end})


def race_delay(faults: Faults, natural_end: float, chance: random.Random) -> float:
    """Seconds to wait so that something ends at the next boundary instead, give or take; 0 where none is near."""
    block = int(natural_end / faults.block_seconds)
    for boundary in boundaries(faults.window, block):
        seconds = boundary * faults.block_seconds - natural_end
        if 0.0 <= seconds <= RACE_BLOCKS * faults.block_seconds:
            return max(0.0, seconds + chance.choice(JITTER))
    return 0.0


def cut_between(faults: Faults, one: str, other: str, at: float) -> bool:
    """True if a partition separates the two nodes now. Those that it hits still reach each other."""
    inside = faults.hit.get("partition", frozenset())
    return ((one in inside) != (other in inside)) and is_cut(faults, "partition", at)


def is_cut(faults: Faults, name: str, at: float) -> bool:
    return faults.active(at) and cut_start(faults, name, at) is not None


def cut_start(faults: Faults, name: str, at: float) -> float | None:
    """When the cut of this kind that lasts at `at` began; None if there is none. All nodes that it hits share it."""
    since = at - faults.first * faults.window_seconds
    if since < 0.0:
        return None
    every = CUT_EVERY * faults.window_seconds
    number = int(since / every)
    chance = faults.draw(name, "cut", number)
    length = chance.uniform(0.25, CUT_LONGEST) * faults.window_seconds
    start = number * every + chance.uniform(0.0, 1.0) * faults.window_seconds
    return at - since + start if start <= since < start + length else None


def skew(faults: Faults, name: str) -> float:
    """Seconds by which a node's clock is ahead."""
    if name not in faults.hit.get("skew", frozenset()):
        return 0.0
    return faults.draw("skew", name).uniform(-1.0, 1.0) * faults.block_seconds


def crashes(faults: Faults, name: str) -> list[tuple[float, float]]:
    """(moment of the kill, seconds until the process is started again), ascending."""
    if name not in faults.hit.get("crash", frozenset()):
        return []
    found = []
    for first in range(faults.first, faults.last + 1, CRASH_EVERY):
        chance = faults.draw("crash", name, first)
        moment = (first + chance.uniform(0.0, min(CRASH_EVERY, faults.last + 1 - first))) * faults.window_seconds
        found.append((moment, chance.uniform(0.0, DOWN_LONGEST) * faults.window_seconds))
    return found
