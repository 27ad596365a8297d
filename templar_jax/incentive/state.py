"""What the two sets of rules have in common: their face, and what they say about a peer."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from templar_jax.incentive.evidence import Identity, WindowEvidence


@dataclass(frozen=True)
class Score:
    """What the rules made of one peer in one window: for logs, tables and miners who ask why."""

    pay: float  # before normalisation
    parts: tuple[tuple[str, float], ...]  # what it is made of, by name
    findings: tuple[str, ...] = ()  # statistical ones: they scale pay and prove nothing


@dataclass(frozen=True)
class Rules:
    """One set of rules. State is a frozen value; the same state and evidence give the same result, bit for bit."""

    name: str
    init: Callable[[], Any]
    step: Callable[[Any, WindowEvidence], tuple[Any, dict[Identity, Score]]]
    weights: Callable[[Any], dict[Identity, float]]  # sum at most 1; the rest is nobody's (burnt)
    encode: Callable[[Any], bytes]  # one line
    decode: Callable[[bytes], Any]  # DataError for anything that `encode` did not write
