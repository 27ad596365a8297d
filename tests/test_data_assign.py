"""The keyed permutation and the assignment of pages."""

import hashlib
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from templar_jax.data.assign import assigned, unassigned
from templar_jax.data.permute import permute
from templar_jax.errors import ConfigError

SEED = hashlib.sha256(b"block").digest()


@given(key=st.binary(min_size=0, max_size=40), n=st.integers(1, 3000))
def test_permutation_is_a_bijection(key: bytes, n: int) -> None:
    assert np.array_equal(np.sort(permute(key, n, np.arange(n))), np.arange(n))


def plain(key: bytes, n: int, value: int) -> int:
    """The permutation of one position in plain integers, as the module's text describes it."""
    half, word = max(1, -(-(n - 1).bit_length() // 2)), 1 << 64
    while True:
        left, right = value >> half, value % (1 << half)
        for number in range(8):
            x = right ^ int.from_bytes(hashlib.sha256(key + bytes([number])).digest()[:8], "little")
            x = (x + 0x9E3779B97F4A7C15) % word
            x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 % word
            x = (x ^ x >> 27) * 0x94D049BB133111EB % word
            left, right = right, left ^ (x ^ x >> 31) % (1 << half)
        value = left << half | right
        if value < n:
            return value


@given(key=st.binary(max_size=40), n=st.integers(1, 1 << 62), data=st.data())
def test_permutation_is_the_one_described(key: bytes, n: int, data: st.DataObject) -> None:
    index = data.draw(st.integers(0, n - 1))
    assert int(permute(key, n, np.array(index))) == plain(key, n, index)


@given(n=st.integers(1, 1 << 62), data=st.data())
def test_one_position_alone_has_the_same_image(n: int, data: st.DataObject) -> None:
    index = data.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=8))
    together = permute(SEED, n, np.array(index, np.uint64))
    assert (together < n).all()
    assert [int(permute(SEED, n, np.array([i], np.uint64))[0]) for i in index] == together.tolist()


def test_memory_does_not_depend_on_n() -> None:
    def peak(n: int) -> int:
        tracemalloc.start()
        permute(SEED, n, np.arange(15))
        size = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return size

    assert peak(1 << 50) < peak(100) + 4096


def test_permutations_of_different_keys_and_positions_look_independent() -> None:
    n, keys = 1000, [hashlib.sha256(bytes([i])).digest() for i in range(200)]
    images = np.array([permute(key, n, np.arange(n)) for key in keys])
    # A position's image over keys is uniform: 20 bins of 50, expected 10 each, chi-square of 19 degrees.
    for position in (0, 1, 500, 999):
        counts = np.bincount(images[:, position].astype(int) // 50, minlength=20)
        assert ((counts - 10) ** 2 / 10).sum() < 50  # p < 1e-4
    fixed = (images == np.arange(n)).sum(axis=1)  # one fixed point on average
    assert 0.7 < fixed.mean() < 1.3
    steps = np.diff(images[0].astype(int))
    assert len(set(steps.tolist())) > 500  # neighbours do not stay neighbours


def test_permutation_is_golden() -> None:
    found = permute(b"golden", 1000, np.arange(8)).tolist()
    assert found == [542, 917, 104, 350, 386, 273, 603, 419], (
        "the permutation changed: every run's assignment and every prepared page changes with it. If that is meant, "
        "raise FORMAT in data/manifest.py and the number in data/assign.py's domain, and put the new values here"
    )


def test_assignment_is_golden() -> None:
    assert assigned(SEED, 1, 4, 50) == [45, 47, 40, 23], "see test_permutation_is_golden: nodes would disagree"


@given(
    seed=st.binary(min_size=32, max_size=32),
    slots=st.integers(1, 20),
    per_slot=st.integers(1, 20),
    spare=st.integers(1, 30),
)
def test_slots_are_disjoint_and_evaluation_is_nobodys(seed: bytes, slots: int, per_slot: int, spare: int) -> None:
    n = slots * per_slot + spare
    mine = [page for slot in range(slots) for page in assigned(seed, slot, per_slot, n)]
    rest = unassigned(seed, slots, per_slot, n, spare)
    assert sorted(mine + rest) == list(range(n))


def test_too_small_a_corpus_says_what_to_change() -> None:
    assert len(assigned(SEED, 3, 5, 20)) == 5
    with pytest.raises(ConfigError, match="slot 4 needs pages 20 to 24, the data has 22: prepare more text"):
        assigned(SEED, 4, 5, 22)
    assert unassigned(SEED, 4, 5, 20, 0) == []
    with pytest.raises(ConfigError, match="evaluation behind 4 slots"):
        unassigned(SEED, 4, 5, 22, 3)


def test_positions_outside_are_programming_errors() -> None:
    with pytest.raises(ValueError, match="index outside"):
        permute(SEED, 10, np.array([10]))
    with pytest.raises(ValueError, match="positions"):
        assigned(SEED, -1, 5, 20)
