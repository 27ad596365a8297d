"""What a validator draws for a window, after the keys are out: its seed, beta, and the sequences to evaluate on.

seed = sha256(domain | hash of block K(w)+F | the validator's hotkey): known to nobody before, another one for each
validator, and computable by everybody afterwards.

Letters: n sequences drawn, S tokens of a sequence, P sequences of a page.
"""

import hashlib

import numpy as np

from templar_jax.config import RunConfig
from templar_jax.data.assign import assigned, behind_slots
from templar_jax.data.cache import PageCache
from templar_jax.data.pages import Pages
from templar_jax.data.permute import permute

BETAS = (0.2, 1.0)
_DOMAIN = b"templar_jax/evaluate/1"


def evaluation_seed(block_hash: bytes, hotkey: str) -> bytes:
    """32 bytes."""
    return hashlib.sha256(_DOMAIN + block_hash + hotkey.encode()).digest()


def draw_beta(seed: bytes) -> float:
    """The share of the outer step at which this window's contributions are evaluated."""
    return BETAS[hashlib.sha256(seed + b"beta").digest()[0] % len(BETAS)]


def draw_assigned(
    run: RunConfig, pages: Pages | PageCache, seed: bytes, assignment: bytes, slot: int, count: int
) -> np.ndarray:
    """int32 [n, S]: `count` of the slot's own sequences, or all where there are fewer. Raises ConfigError, DataError.

    Args:
      seed: of the evaluation. assignment: the window's seed of assignments.
    """
    there = run.pages_per_window * pages.manifest.page
    chosen = permute(seed + b"assigned" + slot.to_bytes(4, "little"), there, np.arange(min(count, there)))
    ids = assigned(assignment, slot, run.pages_per_window, pages.manifest.n_pages)
    return _rows(pages, np.array(ids)[chosen // pages.manifest.page], chosen % pages.manifest.page)


def draw_unassigned(
    run: RunConfig, pages: Pages | PageCache, seed: bytes, assignment: bytes, n_slots: int, count: int
) -> np.ndarray:
    """int32 [n, S]: sequences that no slot owns in this window; all of them where there are fewer than `count`."""
    page, n_pages = pages.manifest.page, pages.manifest.n_pages
    there = max(0, n_pages - n_slots * run.pages_per_window) * page
    if not there:
        return np.zeros((0, run.data.sequence), np.int32)
    chosen = permute(seed + b"unassigned", there, np.arange(min(count, there)))
    ids = behind_slots(assignment, n_slots, run.pages_per_window, n_pages, chosen // page)
    return _rows(pages, np.array(ids), chosen % page)


def _rows(pages: Pages | PageCache, ids: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """One sequence of each named page: every page is read once."""
    unique, where = np.unique(ids, return_inverse=True)
    tokens_nPS = pages.read([int(page) for page in unique])
    return tokens_nPS[where, rows.astype(np.int64)].astype(np.int32)
