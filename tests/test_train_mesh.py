"""Eight CPU devices compute what one does, and hold an eighth each."""

import dataclasses
import re

import jax
import numpy as np
import pytest
from models import WIDE, mesh_of, rough_params, small_run, steps_on, tokens

from templar_jax.config import ComputeConfig
from templar_jax.model.placement import make_placement
from templar_jax.sharding import table
from templar_jax.train.accumulate import loss_and_grads
from templar_jax.train.evaluate import make_evaluate

MESHES = [(8, 1), (4, 2)]


def _grads(run, mesh, compute=None):
    place = make_placement(run, compute or ComputeConfig(), mesh)
    params = rough_params(run, mesh)
    return jax.jit(lambda p, t: loss_and_grads(run, place, p, t))(params, tokens(run))


@pytest.fixture(scope="module")
def single():
    return _grads(small_run(WIDE), mesh_of(1))


@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize(
    "compute",
    [ComputeConfig(), ComputeConfig(attention="xla", remat="full", loss_chunk=16)],
    ids=["blockwise", "xla-remat-chunks"],
)
def test_loss_and_gradients_equal_one_device(single, mesh, compute):
    """Loss to 1e-6 relative; every gradient to 1e-5 of its parameter's largest."""
    loss, grads = _grads(small_run(WIDE), mesh_of(*mesh), compute)
    np.testing.assert_allclose(loss, single[0], rtol=1e-6)
    for name, grad in grads.items():
        want = np.asarray(single[1][name])
        assert abs(np.asarray(grad) - want).max() < 1e-5 * abs(want).max(), name


@pytest.mark.parametrize("mesh", [(1, 1), (4, 2)])
@pytest.mark.parametrize("remat", ["full", "save-names", "offload-names"])
def test_remat_changes_nothing(single, remat, mesh):
    loss, grads = _grads(small_run(WIDE), mesh_of(*mesh), ComputeConfig(remat=remat))
    np.testing.assert_allclose(loss, single[0], rtol=1e-6)
    for name, grad in grads.items():
        np.testing.assert_allclose(grad, single[1][name], atol=1e-6)


def test_names_that_are_kept_spare_every_product_with_a_weight():
    """Dot products of the compiled program: attention's two are computed again, a layer's seven are not."""

    def dots(remat: str) -> int:
        run = small_run(WIDE)
        place = make_placement(run, ComputeConfig(attention="xla", remat=remat), mesh_of(1))
        scanned = dataclasses.replace(place, unroll=1)
        program = jax.jit(lambda p, t: loss_and_grads(run, scanned, p, t))
        text = program.lower(rough_params(run), tokens(run)).compile().as_text()
        return len(re.findall(r"= \S+ dot\(", text))

    none, kept, full = dots("none"), dots("save-names"), dots("full")
    assert kept <= none + 2 < full, (none, kept, full)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("mesh", MESHES)
def test_a_step_equals_one_device_and_stays_sharded(mesh, optimizer):
    run = small_run(WIDE, optimizer=optimizer)
    _, (many, opt) = steps_on(run, mesh_of(1), mesh_of(*mesh))
    # A device holds an eighth of every matrix, of its moments too; only norms and counters are copied.
    matrices = sum(int(np.prod(param.shape)) * 4 for param in table(run) if param.init_std is not None)
    vectors = sum(int(np.prod(param.shape)) * 4 for param in table(run) if param.init_std is None)

    def held(tree) -> int:
        return sum(leaf.addressable_shards[3].data.nbytes for leaf in jax.tree.leaves(tree))

    shards = {"embed", "head", "layers/q", "layers/o", "layers/gate", "layers/up", "layers/down"}
    assert all(many[name].addressable_shards[0].data.size * 8 == many[name].size for name in shards)
    assert held(many) <= matrices / 8 + matrices * 0.02 + vectors
    moments = 1 if optimizer == "muon" else 2
    assert held(opt) <= 2 * (matrices / 8 + matrices * 0.02 + vectors) + 64
    assert held(opt) > moments * matrices / 8 * 0.9


@pytest.mark.parametrize("mesh", MESHES)
def test_evaluate_equals_one_device(mesh):
    run = small_run(WIDE)
    ids = tokens(run, batch=5)
    one, many = (
        make_evaluate(run, ComputeConfig(), devices)(rough_params(run, devices), ids)
        for devices in (mesh_of(1), mesh_of(*mesh))
    )
    np.testing.assert_allclose(many, one, rtol=1e-5)
