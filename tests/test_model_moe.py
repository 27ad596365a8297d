"""The mixture of experts against a dense loop over experts: values, gradients, losses, and any mesh.

Letters: B sequences, S positions, D model dim, E experts, k experts of a token.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from models import LITTLE, MIXTURE, mesh_of, rough_params, small_run, steps_on, tokens

from templar_jax.config import ComputeConfig, ModelConfig
from templar_jax.model import flops, moe
from templar_jax.model.layers import swiglu
from templar_jax.model.llama import from_params
from templar_jax.model.placement import ALONE, make_placement
from templar_jax.sharding import table
from templar_jax.train.accumulate import loss_and_grads
from templar_jax.train.evaluate import make_evaluate
from templar_jax.train.inner import make_inner
from templar_jax.train.optimizer import make_optimizer

MESHES = [(2, 1, 4), (2, 2, 2)]  # fsdp, tensor, expert
NANO = ModelConfig(dim=64, experts=6, experts_per_token=3, expert_ffn_dim=64)


def dense_loop(x_BSD, router_DE, weights, model):
    """Every expert on every token, weighted by what Mixtral's paper says: the judge."""
    probabilities_BSE = jax.nn.softmax(x_BSD @ router_DE, -1)
    kept_BSk, chosen_BSk = jax.lax.top_k(probabilities_BSE, model.experts_per_token)
    y_BSD = jnp.zeros_like(x_BSD)
    for expert in range(model.experts):
        gate_BS = jnp.where(chosen_BSk == expert, kept_BSk, 0).sum(-1) / kept_BSk.sum(-1)
        gate_DF, up_DF, down_FD = (w[expert] for w in weights)
        y_BSD += gate_BS[..., None] * (swiglu(x_BSD @ gate_DF, x_BSD @ up_DF) @ down_FD)
    return y_BSD


def layer(x_BSD, router_DE, weights, model):
    routing, _ = moe.route(x_BSD, router_DE, model)
    return moe.experts_ffn(x_BSD, routing, weights, ALONE)


@pytest.mark.parametrize("skew", [0.0, 30.0], ids=["spread", "three-experts-get-all"])
@pytest.mark.parametrize("shape", [(2, 70), (1, 1)], ids=["batch", "one-token"])
def test_values_and_gradients_equal_a_dense_loop_over_experts(skew, shape):
    rng, m = np.random.default_rng(0), NANO
    x_BSD = jnp.asarray(rng.normal(size=(*shape, m.dim)), jnp.float32)
    router = rng.normal(size=(m.dim, m.experts)) / 8
    router[:, :3] += skew * np.asarray(x_BSD).mean((0, 1))[:, None]  # most tokens prefer the first three
    shapes = [(m.experts, m.dim, m.expert_ffn_dim)] * 2 + [(m.experts, m.expert_ffn_dim, m.dim)]
    weights = tuple(jnp.asarray(rng.normal(size=s) / 8, jnp.float32) for s in shapes)
    direction_BSD = jnp.asarray(rng.normal(size=x_BSD.shape), jnp.float32)
    arguments = x_BSD, jnp.asarray(router, jnp.float32), weights
    out = []
    for function in (layer, dense_loop):
        y = jax.jit(function, static_argnums=3)(*arguments, m)
        grads = jax.jit(jax.grad(lambda *a, f=function: (f(*a, m) * direction_BSD).sum(), (0, 1, 2)))(*arguments)
        out.append(jax.tree.leaves((y, grads)))
    for got, want in zip(*out, strict=True):
        assert abs(got - want).max() < 2e-5 * max(abs(np.asarray(want)).max(), 1e-3)


