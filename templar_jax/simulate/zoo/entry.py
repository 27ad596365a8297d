"""What the table of adversaries says of each."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from templar_jax.simulate.role import Role


@dataclass(frozen=True)
class Adversary:
    """One row of the table.

    letter: "a" no work or invalid, "b" partial work, "c" validators and leaders.
    does: what it does, in one line.
    roles: COUNT -> the roles of COUNT nodes. They are of one owner and may share what it knows.
    acts: as a miner or as a validator.
    full: it needs a subnet without a free place.
    """

    letter: Literal["a", "b", "c"]
    does: str
    roles: Callable[[int], Sequence[Role]]
    acts: Literal["miner", "validator"] = "miner"
    full: bool = False


def alone(make: Callable[[], Role]) -> Callable[[int], Sequence[Role]]:
    """Roles of nodes that know nothing of each other."""
    return lambda count: [make() for _ in range(count)]
