"""Which pages a uid trains on in a window, and which nobody does.

The seed (hash of block S(w) - seed_lookback) permutes the training pages; slot s owns positions [s*M, (s+1)*M) of
that permutation. Slots of a window are disjoint by construction; anybody computes anybody's pages in O(M).
"""

import numpy as np

from templar_jax.data.permute import permute
from templar_jax.errors import ConfigError

_DOMAIN = b"templar_jax/assign/1"  # a seed serves other draws too


def assigned(seed: bytes, slot: int, pages_per_slot: int, n_pages: int) -> list[int]:
    """The M = `pages_per_slot` pages of slot `slot` (0, 1, ...) under `seed`, among `n_pages` training pages.

    Raises:
      ConfigError: the slot's range ends behind the last page.
    """
    return _range(seed, slot * pages_per_slot, pages_per_slot, n_pages, f"slot {slot}")


def unassigned(seed: bytes, n_slots: int, pages_per_slot: int, n_pages: int, count: int) -> list[int]:
    """`count` pages that no one of `n_slots` slots owns under `seed`: what follows the last slot's range.

    Raises:
      ConfigError: fewer than `count` pages are left over.
    """
    return _range(seed, n_slots * pages_per_slot, count, n_pages, f"evaluation behind {n_slots} slots")


def behind_slots(seed: bytes, n_slots: int, pages_per_slot: int, n_pages: int, offsets: np.ndarray) -> list[int]:
    """The pages at `offsets` (>= 0) behind the last slot's range: some of what no one owns, in O(offsets) memory.

    Raises:
      ConfigError: an offset behind the last page.
    """
    first = n_slots * pages_per_slot
    if offsets.size and first + int(offsets.max()) >= n_pages:
        _range(seed, first, int(offsets.max()) + 1, n_pages, f"evaluation behind {n_slots} slots")
    return permute(_DOMAIN + seed, n_pages, first + offsets).tolist() if offsets.size else []


def _range(seed: bytes, first: int, count: int, n_pages: int, what: str) -> list[int]:
    if min(first, count) < 0:
        raise ValueError(f"positions {first} to {first + count}")
    if first + count > n_pages:
        raise ConfigError(
            f"{what} needs pages {first} to {first + count - 1}, the data has {n_pages}: prepare more text, "
            "or lower data.slots, inner.steps or inner.batch"
        )
    return permute(_DOMAIN + seed, n_pages, np.arange(first, first + count)).tolist() if count else []
