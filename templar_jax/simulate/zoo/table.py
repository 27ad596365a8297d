"""All adversaries by the NAME of `simulate.py --attack NAME:COUNT`.

A new one is a function that makes its roles, in a file of its class, and a row in that file's ROWS.
"""

from collections.abc import Mapping

from templar_jax.simulate.zoo import (
    absent,
    copied,
    invented,
    leading,
    malformed,
    owing,
    partial,
    partial_group,
    partial_names,
    partial_seen,
    repeated,
    validating,
    withheld,
)
from templar_jax.simulate.zoo.entry import Adversary

ROLES: Mapping[str, Adversary] = {
    **absent.ROWS,
    **invented.ROWS,
    **malformed.ROWS,
    **repeated.ROWS,
    **copied.ROWS,
    **withheld.ROWS,
    **owing.ROWS,
    **partial.ROWS,
    **partial_group.ROWS,
    **partial_names.ROWS,
    **partial_seen.ROWS,
    **leading.ROWS,
    **validating.ROWS,
}


def lines() -> list[str]:
    """The table as text, one adversary a line: class, name, what it does."""
    width = max(map(len, ROLES))
    rows = sorted(ROLES.items(), key=lambda row: row[1].letter)  # stable: in a class as they stand in its files
    return [f"({entry.letter}) {name:{width}}  {entry.does}" for name, entry in rows]
