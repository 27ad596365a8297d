"""The outer step: bit for bit the plain NumPy judge, on any mesh and in any order of arrival."""

import itertools

import jax
import numpy as np
import pytest
from compress_numpy import (
    MESHES,
    SMALL,
    assert_no_collectives,
    contributions,
    outer_step,
    placed,
    rough,
    run_of,
    same_bits,
)
from models import mesh_of

from templar_jax.compress import aggregate
from templar_jax.compress.root import make_root
from templar_jax.sharding import shardings, table
from templar_jax.train.compiles import counting
from templar_jax.train.outer import Group, make_outer

VARIANTS = {
    "mean over peers": {},
    "mean over contributors, lr 0.65": {"mean": "contributors", "lr": 0.65},
    "momentum": {"momentum": 0.9, "lr": 0.7},
    "nesterov over contributors": {"momentum": 0.875, "nesterov": True, "mean": "contributors"},
    "no clip": {"clip": False},
}


def two_steps(run, mesh, sent, donate=False):
    outer = make_outer(run, mesh)
    params, momentum = placed(run, mesh, rough(run, 99)), outer.init()
    for uids in (list(sent), list(sent)[:2]):
        params, momentum = outer.apply(params, momentum, {uid: sent[uid] for uid in uids}, donate=donate)
    return jax.device_get(params), jax.device_get(momentum)


def judged(run, sent):
    params, momentum = rough(run, 99), {param.name: np.zeros(param.shape, np.float32) for param in table(run)}
    for uids in (list(sent), list(sent)[:2]):
        params, momentum = outer_step(run, params, momentum, {uid: sent[uid] for uid in uids})
    return params, momentum


@pytest.mark.parametrize("variant", VARIANTS)
def test_against_numpy(variant):
    run = run_of(SMALL, outer=VARIANTS[variant])
    sent = contributions(run)
    params, momentum = two_steps(run, mesh_of(1), sent)
    want_params, want_momentum = judged(run, sent)
    same_bits(params, want_params)
    same_bits(momentum, want_momentum)


def test_v213_against_numpy():
    run = run_of(SMALL, quantizer="v213", outer={"mean": "contributors"})
    sent = contributions(run)
    same_bits(two_steps(run, mesh_of(1), sent)[0], judged(run, sent)[0])


@pytest.mark.parametrize("mesh", MESHES)
def test_any_mesh(mesh):
    run = run_of(outer={"momentum": 0.9, "mean": "contributors"})
    sent = contributions(run)
    params, momentum = two_steps(run, mesh_of(*mesh), sent)
    want_params, want_momentum = judged(run, sent)
    same_bits(params, want_params)
    same_bits(momentum, want_momentum)


@pytest.mark.parametrize("mesh", MESHES)
def test_dct_on_any_mesh(mesh):
    run = run_of(dct=True)
    sent = contributions(run, (1, 2))
    same_bits(two_steps(run, mesh_of(1), sent)[0], two_steps(run, mesh_of(*mesh), sent)[0])


def test_any_order_of_arrival():
    run, mesh = run_of(SMALL), mesh_of(1)
    sent = contributions(run, (3, 1, 2))
    outer, root = make_outer(run, mesh), make_root(run, mesh)
    start = placed(run, mesh, rough(run, 0))
    roots = {
        root(outer.apply(start, {}, {uid: sent[uid] for uid in order})[0]) for order in itertools.permutations(sent)
    }
    assert len(roots) == 1
    assert root(outer.apply(start, {}, {uid: sent[4 - uid] for uid in sent})[0]) not in roots, "uids decide the order"


def test_golden_root_after_two_steps():
    run, mesh = run_of(SMALL, outer={"momentum": 0.9}), mesh_of(1)
    params, _ = two_steps(run, mesh, contributions(run))
    assert make_root(run, mesh)(placed(run, mesh, params)).hex()[:16] == "3e75ed1b6cf13168", (
        "the outer step gives other bits than before: nodes of running networks would drift apart. If it was meant "
        "(and the judge in compress_numpy.py agrees), put the new value here."
    )


