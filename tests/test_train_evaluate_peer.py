"""Evaluation of one contribution: what the outer step would give, and not a bit of the parameters changes."""

import functools

import jax
import numpy as np
import pytest
from models import SMALL, mesh_of, rough_params, tokens

from templar_jax.compress import aggregate
from templar_jax.compress.feedback import make_compressor
from templar_jax.config import CompressConfig, ComputeConfig, InnerConfig, RunConfig
from templar_jax.train.evaluate import make_evaluate
from templar_jax.train.evaluate_peer import make_apply, make_evaluate_peer, make_take_back, put
from templar_jax.train.outer import make_outer

COMPUTE = ComputeConfig(attention="xla")
VARIANTS = [CompressConfig(), CompressConfig(quantizer="v213"), CompressConfig(dct=True)]
BETA = 0.2


def make_run(compress: CompressConfig) -> RunConfig:
    return RunConfig(name="test", model=SMALL, inner=InnerConfig(batch=4), compress=compress)


@functools.cache
def story(compress: CompressConfig):
    """A run, three contributions on one device as a window would bring them, and their clip factors."""
    run = make_run(compress)
    start = rough_params(run)
    compressor = make_compressor(run, mesh_of(1))
    contributions = {}
    for uid in range(3):
        rng = np.random.default_rng(uid)
        end = {name: x - 0.02 * (uid + 1) * rng.normal(size=x.shape).astype(np.float32) for name, x in start.items()}
        end = {name: jax.device_put(x, start[name].sharding) for name, x in end.items()}
        _, contributions[uid] = compressor.update(compressor.init(), start, end)
    return run, contributions, aggregate.clip_factors(run, contributions)


def host(params) -> dict[str, np.ndarray]:
    return {name: np.array(x).view(np.uint32) for name, x in params.items()}


def assert_same_bits(params, bits) -> None:
    assert list(params) == list(bits)
    for name, value in host(params).items():
        assert np.array_equal(value, bits[name]), f"{name} came back changed"


@pytest.mark.parametrize(
    ("compress", "mesh"),
    [*((compress, (1, 1)) for compress in VARIANTS), (VARIANTS[0], (4, 2))],
    ids=["sign1", "v213", "dct", "sign1-on-8"],
)
def test_losses_are_those_of_the_outer_step_and_parameters_come_back(compress, mesh):
    run, contributions, factors = story(compress)
    mesh = mesh_of(*mesh)
    params, evaluation, plain = (
        rough_params(run, mesh),
        make_evaluate_peer(run, COMPUTE, mesh),
        make_evaluate(run, COMPUTE, mesh),
    )
    outer, bits = make_outer(run, mesh), host(params)
    assigned, others = tokens(run, 6, 32, seed=1), tokens(run, 9, 32, seed=2)
    for uid in (0, 2):
        tried = outer.trial(params, contributions[uid], factors[uid], BETA)
        want = [plain(params, assigned), plain(tried, assigned), plain(tried, others)]
        params, found = evaluation.peer(params, contributions[uid], factors[uid], BETA, assigned, others)
        assert_same_bits(params, bits)
        for losses, expected in zip(found, want, strict=True):
            np.testing.assert_allclose(losses, expected, rtol=2e-6)
        assert not np.allclose(found.assigned_before, found.assigned_after, rtol=1e-5)  # it did something
    np.testing.assert_allclose(evaluation.before(params, others), plain(params, others), rtol=2e-6)


def test_a_contribution_of_zeros_changes_no_loss():
    run, contributions, factors = story(CompressConfig())
    zeros = {name: one._replace(scales=np.zeros_like(one.scales)) for name, one in contributions[0].items()}
    params, evaluation = rough_params(run), make_evaluate_peer(run, COMPUTE, mesh_of(1))
    assigned, others = tokens(run, 4, 32, seed=1), tokens(run, 4, 32, seed=2)
    before = evaluation.before(params, others)
    params, found = evaluation.peer(params, zeros, factors[0], BETA, assigned, others)
    np.testing.assert_allclose(found.assigned_after, found.assigned_before, rtol=1e-6)
    np.testing.assert_allclose(found.unassigned_after, before, rtol=1e-6)


def test_no_second_copy_of_the_model():
    """Changing and taking back happen in the parameters' own buffers, with little beside them."""
    run, contributions, factors = story(CompressConfig())
    params, mesh = rough_params(run), mesh_of(1)
    size = sum(x.nbytes for x in params.values())
    sent = put(run, mesh, contributions[0], aggregate.value_tables(run, contributions[0], factors[0], BETA))
    apply, take_back, bits = make_apply(run, mesh), make_take_back(run, mesh), host(params)
    outer = make_outer(run, mesh).trial(params, contributions[0], factors[0], BETA)
    used = [apply.lower(params, *sent).compile().memory_analysis()]
    changed, old = apply(params, *sent)
    assert all(x.is_deleted() for x in params.values())
    assert_same_bits({name: changed[name] for name in bits}, host(outer))  # the outer step's arithmetic
    used.append(take_back.lower(changed, sent[0], sent[1], old).compile().memory_analysis())
    back = take_back(changed, sent[0], sent[1], old)
    assert_same_bits({name: back[name] for name in bits}, bits)
    for memory in used:
        assert memory.alias_size_in_bytes >= size and memory.temp_size_in_bytes < size / 4
