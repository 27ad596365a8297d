"""Validators check one another: does another's published evidence follow from the chain and the data, and do its
weights follow from its evidence?

In each window a validator picks one of the others by chance of its own, so that nobody can prepare for it, and computes
what that one must find: its draws follow from the hash of a block and its hotkey. Two windows later it reads what the
other has published. The price is one pass over the drawn sequences and one peer's evaluation a window.

What can be proven: "false-evidence" (draws that are not its own, or weights that do not follow from the records),
"false-losses" (recomputed by anybody who holds theta_w, within TOLERANCE), "false-weights" (other weights on the chain
than those of the evidence that was pinned for them). A record that is missing proves nothing: "no-evidence".
"""

import statistics
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from templar_jax.chain.messages import EvidenceMessage, parse_commitment
from templar_jax.chain.port import Neuron
from templar_jax.compress import aggregate
from templar_jax.errors import DataError, StoreError
from templar_jax.incentive import canonical, evidence, replay
from templar_jax.incentive.evidence import Identity, Losses, WindowEvidence, nats
from templar_jax.incentive.replay import UNLINKED, Outcome, Record
from templar_jax.incentive.weights import for_chain
from templar_jax.node import draws
from templar_jax.node.engine import Params
from templar_jax.node.gather import reader_of
from templar_jax.node.scoring import Scene, Seen
from templar_jax.node.world import Node, World
from templar_jax.store.bucket import Reader
from templar_jax.store.contribution import evidence_key
from templar_jax.telemetry.events import Alarm

DELAY = 2  # windows after which another's record is looked for: its scoring is over, and published
TOLERANCE = 0.01  # of the loss of a sequence, in the median over sequences: machines differ by less
IMPROVEMENT = 0.25  # of a peer's improvement, beside:
SLACK = 1e-4  # of the loss
READ_AT_ONCE = 50  # records of another validator that are read in one window
KEPT = 16  # windows whose weights are kept, to compare with the chain's, and pins
MAX_RECORD = 16 << 20  # bytes


@dataclass(frozen=True)
class Forecast:
    """What another validator must find in a window."""

    other: Neuron
    window: int
    registered: tuple[Identity, ...]
    accepted: frozenset[Identity]  # as this node saw it
    beta: float
    before: tuple[float, ...]  # of its unassigned sequences at theta_w, nats
    peer: Identity | None = None  # the one that was evaluated here too
    losses: Losses | None = None


class Pin(NamedTuple):
    """One commitment to evidence, as it stands on the chain."""

    block: int
    locator: str
    message: EvidenceMessage


@dataclass
class File:
    """What is known of another validator: where the replay of its records stands."""

    newest: int = -1  # window of the last record
    link: str = UNLINKED
    outcome: Outcome | None = None
    state: Any = None
    whole: bool = True  # no record is missing, so that its weights can be recomputed
    weights: dict[int, tuple[tuple[Identity, float], ...]] = field(default_factory=dict)  # by window
    block: int = -1  # newest that was searched for pins
    pins: list[Pin] = field(default_factory=list)  # the newest, in chain order


@dataclass
class Watch:
    """A validator's files of the others, and the forecasts that wait for their records. Not kept over a restart."""

    files: dict[Identity, File] = field(default_factory=dict)
    forecasts: list[Forecast] = field(default_factory=list)


