"""What a validator records of each window, and how anybody comes to its weights again from that.

A record is two canonical lines: the evidence, and the outcome (by which rules, to which weights). The state of the
rules is never recorded here: it follows from the evidence, from the first window on.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from templar_jax.errors import DataError
from templar_jax.incentive import canonical, evidence
from templar_jax.incentive.config import IncentiveConfig
from templar_jax.incentive.evidence import Identity, WindowEvidence
from templar_jax.incentive.rules import rules
from templar_jax.incentive.state import Rules, Score

UNLINKED = "0" * 64  # before the first window
NAMES = ("default", "v213")


@dataclass(frozen=True)
class Outcome:
    """What one validator made of one window's evidence and all before it."""

    window: int
    rules: str  # one of NAMES
    config: IncentiveConfig  # of the default rules
    link: str  # pins the evidence of this window and of all before it, hex
    weights: tuple[tuple[Identity, float], ...]  # shares, ascending by identity


@dataclass(frozen=True)
class Record:
    """One window: two lines of JSON, as recorded."""

    evidence: bytes
    outcome: bytes


@dataclass(frozen=True)
class Replayed:
    """One window recomputed."""

    evidence: WindowEvidence
    outcome: Outcome  # as recorded
    scores: dict[Identity, Score]
    weights: dict[Identity, float]
    equal: bool  # weights and link are the recorded ones, bit for bit


def link(before: str, line: bytes) -> str:
    """sha256 over the link before and the sha256 of the evidence's line: one hash pins a whole history."""
    return hashlib.sha256(bytes.fromhex(before) + hashlib.sha256(line).digest()).hexdigest()


def chosen(outcome: Outcome) -> Rules:
    """The rules that an outcome names. DataError for unknown ones."""
    if outcome.rules == "default" or outcome.rules == "v213":
        return rules(outcome.rules, outcome.config)
    raise DataError(f'rules "{outcome.rules}" are unknown here: use the version that recorded them')


def take_in(
    by: Rules, config: IncentiveConfig, state: Any, before: str, seen: WindowEvidence
) -> tuple[Any, dict[Identity, Score], Record, Outcome]:
    """One more window: (state after it, scores, its record, the outcome in the record).

    Args:
      before: the link of the window before, or UNLINKED.

    Raises:
      DataError: the evidence contradicts itself, or is not later than the state.
    """
    line = evidence.encode(seen)
    after, scores = by.step(state, seen)
    weights = tuple(sorted(by.weights(after).items()))
    outcome = Outcome(seen.window, by.name, config, link(before, line), weights)
    return after, scores, Record(line, canonical.encode(outcome)), outcome


def replay(records: Iterable[Record]) -> list[Replayed]:
    """Recomputes every window from the evidence alone; records ascend by window and begin with the first.

    Where a validator changed its rules, the new ones are applied to everything from the first window on, as it did.

    Raises:
      DataError: a line that nobody recorded, or windows out of order.
    """
    seen: list[WindowEvidence] = []
    done: list[Replayed] = []
    by, using, state, at = None, None, None, UNLINKED
    for record in records:
        outcome = canonical.decode(Outcome, record.outcome)
        found = evidence.decode(record.evidence)
        if by is None or using != (outcome.rules, outcome.config):
            by, using = chosen(outcome), (outcome.rules, outcome.config)
            state = fold(by, by.init(), seen)
        seen.append(found)
        state, scores, again, mine = take_in(by, outcome.config, state, at, found)
        at = mine.link
        done.append(Replayed(found, outcome, scores, dict(mine.weights), again == record))
    return done


def fold(by: Rules, state: Any, windows: Iterable[WindowEvidence]) -> Any:
    """The state after these windows."""
    for seen in windows:
        state, _ = by.step(state, seen)
    return state