def test_any_number_of_contributors_compiles_once():
    run, mesh = run_of(SMALL, outer={"mean": "contributors"}), mesh_of(8)
    sent = contributions(run, (1, 2, 3, 4))
    outer = make_outer(run, mesh)
    params = placed(run, mesh, rough(run, 0))
    outer.apply(params, {}, {2: sent[2]})
    with counting() as compiles:
        for uids in ([1, 2, 3, 4], [3], [4, 2]):
            outer.apply(params, {}, {uid: sent[uid] for uid in uids})
    assert compiles.count == 0


def test_without_contributions_nothing_changes():
    run, mesh = run_of(SMALL, outer={"momentum": 0.9}), mesh_of(1)
    outer = make_outer(run, mesh)
    params = placed(run, mesh, rough(run, 0))
    momentum = {name: value + 1 for name, value in outer.init().items()}
    assert outer.apply(params, momentum, {}) == (params, momentum)
    assert make_outer(run_of(SMALL), mesh).init() == {}


def test_donation_is_asked_for():
    run, mesh = run_of(SMALL), mesh_of(1)
    sent = contributions(run, (1,))
    outer = make_outer(run, mesh)
    params = placed(run, mesh, rough(run, 0))
    kept, _ = outer.apply(params, {}, sent)
    assert not any(value.is_deleted() for value in params.values())
    given, _ = outer.apply(params, {}, sent, donate=True)
    assert all(value.is_deleted() for value in params.values())
    same_bits(jax.device_get(kept), jax.device_get(given))


def test_tiny_parameters_become_zero():
    """Subnormals differ between backends; whatever falls below 2**-100 is 0 everywhere."""
    run, mesh = run_of(SMALL), mesh_of(1)
    sent = contributions(run, (1, 2))
    start = rough(run, 0)
    start["layers/q"][:] = np.resize(
        np.float32([1e-31, -1e-38, 1e-44, 2.0**-100, -(2.0**-100)]), start["layers/q"].shape
    )
    got = jax.device_get(make_outer(run, mesh).apply(placed(run, mesh, start), {}, sent)[0])
    same_bits(got, outer_step(run, start, {}, sent)[0])
    smallest = np.abs(got["layers/q"][got["layers/q"] != 0]).min()
    assert smallest == np.float32(2.0**-100) and (got["layers/q"] == 0).any()


def test_trial_of_one_contribution():
    """What evaluation adds: scale * lr * the clipped contribution alone; the parameters stay."""
    run, mesh = run_of(SMALL, outer={"lr": 0.5}), mesh_of(1)
    sent = contributions(run)
    outer, start = make_outer(run, mesh), rough(run, 0)
    factors = aggregate.clip_factors(run, sent)
    params = placed(run, mesh, start)
    got = outer.trial(params, sent[12], factors[12], 0.2)
    alone = run_of(SMALL, outer={"lr": 1.0, "clip": False})
    dense = jax.device_get(make_outer(alone, mesh).dense(sent[12]))
    for param in table(run):
        shape = (param.units, *(1,) * len(param.unit_shape))
        whole = dense[param.name].reshape(param.units, *param.unit_shape).astype(np.float64)
        update = (whole * (factors[12][param.name] * (0.5 * 0.2)).reshape(shape)).astype(np.float32)
        np.testing.assert_array_equal(got[param.name], start[param.name] - update.reshape(param.shape))
        np.testing.assert_array_equal(params[param.name], start[param.name])


@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("dct", [False, True])
def test_no_collectives(mesh, dct):
    run, mesh = run_of(dct=dct, outer={"momentum": 0.9, "mean": "contributors"}), mesh_of(*mesh)
    group = Group(run, mesh, tuple(param.name for param in table(run)))
    where = shardings(run, mesh)
    params = [jax.ShapeDtypeStruct(p.shape, np.float32, sharding=where[p.name]) for p in table(run)]
    sent = contributions(run, (1,))[1]
    factors = aggregate.clip_factors(run, {1: sent})[1]
    placed = group.place([sent], [aggregate.value_tables(run, sent, factors, 1.0)], run.max_contributors)
    assert_no_collectives(group.step_jit.lower(params, params, placed, group.constants(), np.uint32(0)))
