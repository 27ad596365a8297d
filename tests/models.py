"""Small runs and weights for the tests of model and train."""

import dataclasses
from typing import Any

import jax
import numpy as np

from templar_jax.config import ComputeConfig, InnerConfig, MeshConfig, ModelConfig, RunConfig
from templar_jax.sharding import make_mesh, table
from templar_jax.train.inner import make_inner
from templar_jax.train.state import init_params

SMALL = ModelConfig(vocab=256, dim=128, layers=2, heads=4, kv_heads=2, head_dim=32, ffn_dim=192)
# Every dim divides over 8 devices in grains of 64, and heads over 2: really sharded on all the meshes of the tests.
WIDE = ModelConfig(vocab=512, dim=512, layers=2, heads=8, kv_heads=2, head_dim=64, ffn_dim=512, tied=False)

# A mixture with a shared expert, really sharded on meshes with the axis expert too.
MIXTURE = ModelConfig(
    vocab=512, dim=512, layers=2, heads=4, kv_heads=2, head_dim=64, ffn_dim=128, tied=False,
    experts=4, experts_per_token=2, expert_ffn_dim=128,
)  # fmt: skip
# The same for tests on one device.
LITTLE = dataclasses.replace(SMALL, ffn_dim=64, experts=4, experts_per_token=2, expert_ffn_dim=64)


def small_run(model: ModelConfig = SMALL, **inner) -> RunConfig:
    return RunConfig(name="test", model=model, inner=dataclasses.replace(InnerConfig(batch=8), **inner))


def mesh_of(fsdp: int, tensor: int = 1, expert: int = 1):
    return make_mesh(MeshConfig(fsdp=fsdp, tensor=tensor, expert=expert), jax.devices()[: fsdp * tensor * expert])


def rough_params(run: RunConfig, mesh=None, seed: int = 0):
    """theta_0 with norms that are not one, so that a norm weight used in the wrong place shows."""
    params = init_params(run, mesh or mesh_of(1))
    rng = np.random.default_rng(seed)
    for param in table(run):
        if param.init_std is None:
            value = rng.uniform(0.5, 1.5, param.shape).astype(np.float32)
            params[param.name] = jax.device_put(value, params[param.name].sharding)
    return params


def hf_weights(run: RunConfig, params) -> dict[str, np.ndarray]:
    """The parameters under their Hugging Face names and orientation, by the table."""
    out = {}
    for param in table(run):
        value = np.asarray(params[param.name])
        for index in np.ndindex(value.shape[: param.stack]):
            unit = value[index]
            out[param.hf.format(*index)] = unit.T if param.hf_transposed else unit
    return out


def tokens(run: RunConfig, batch: int = 8, sequence: int = 64, seed: int = 1) -> Any:
    return np.random.default_rng(seed).integers(0, run.model.vocab, (batch, sequence), dtype=np.int32)


def steps_on(run: RunConfig, *meshes: Any) -> list[tuple]:
    """(params, opt) after the same inner step on each mesh, all checked against the first's."""
    out = []
    for mesh in meshes:
        inner = make_inner(run, ComputeConfig(), mesh)
        out.append(inner.step(rough_params(run, mesh), inner.init(), tokens(run), 100))
    one, _, want = out[0]
    for many, _, got in out[1:]:
        np.testing.assert_allclose(got, want, rtol=1e-5)
        for name, value in many.items():
            error = abs(np.asarray(value) - np.asarray(one[name]))
            assert np.quantile(error, 0.999) < 2e-6, name
    return [(params, opt) for params, opt, _ in out]