@given(st.integers(1, 9), st.integers(1, 400), st.integers(0, 2**32 - 1), st.booleans())
def test_every_copy_has_a_place_of_its_own_in_a_block_of_its_expert(experts, count, seed, lonely):
    rng = np.random.default_rng(seed)
    k = min(2, experts)
    picked = np.argsort(rng.random((count, experts)), -1)[:, :k].astype(np.int32)
    if lonely:
        picked[:] = np.arange(k)
    blocks, rows = moe._blocks(moe._Layout.of(ALONE), jnp.asarray(picked), experts)
    slots = np.asarray(blocks.slot_Tk)
    number = blocks.expert_N.size
    assert slots.max() < number * rows and len(set(slots.ravel())) == slots.size
    assert (np.asarray(blocks.expert_N)[slots // rows] == picked).all()
    assert (np.asarray(blocks.copy_NR)[slots.ravel()] == np.arange(slots.size)).all()
    assert (np.asarray(blocks.copy_NR) < slots.size).sum() == slots.size
    used = -(-np.bincount(picked.ravel(), minlength=experts) // rows)
    assert int(blocks.count) == used.sum() <= number


def test_router_losses_are_the_papers():
    m = dataclasses.replace(NANO, experts_per_token=2)
    x_BSD = np.random.default_rng(3).normal(size=(2, 40, m.dim)).astype(np.float32)
    router = np.random.default_rng(4).normal(size=(m.dim, m.experts)).astype(np.float32) / 8
    _, stats = moe.route(jnp.asarray(x_BSD), jnp.asarray(router), m)
    logits = (x_BSD.astype(np.float64) @ router).reshape(-1, m.experts)
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    load = np.bincount(np.argsort(-logits, -1)[:, :2].ravel(), minlength=m.experts) / (2 * len(logits))
    np.testing.assert_allclose(stats.load, load, atol=1e-6)
    np.testing.assert_allclose(stats.load_balance, m.experts * (load * p.mean(0)).sum(), rtol=1e-5)
    np.testing.assert_allclose(stats.z_loss, (np.log(np.exp(logits).sum(-1)) ** 2).mean(), rtol=1e-5)
    even = moe.RouterStats(*(jnp.ones(3) for _ in range(2)), jnp.ones((3, m.experts)))
    assert float(moe.router_loss(m, even)) == pytest.approx(m.load_balance + m.z_loss)


def test_the_losses_of_the_router_reach_its_gradient_and_not_the_reported_loss():
    with_them, without = (
        small_run(dataclasses.replace(LITTLE, load_balance=on, z_loss=on)) for on in (1.0, 0.0)
    )  # fmt: skip
    params, ids = rough_params(with_them), tokens(with_them, batch=2)
    (loss, grads), (loss_0, grads_0) = (
        jax.jit(lambda p, run=run: loss_and_grads(run, ALONE, p, ids))(params) for run in (with_them, without)
    )
    assert float(loss) == float(loss_0)
    assert abs(grads["layers/router"] - grads_0["layers/router"]).max() > 1e-3
    np.testing.assert_array_equal(grads["norm"], grads_0["norm"])  # behind the last router


def test_the_load_balancing_loss_makes_the_load_even():
    found = []
    for coefficient in (0.0, 0.3):
        run = small_run(dataclasses.replace(LITTLE, load_balance=coefficient), lr=3e-3, warmup=2)
        params, ids = rough_params(run), tokens(run)
        params["embed"] += 0.1  # a direction that all tokens share, and that the first expert likes
        params["layers/router"] = params["layers/router"].at[:, :, 0].add(0.02)
        inner = make_inner(run, ComputeConfig(), mesh_of(1))
        opt = inner.init()
        for step in range(20):
            params, opt, _ = inner.step(params, opt, ids, step)
        found.append(float(from_params(run, params).hidden_and_stats(ids)[1].load.max()))
    assert found[1] < found[0] - 0.03 and found[1] < 0.3, found


@pytest.fixture(scope="module")
def single():
    return _grads(mesh_of(1))


def _grads(mesh, compute=None):
    run = small_run(MIXTURE)
    place = make_placement(run, compute or ComputeConfig(), mesh)
    params = rough_params(run, mesh)
    return jax.jit(lambda p, t: loss_and_grads(run, place, p, t))(params, tokens(run))


@pytest.mark.parametrize("mesh", MESHES)
def test_loss_and_gradients_equal_one_device(single, mesh):
    """Loss to 1e-6 relative; every gradient to 1e-5 of its parameter's largest."""
    loss, grads = _grads(mesh_of(*mesh), ComputeConfig(remat="full" if mesh[2] == 4 else "none"))
    np.testing.assert_allclose(loss, single[0], rtol=1e-6)
    for name, grad in grads.items():
        want = np.asarray(single[1][name])
        assert abs(np.asarray(grad) - want).max() < 1e-5 * abs(want).max(), name


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_step_equals_one_device_and_stays_sharded(optimizer):
    run = small_run(MIXTURE, optimizer=optimizer)
    _, (many, opt) = steps_on(run, mesh_of(1), mesh_of(2, 1, 4))
    shares = {"layers/expert_gate": 8, "layers/expert_down": 8, "layers/q": 8, "layers/gate": 8, "norm": 1}
    for name, share in shares.items():
        assert many[name].addressable_shards[0].data.size * share == many[name].size, name
    held = sum(leaf.addressable_shards[3].data.nbytes for leaf in jax.tree.leaves(opt))
    assert held < 0.14 * sum(leaf.nbytes for leaf in jax.tree.leaves(opt))


def test_muon_makes_every_expert_orthogonal_by_itself():
    run = small_run(LITTLE, optimizer="muon", weight_decay=0.0)
    rng, params = np.random.default_rng(0), rough_params(run)
    grads = {name: rng.normal(size=p.shape).astype(np.float32) for name, p in params.items()}
    grads["layers/expert_up"][1, 2] *= 1e3  # the size of one expert's gradient is nothing to the others
    optimizer = make_optimizer(run)
    got, _ = jax.jit(optimizer.update)(grads, optimizer.init(params), params)
    for name in ("layers/expert_up", "layers/expert_down"):
        for index in np.ndindex(run.model.layers, run.model.experts):
            matrix, grad = np.asarray(got[name][index]), grads[name][index]
            u, singular, vt = np.linalg.svd(matrix / (0.2 * max(matrix.shape) ** 0.5), full_matrices=False)
            assert np.quantile(singular, 0.05) > 0.6 and singular.max() < 1.25, name
            u, _, vt = np.linalg.svd(grad, full_matrices=False)
            assert (matrix * (u @ vt)).sum() / np.linalg.norm(matrix) / np.linalg.norm(u @ vt) > 0.97


def test_evaluate_equals_one_device():
    run = small_run(MIXTURE)
    ids = tokens(run, batch=5)
    one, many = (
        make_evaluate(run, ComputeConfig(), devices)(rough_params(run, devices), ids)
        for devices in (mesh_of(1), mesh_of(2, 1, 4))
    )
    np.testing.assert_allclose(many, one, rtol=1e-5)


def test_bfloat16_stays_near():
    run = small_run(LITTLE)
    params, ids = rough_params(run), tokens(run)
    (loss, grads), (half, half_grads) = (
        jax.jit(lambda p, place=place: loss_and_grads(run, place, p, ids))(params)
        for place in (ALONE, dataclasses.replace(ALONE, dtype="bfloat16"))
    )
    assert abs(float(loss) - float(half)) < 0.01
    for name in ("layers/expert_gate", "layers/expert_down", "layers/router", "embed"):
        a, b = np.asarray(grads[name]).ravel(), np.asarray(half_grads[name]).ravel()
        assert a @ b / np.linalg.norm(a) / np.linalg.norm(b) > 0.99, name


def test_flops_charge_the_experts_that_a_token_meets():
    m = MIXTURE
    every = sum(int(np.prod(param.shape)) for param in table(small_run(m)))
    idle = sum(
        int(np.prod(param.unit_shape)) * m.layers * (m.experts - m.experts_per_token)
        for param in table(small_run(m))
        if param.stack == 2
    )
    assert flops.parameters(m) == every and flops.active_parameters(m) == every - idle
    router = 2 * m.layers * m.dim * m.experts
    dense = dataclasses.replace(m, experts=0, ffn_dim=m.ffn_dim + m.experts_per_token * m.expert_ffn_dim)
    assert flops.forward_flops_per_token(m, 64) == flops.forward_flops_per_token(dense, 64) + router
