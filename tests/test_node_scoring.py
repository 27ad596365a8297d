"""What scoring computes on the host: likeness against plain NumPy, draws, and whose fault a refusal is."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
from node_network import RUN

from templar_jax.compress import aggregate
from templar_jax.compress.packed import Packed
from templar_jax.compress.tiles import tilings
from templar_jax.config import CompressConfig
from templar_jax.data.assign import assigned, unassigned
from templar_jax.errors import RefusedError
from templar_jax.incentive.evidence import Identity
from templar_jax.node import draws, likeness, scoring
from templar_jax.store.refusals import PROVEN, REASONS

VARIANTS = [CompressConfig(), CompressConfig(k=5), CompressConfig(quantizer="v213", k=16)]


def contribution(run, seed: int) -> dict[str, Packed]:
    rng, made = np.random.default_rng(seed), {}
    for name, tiling in tilings(run).items():
        shape = tiling.packed_shape
        rows = int(np.prod(shape[:-1]))
        indices = np.stack([np.sort(rng.choice(tiling.size, tiling.k, replace=False)) for _ in range(rows)])
        codes = rng.integers(0, 4, shape).astype(np.uint8)
        scales = rng.integers(150, 200, shape[:-1]).astype(np.uint8)
        if run.compress.quantizer == "v213":
            scales = rng.normal(size=(*shape[:-2], 4)).astype(np.float32)
        made[name] = Packed(indices.reshape(shape).astype(np.uint16), codes, scales)
    return made


def dense(run, sent: dict[str, Packed]) -> tuple[np.ndarray, np.ndarray]:
    """(values, is kept) of all elements, tile by tile."""
    values, there = [], []
    for name, tiling in tilings(run).items():
        packed, table = sent[name], aggregate.values(tiling, sent[name])
        grid = np.zeros((tiling.param.units, tiling.tiles, tiling.size))
        mask = np.zeros(grid.shape, bool)
        for unit in range(tiling.param.units):
            for tile in range(tiling.tiles):
                at = unit * tiling.tiles + tile
                codes = packed.codes.reshape(-1, tiling.k)[at].astype(int)
                if run.compress.quantizer == "sign1":
                    codes = codes + 4 * int(packed.scales.reshape(-1)[at])
                where = np.arange(tiling.k) if tiling.full else packed.indices.reshape(-1, tiling.k)[at]
                grid[unit, tile, where], mask[unit, tile, where] = table[unit, codes], True
        values.append(grid.ravel())
        there.append(mask.ravel())
    return np.concatenate(values), np.concatenate(there)


def who(*names: str) -> list[Identity]:
    return [Identity(name, 1) for name in names]


@pytest.mark.parametrize("compress", VARIANTS, ids=["sign1", "few", "v213"])
def test_cosines_and_overlaps_are_those_of_the_dense_vectors(compress):
    run = dataclasses.replace(RUN, compress=compress)
    a, b, c = who("a", "b", "c")
    sent = {peer: contribution(run, seed) for seed, peer in enumerate((a, b, c))}
    old, again = contribution(run, 7), contribution(run, 8)
    found = likeness.compare(run, b"seed", 5, {a: sent[a], b: sent[b]}, {4: {c: sent[c], a: old}}, [again, sent[b]])
    assert [(p.first, p.second, p.second_window) for p in found.pairs] == [
        (a, b, 5), (a, a, 4), (b, a, 4), (a, c, 4), (b, c, 4)
    ]  # fmt: skip
    for pair in found.pairs:
        other = old if (pair.second, pair.second_window) == (a, 4) else sent[pair.second]
        (x, kept_x), (y, kept_y) = dense(run, sent[pair.first]), dense(run, other)
        assert pair.cosine == pytest.approx(x @ y / np.linalg.norm(x) / np.linalg.norm(y), abs=1e-12)
        assert pair.overlap == (kept_x & kept_y).sum() / kept_x.sum()
    assert found.stale[b] == pytest.approx(1.0) and found.stale[a] < 0.5
    assert scoring.norm(run, sent[a]) == pytest.approx(np.linalg.norm(dense(run, sent[a])[0]))


def test_a_sample_of_tiles_tells_copies_from_strangers(monkeypatch):
    monkeypatch.setattr(likeness, "MOST", 500)
    a, b, c = who("a", "b", "c")
    sent = {a: contribution(RUN, 1), b: contribution(RUN, 2), c: contribution(RUN, 1)}
    tiles = likeness.sample(RUN, b"seed")
    assert likeness.elements(RUN, tiles) < 0.8 * sum(t.size * t.param.units * t.tiles for t in tilings(RUN).values())
    assert len({likeness.sample(RUN, bytes([n]))["embed"].tobytes() for n in range(8)}) > 1
    cosines = {(p.first, p.second): p.cosine for p in likeness.compare(RUN, b"seed", 1, sent, {}, []).pairs}
    assert cosines[a, c] == pytest.approx(1) and abs(cosines[a, b]) < 0.3


def test_zeros_are_like_nothing():
    a, b = who("a", "b")
    zeros = {name: one._replace(scales=np.zeros_like(one.scales)) for name, one in contribution(RUN, 1).items()}
    (pair,) = likeness.compare(RUN, b"", 1, {a: zeros, b: zeros}, {}, []).pairs
    assert (pair.cosine, pair.overlap) == (0.0, 1.0)


class Numbered:
    """Pages whose every token says which page and row it stands in."""

    def __init__(self, n_pages: int, page: int = 4, sequence: int = 32) -> None:
        self.manifest = SimpleNamespace(n_pages=n_pages, page=page, sequence=sequence)

    def read(self, ids) -> np.ndarray:
        page, sequence = self.manifest.page, self.manifest.sequence
        rows = np.array(ids)[:, None] * 100 + np.arange(page)
        return np.repeat(rows[:, :, None], sequence, 2).astype(np.uint16)


def drawn(tokens: np.ndarray) -> list[int]:
    assert tokens.dtype == np.int32 and (tokens == tokens[:, :1]).all()
    return tokens[:, 0].tolist()


def test_draws_are_the_peers_own_or_nobodys_and_no_one_knows_them_before():
    pages, assignment, slots = Numbered(60), b"assignment", 5
    per_slot = RUN.pages_per_window
    of_slots = [set(assigned(assignment, slot, per_slot, 60)) for slot in range(slots)]
    seeds = [draws.evaluation_seed(b"block", key) for key in ("one", "two")]
    for slot, own in enumerate(of_slots):
        rows = drawn(draws.draw_assigned(RUN, pages, seeds[0], assignment, slot, 6))  # type: ignore[arg-type]
        assert len(set(rows)) == 6 and {row // 100 for row in rows} <= own
    free = set(unassigned(assignment, slots, per_slot, 60, 60 - slots * per_slot))
    one, two = (drawn(draws.draw_unassigned(RUN, pages, seed, assignment, slots, 64)) for seed in seeds)  # type: ignore
    assert len(set(one)) == 64 and {row // 100 for row in one} <= free and one != two
    everything = drawn(draws.draw_unassigned(RUN, pages, seeds[0], assignment, slots, 10**6))  # type: ignore[arg-type]
    assert len(everything) == len(set(everything)) == 4 * len(free)
    assert not len(draws.draw_unassigned(RUN, pages, seeds[0], assignment, 60, 64))  # type: ignore[arg-type]


def test_beta_is_drawn():
    found = [draws.draw_beta(draws.evaluation_seed(bytes([n]), "key")) for n in range(100)]
    assert set(found) == {0.2, 1.0} and 30 < found.count(1.0) < 70


def test_only_what_a_peers_signed_bytes_prove_breaks_a_rule():
    assert set(REASONS) >= PROVEN
    assert scoring.broken_rules(RefusedError("scales", "")) == ("scales",)
    for reason in ("no-key", "fetch", "hash", "mirror", "error"):  # a store or a link that fails looks the same
        assert scoring.broken_rules(RefusedError(reason, "")) == ()
    assert scoring.broken_rules(None) == ()
