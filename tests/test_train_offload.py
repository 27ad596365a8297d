"""What rests in pinned host memory changes no bit, and is where the configuration says before and after each use."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from models import mesh_of, rough_params, small_run, tokens

from templar_jax.compress import feedback, root, tiles
from templar_jax.config import ComputeConfig, OuterConfig
from templar_jax.config_check import OFFLOADS
from templar_jax.train import outer, update, working
from templar_jax.train.evaluate import make_evaluate
from templar_jax.train.inner import make_inner
from templar_jax.train.offload import copy, fetch, host_zeros, on_host, settle

ROOMS = (feedback, root, outer, update, working)


@pytest.fixture(autouse=True)
def several_groups(monkeypatch):
    """Groups of a few parameters, as large models have them."""
    for room in ROOMS:
        monkeypatch.setattr(room, "groups", functools.partial(tiles.groups, most=2**16))


def equal(one, other) -> bool:
    leaves = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return all(np.array_equal(np.asarray(a), np.asarray(b)) for a, b in leaves)


def two_steps(run, mesh, compute):
    inner = make_inner(run, compute, mesh)
    params, opt = inner.begin(rough_params(run, mesh)), inner.init()
    for step in range(2):
        params, opt, metrics = inner.step(params, opt, tokens(run, seed=step), step)
    return params, opt, metrics


def test_fetched_copies_are_no_views():
    """A donated copy leaves what rests on the host as it was."""
    run, mesh = small_run(), mesh_of(4)
    params = rough_params(run, mesh)
    resting = copy(params, offloaded=True)
    assert all(map(on_host, resting.values())) and not any(map(on_host, params.values()))
    fetched = fetch(resting)
    over = jax.jit(lambda p: jax.tree.map(lambda x: x * 0 - 1, p), donate_argnums=0)(fetched)
    assert all(x.is_deleted() for x in fetched.values())
    assert equal(resting, params)
    assert all(map(on_host, settle(over, resting).values())) and fetch(params)["embed"] is params["embed"]
    assert equal(host_zeros(run, mesh), jax.tree.map(np.zeros_like, params))


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_steps_have_the_same_bits_wherever_things_rest(optimizer):
    run, mesh = small_run(optimizer=optimizer, lr=1e-2, warmup=2), mesh_of(2)
    want = two_steps(run, mesh, ComputeConfig(micro_batch=4))
    params, opt, metrics = two_steps(run, mesh, ComputeConfig(micro_batch=4, offload=OFFLOADS))
    assert equal((params, opt, metrics), want)
    assert list(params) == list(want[0]) and jax.tree.structure(opt) == jax.tree.structure(want[1])
    assert all(map(on_host, params.values()))
    assert all(on_host(x) == (x.ndim > 1 or x.size > 3) for x in jax.tree.leaves(opt))  # counters stay


def test_a_copy_in_bfloat16_trains_like_parameters_in_f32():
    """Weights are rounded once, earlier; gradients are f32, the sum over micro-batches too."""
    run, mesh = small_run(lr=1e-2, warmup=2), mesh_of(2)
    compute = ComputeConfig(dtype="bfloat16", micro_batch=4)
    want = two_steps(run, mesh, compute)
    params, opt, metrics = two_steps(run, mesh, ComputeConfig(dtype="bfloat16", micro_batch=4, offload=("parameters",)))
    assert all(x.dtype == np.float32 for x in params.values())
    assert equal(params, want[0])


def test_compression_outer_step_and_root_have_the_same_bits_wherever_things_rest():
    run, mesh = small_run(), mesh_of(2)
    run = dataclasses.replace(run, outer=OuterConfig(momentum=0.9), max_contributors=2)
    start, end = rough_params(run, mesh), rough_params(run, mesh, seed=1)
    end = {name: value * 1.5 for name, value in end.items()}
    out = []
    for offload in ((), OFFLOADS):
        compressor, outer_step = feedback.make_compressor(run, mesh, offload), outer.make_outer(run, mesh, offload)
        theta, trained = copy(start, bool(offload)), copy(end, bool(offload))
        left, packed = compressor.init(), None
        for _ in range(2):
            left, packed = compressor.update(left, theta, trained)
        theta, momentum = outer_step.apply(theta, outer_step.init(), {0: packed, 3: packed})
        theta, momentum = outer_step.apply(theta, momentum, {0: packed})
        assert all(on_host(x) == bool(offload) for x in jax.tree.leaves((left, theta, momentum)))
        losses = make_evaluate(run, ComputeConfig(offload=offload), mesh)(theta, tokens(run))
        out.append((left, packed, theta, momentum, root.make_root(run, mesh)(theta), losses))
    assert out[0][4] == out[1][4]
    assert equal([x for n, x in enumerate(out[0]) if n != 4], [x for n, x in enumerate(out[1]) if n != 4])