async def forecast(node: Node, seen: Seen, scene: Scene, order: list[Identity]) -> tuple[Params, Forecast | None]:
    """(theta_w again, what one of the other validators must find in this window; None where there is none).

    Args:
      order: accepted peers, all of them.
    """
    world, run, count = node.world, node.run, node.config.score_sequences
    timetable = node.timetable(seen.state.window)
    neurons = (await world.chain.metagraph(timetable.deadline)).neurons
    others = [n for n in neurons if n.permit and n.last_update and n.hotkey != world.hotkey]
    if not others or not order:
        return seen.params, None
    other = others[_chance(world, len(others))]
    who = order[_chance(world, len(order))]
    seed = draws.evaluation_seed(await world.chain.block_hash(timetable.evaluation_block), other.hotkey)
    unassigned = draws.draw_unassigned(run, node.pages, seed, scene.assignment, scene.n_slots, count)
    if not len(unassigned):
        return seen.params, None
    peer, beta = scene.accepted[who], draws.draw_beta(seed)
    opened = {one.uid: one.opened.packed for one in scene.accepted.values() if one.opened}
    factors = aggregate.clip_factors(run, opened)
    assigned = draws.draw_assigned(run, node.pages, seed, scene.assignment, peer.slot, count)

    def work() -> tuple[Params, tuple[float, ...], Losses]:
        before = nats(node.engine.peers.before(seen.params, unassigned))
        what = opened[peer.uid], factors[peer.uid], beta, assigned, unassigned
        params, got = node.engine.peers.peer(seen.params, *what)
        return params, before, Losses(*(nats(np.asarray(part)) for part in got))

    params, before, losses = await world.clock.spend("scrutiny", world.costs.evaluate * 1.5, work)
    accepted = frozenset(order)
    found = Forecast(other, seen.state.window, scene.registered, accepted, beta, before, who, losses)
    return params, found


def _chance(world: World, count: int) -> int:
    return int.from_bytes(world.entropy(8)) % count


async def look(node: Node, watch: Watch, window: int, recorded: Collection[int]) -> None:
    """Compares the forecasts of DELAY windows ago with what the others have published, and raises alarms.

    Args:
      recorded: windows of which this node has a record: there was something to judge.
    """
    due = [one for one in watch.forecasts if one.window <= window - DELAY]
    watch.forecasts = [one for one in watch.forecasts if one.window > window - DELAY]
    for one in due:
        identity = Identity(one.other.hotkey, one.other.registered)
        file = watch.files.setdefault(identity, File())
        try:
            alarms = await _look_at(node, file, one, recorded)
        except (DataError, StoreError) as error:
            alarms = [("no-evidence", f"its evidence cannot be read: {error}")]
        for kind, text in alarms:
            node.world.emit(Alarm(one.window, kind, one.other.uid, text))


async def _look_at(node: Node, file: File, one: Forecast, recorded: Collection[int]) -> list[tuple[str, str]]:
    await _search_pins(node.world, file, one.other.hotkey)
    if not file.pins:
        return [("no-evidence", "it sets weights and has pinned no evidence for them")]
    reader = reader_of(node.world, file.pins[-1].locator)
    records = await _read(node.world, reader, file.newest, one.window)
    since = file.newest + 1 if file.newest >= 0 else min(records, default=one.window)
    missing = sorted(set(range(since, one.window + 1)) & set(recorded) - records.keys())
    alarms = [("false-evidence", text) for text in take_in(file, records)]
    if missing and len(records) < READ_AT_ONCE:
        alarms.append(("no-evidence", f"it has published no record of windows {missing}"))
    if one.window in records:
        alarms += compare(one, evidence.decode(records[one.window].evidence))
    return alarms + await _weights(node.world, file, one.other)


async def _search_pins(world: World, file: File, hotkey: str) -> None:
    """Adds what this hotkey pinned in the blocks since the last search."""
    finalized = await world.chain.finalized()
    for row in await world.chain.commitments(file.block + 1, finalized):
        found = parse_commitment(row.fields) if row.hotkey == hotkey else None
        if found is not None and isinstance(found.message, EvidenceMessage):
            file.pins.append(Pin(row.block, found.locator, found.message))
    file.block = finalized
    del file.pins[:-KEPT]


async def _read(world: World, reader: Reader, after: int, last: int) -> dict[int, Record]:
    """Records of the windows after..last that the bucket holds, ascending; at most READ_AT_ONCE. Raises StoreError."""
    names = (item.key.rpartition("/")[2] for item in await reader.list("evidence"))
    there = sorted(int(name) for name in names if name.isascii() and name.isdigit())
    records = {}
    for window in [window for window in there if after < window <= last][:READ_AT_ONCE]:
        data = await reader.get(evidence_key(window), MAX_RECORD, world.chain.block_seconds)
        lines = data.splitlines(keepends=True)
        if len(lines) != 2:
            raise DataError(f"the record of window {window} has {len(lines)} lines")
        records[window] = Record(*lines)
    return records


