"""Every shipped configuration loads and has the size that its name says."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import pytest

from templar_jax.config import NodeConfig, RunConfig
from templar_jax.config_check import fit_mesh, node_problems, run_problems
from templar_jax.config_load import load, shipped
from templar_jax.config_timetable import training_blocks
from templar_jax.model.placement import make_placement
from templar_jax.sharding import make_mesh, table
from templar_jax.train.accumulate import accumulated

PARAMETERS = {
    "nano": 102_720,
    "tiny": 828_544,
    "150m": 149_840_640,
    "1b": 1_235_814_400,
    "8b": 8_030_261_248,
    "70b": 70_553_706_496,
    "moe-tiny": 2_602_112,
    "moe-1b-a300m": 1_180_992_512,
    "moe-100b": 99_726_266_368,
    "moe-1t": 1_049_168_715_776,
}


def test_every_shipped_file_has_an_expected_size():
    assert set(shipped()) == set(PARAMETERS)


@pytest.mark.parametrize("name", sorted(PARAMETERS))
def test_shipped_configuration(name):
    run, node = load(name)
    assert run.name == name
    assert sum(math.prod(param.shape) for param in table(run)) == PARAMETERS[name]
    assert not [*run_problems(run), *node_problems(run, node)]


@pytest.mark.parametrize("name", sorted(PARAMETERS))
def test_shipped_configuration_traces_on_its_mesh(name, devices):
    """Loss and gradients of one inner batch, abstractly: shapes fit, nothing is allocated."""
    run, node = load(name)
    mesh = make_mesh(fit_mesh(run, node, len(devices)))
    place = make_placement(run, node.compute, mesh)
    micro = node.compute.micro_batch or run.inner.batch
    params = {param.name: jax.ShapeDtypeStruct(param.shape, jnp.float32) for param in table(run)}
    tokens_BS = jax.ShapeDtypeStruct((run.inner.batch, run.data.sequence), jnp.int32)
    loss, grads = jax.eval_shape(functools.partial(accumulated, run, place, micro), params, tokens_BS)
    assert loss.shape == () and grads == params


def test_tiny_is_the_default_of_the_dataclasses():
    assert load("tiny") == (RunConfig(), NodeConfig())


@pytest.mark.parametrize("name", ["150m", "1b", "8b", "70b", "moe-1b-a300m", "moe-100b"])
def test_large_ones_have_the_reference_setting(name):
    run, node = load(name)
    inner = dataclasses.replace(run.inner, decay_steps=0)
    assert (inner.steps, inner.batch, inner.lr, inner.warmup, inner.weight_decay) == (30, 192, 1.3e-4, 1500, 0.1)
    assert (inner.beta1, inner.beta2, inner.eps, inner.clip, inner.min_lr_ratio) == (0.9, 0.95, 1e-8, 1.0, 0.1)
    assert (run.data.sequence, run.window.blocks, node.network.block_seconds) == (2048, 125, 12.0)
    assert training_blocks(run.window, node.network.finality) / run.window.blocks > 0.85


@pytest.mark.parametrize("devices", range(1, 25))
def test_every_number_of_devices_gets_a_mesh(devices):
    run, node = load("tiny")
    mesh = fit_mesh(run, node, devices)
    assert 1 <= mesh.fsdp <= devices and run.inner.batch % mesh.fsdp == 0
    assert mesh.fsdp * 2 > min(devices, run.inner.batch) / 2, "more than half of the devices would idle"
