"""Norms, clip and value tables: exact numbers on the host, and the reference's aggregate."""

import math

import jax
import numpy as np
import pytest
from compress_numpy import SMALL, contributions, decoded, run_of

from templar_jax.compress import aggregate
from templar_jax.compress.packed import Packed
from templar_jax.compress.tiles import Tiling, fold, tilings
from templar_jax.sharding import Param

UNITS = ("square", "odd_tile", "vector", "tall")


@pytest.mark.parametrize("quantizer", ["sign1", "v213"])
def test_norms_are_those_of_the_decoded_values(quantizer):
    run = run_of(SMALL, quantizer=quantizer)
    for contribution in contributions(run, (1, 2)).values():
        for name, tiling in tilings(run).items():
            values = decoded(run, name, contribution[name]).astype(np.float64)
            exact = [math.sqrt(math.fsum(np.square(unit).ravel())) for unit in values]
            np.testing.assert_allclose(aggregate.norms(tiling, contribution[name]), exact, rtol=1e-15)
            counts = aggregate.histogram(tiling, contribution[name])
            assert counts.dtype == np.int64 and (counts.sum(-1) == tiling.tiles * tiling.k).all()


def test_norms_do_not_depend_on_the_order_of_tiles():
    run = run_of(SMALL)
    (contribution,) = contributions(run, (1,)).values()
    tiling, packed = tilings(run)["layers/gate"], contribution["layers/gate"]
    turned = Packed(packed.indices, packed.codes[:, ::-1, ::-1], packed.scales[:, ::-1])
    assert (aggregate.norms(tiling, packed) == aggregate.norms(tiling, turned)).all()


def test_lower_median():
    assert aggregate.lower_median(np.array([[4.0], [1], [3], [2]])) == [2]
    assert aggregate.lower_median(np.array([[4.0], [1], [3]])) == [3]
    assert aggregate.lower_median(np.array([[4.0]])) == [4]


def test_clip_brings_large_norms_to_the_median():
    run = run_of(SMALL)
    sent = contributions(run)
    factors = aggregate.clip_factors(run, sent)
    for name, tiling in tilings(run).items():
        norms = np.array([aggregate.norms(tiling, one[name]) for one in sent.values()])
        limit = np.sort(norms, 0)[1]
        clipped = norms * np.array([factors[uid][name] for uid in sent])
        np.testing.assert_allclose(clipped, np.minimum(norms, limit), rtol=1e-12)
        assert (clipped < norms).any()
    off = aggregate.clip_factors(run_of(SMALL, outer={"clip": False}), sent)
    assert all((factor == 1).all() for of_uid in off.values() for factor in of_uid.values())


def test_clip_of_silence():
    """Units that are zero in most contributions: the median is 0, and so is what is left of the others."""
    run = run_of(SMALL)
    (contribution,) = contributions(run, (1,)).values()
    silent = {name: one._replace(scales=np.zeros_like(one.scales)) for name, one in contribution.items()}
    factors = aggregate.clip_factors(run, {1: contribution, 2: silent, 3: silent})
    assert (factors[1]["layers/q"] == 0).all() and (factors[2]["layers/q"] == 1).all()
    tables = aggregate.value_tables(run, contribution, factors[1], 1.0)
    assert not tables["layers/q"].any()


def test_tables_have_no_tiny_values():
    run = run_of(SMALL)
    (contribution,) = contributions(run, (1,)).values()
    factors = {name: np.full(tiling.param.units, 2.0**-80) for name, tiling in tilings(run).items()}
    table = aggregate.value_tables(run, contribution, factors, 1.0)["layers/q"]
    assert table.dtype == np.float32 and (table == 0).any() and (np.abs(table[table != 0]) >= 2.0**-100).all()


@pytest.mark.parametrize("unit", UNITS)
def test_the_reference_aggregate(data_dir, unit):
    """Contributor mean with median clip of five v213 contributions, through our tables and our device code."""
    with np.load(data_dir / "compression.npz") as vectors:
        peers = [{key: vectors[f"peer{p}/{unit}/{key}"] for key in
                  ("dense", "tiles", "index_set_ascending", "codes", "lookup", "shift")} for p in range(5)]  # fmt: skip
        want = vectors[f"aggregate/{unit}/contributor_mean_median_clip"]
        want_norms = vectors[f"aggregate/{unit}/norms"]
    shape, k = want.shape, peers[0]["codes"].shape[-1]
    grid, sides = peers[0]["tiles"].shape[: want.ndim], peers[0]["tiles"].shape[want.ndim :]
    tiling = Tiling(Param(unit, shape, (None,) * len(shape), 1.0, True, ""), sides, grid, k)
    sent = [
        Packed(
            peer["index_set_ascending"].reshape(-1, k).astype(np.uint16),
            peer["codes"].reshape(-1, k),
            (peer["lookup"] + peer["shift"]).astype(np.float32),
        )
        for peer in peers
    ]
    norms = np.array([aggregate.norms(tiling, one)[0] for one in sent])
    np.testing.assert_allclose(norms, want_norms, rtol=1e-5)
    factors = np.minimum(1, aggregate.lower_median(norms[:, None])[0] / norms)
    tables = [np.asarray(one.scales, np.float64) * factor for one, factor in zip(sent, factors, strict=True)]
    stacked = {
        "codes": np.stack([fold(tiling, np.asarray(one.codes)) for one in sent]),
        "indices": np.stack([fold(tiling, np.asarray(one.indices)) for one in sent]),
        "table": np.stack(tables).astype(np.float32),
    }
    update = jax.jit(aggregate.unit_update, static_argnums=0)
    reciprocals = (1 / np.maximum(np.arange(6), 1)).astype(np.float32)
    got = np.asarray(update(tiling, np.int32(5), stacked, reciprocals, np.uint32(0)))
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5 * np.abs(want).max())


def test_histogram_of_hand_made_codes():
    tiling = Tiling(Param("x", (2, 8), (None, None), 1.0, True, "", stack=1), (4,), (2,), 3)
    codes = np.uint8([[[0, 1, 1], [3, 3, 3]], [[2, 2, 0], [0, 0, 0]]])
    scales = np.uint8([[5, 5], [7, 0]])
    counts = aggregate.histogram(tiling, Packed(np.zeros_like(codes, np.uint16), codes, scales))
    want = np.zeros((2, 256, 2), np.int64)
    want[0, 5], want[1, 7], want[1, 0] = [1, 5], [3, 0], [3, 0]
    np.testing.assert_array_equal(counts, want.reshape(2, -1))
    unit_tables = np.zeros((2, 4), np.float32)
    counts = aggregate.histogram(tiling, Packed(np.zeros_like(codes, np.uint16), codes, unit_tables))
    np.testing.assert_array_equal(counts, [[1, 2, 0, 3], [4, 0, 2, 0]])