def take_in(file: File, records: Mapping[int, Record]) -> list[str]:
    """Replays further records: what is provably wrong with them. Raises DataError for one that nobody recorded."""
    wrong = []
    for window in sorted(records):
        record = records[window]
        said = canonical.decode(Outcome, record.outcome)
        found = evidence.decode(record.evidence)
        by = replay.chosen(said)
        changed = file.outcome is not None and (file.outcome.rules, file.outcome.config) != (said.rules, said.config)
        file.whole &= not changed and replay.link(file.link, record.evidence) == said.link
        if file.whole:
            state = by.init() if file.outcome is None else file.state
            file.state, _, _, mine = replay.take_in(by, said.config, state, file.link, found)
            if mine.weights != said.weights:
                wrong.append(f"the weights of window {window} do not follow from its records")
        file.newest, file.link, file.outcome = window, said.link, said
        file.weights[window] = said.weights
        for old in sorted(file.weights)[:-KEPT]:
            del file.weights[old]
    return wrong


def compare(one: Forecast, found: WindowEvidence) -> list[tuple[str, str]]:
    """Where a record of that window cannot be what this validator found: (kind, text)."""
    wrong = []
    if found.beta != one.beta:
        wrong.append(("false-evidence", f"beta {found.beta}, its draw is {one.beta}"))
    if found.registered != tuple(sorted(one.registered)):
        wrong.append(("false-evidence", "it names others as registered than the chain"))
    if found.unassigned_before and not close(found.unassigned_before, one.before):
        wrong.append(("false-losses", "its losses are not those of its sequences at the global model"))
    theirs = {peer.peer: peer.losses for peer in found.peers if peer.accepted}
    losses = theirs.get(one.peer) if one.peer is not None else None
    if one.losses is None or losses is None or theirs.keys() != one.accepted:
        return wrong  # not evaluated, or clipped among others than here
    for what, said, own in (
        (
            "its own",
            (losses.assigned_before, losses.assigned_after),
            (one.losses.assigned_before, one.losses.assigned_after),
        ),
        ("other", (found.unassigned_before, losses.unassigned_after), (one.before, one.losses.unassigned_after)),
    ):
        gain, mine = (sum(before) - sum(after) for before, after in (said, own))
        if not close(said[1], own[1]) or abs(gain - mine) > IMPROVEMENT * abs(mine) + SLACK * sum(own[0]):
            assert one.peer is not None
            wrong.append(("false-losses", f"{one.peer.hotkey} on {what} data: improvement {gain:.4g}, not {mine:.4g}"))
    return wrong


def close(said: Iterable[float], own: Iterable[float]) -> bool:
    """Whether two records of losses of the same sequences agree: medians shrug off a few that sit on an edge."""
    said, own = list(said), list(own)
    if len(said) != len(own):
        return False
    return statistics.median(abs(a - b) / max(abs(b), 1e-9) for a, b in zip(said, own, strict=True)) <= TOLERANCE


async def _weights(world: World, file: File, other: Neuron) -> list[tuple[str, str]]:
    """Whether its weights on the chain are those of the evidence that it pinned before them."""
    newest = (await world.chain.metagraph(await world.chain.finalized())).by_hotkey(other.hotkey)
    pin = next((pin for pin in reversed(file.pins) if newest and pin.block <= newest.last_update), None)
    if newest is None or pin is None or pin.message.window not in file.weights:
        return []
    said = dict(file.weights[pin.message.window])
    stands = dict((await world.chain.weights(newest.last_update)).get(newest.uid, {}))
    for at in range(max(0, pin.block - 2), pin.block + 1):  # it looked up who holds which uid shortly before
        uids = {Identity(n.hotkey, n.registered): n.uid for n in (await world.chain.metagraph(at)).neurons}
        if for_chain(said, uids) == stands:
            return []
    return [
        ("false-weights", f"its weights of block {newest.last_update} are not those of window {pin.message.window}")
    ]
