"""The forward pass against Llama written from the formulas, and the NNX boundary."""

import dataclasses

import jax
import jax.numpy as jnp
import llama_numpy
import numpy as np
import pytest
from flax import nnx
from models import SMALL, hf_weights, mesh_of, rough_params, small_run, tokens

from templar_jax.config import ComputeConfig, ModelConfig
from templar_jax.errors import ConfigError
from templar_jax.model import flops
from templar_jax.model.attention import resolve_attention
from templar_jax.model.llama import from_params, to_params
from templar_jax.model.placement import Placement
from templar_jax.sharding import table
from templar_jax.train.evaluate import make_evaluate

UNTIED = dataclasses.replace(SMALL, tied=False, kv_heads=1, rope_theta=500.0)


@pytest.mark.parametrize("path", ["xla", "blockwise"])
@pytest.mark.parametrize("model", [SMALL, UNTIED], ids=["tied", "untied"])
def test_logits_equal_numpy(model, path):
    run = small_run(model)
    params, ids = rough_params(run), tokens(run, batch=2, sequence=80)
    got = jax.jit(lambda p, t: from_params(run, p, Placement(attention=path))(t))(params, ids)
    weights = hf_weights(run, params)
    for row in range(2):
        want = llama_numpy.logits(weights, model, ids[row])
        np.testing.assert_allclose(np.asarray(got)[row], want, atol=1e-4, rtol=0)


def test_evaluate_equals_numpy_for_any_number_of_sequences():
    run = small_run()
    params, ids = rough_params(run, mesh_of(2)), tokens(run, batch=3, sequence=48)
    got = make_evaluate(run, ComputeConfig(loss_chunk=16), mesh_of(2))(params, ids)
    weights = hf_weights(run, params)
    want = [llama_numpy.nats(weights, run.model, row).sum() for row in ids]
    assert got.shape == (3,) and got.dtype == jnp.float32
    np.testing.assert_allclose(np.asarray(got), want, rtol=1e-5)


def test_modules_are_usable_and_the_bridge_is_exact():
    run = small_run()
    params = rough_params(run)
    model = from_params(run, params)
    assert model(tokens(run, 1, 16)).shape == (1, 16, run.model.vocab)
    back = to_params(nnx.merge(*nnx.split(model)))
    assert list(back) == [param.name for param in table(run)]
    assert all(back[name] is params[name] for name in params)


def test_bfloat16_computes_in_bfloat16_and_stays_near():
    run = small_run()
    params, ids = rough_params(run), tokens(run, 2, 64)
    half = from_params(run, params, Placement(dtype="bfloat16"))
    assert half.hidden(ids).dtype == jnp.bfloat16 and half(ids).dtype == jnp.float32
    np.testing.assert_allclose(half(ids), from_params(run, params)(ids), atol=0.15)


def test_attention_choice_is_explicit():
    assert resolve_attention("auto", "cpu", "float32") == "blockwise"
    assert resolve_attention("auto", "gpu", "bfloat16") == "cudnn"
    assert resolve_attention("auto", "gpu", "float32") == "xla"
    assert resolve_attention("xla", "cpu", "float32") == "xla"
    with pytest.raises(ConfigError, match="set compute.attention to auto"):
        resolve_attention("cudnn", "cpu", "bfloat16")
    with pytest.raises(ConfigError, match="unknown"):
        resolve_attention("flash", "gpu", "bfloat16")


def test_flops_count_the_parameters_of_the_table():
    for model in (SMALL, UNTIED, ModelConfig()):
        run = small_run(model)
        assert flops.parameters(model) == sum(int(np.prod(param.shape)) for param in table(run))
    # 8B Llama 3 shape at S 8192: 6 x matmul parameters + 6 x layers x S x heads x head_dim (causal half of 12)
    llama = ModelConfig(
        vocab=128256, dim=4096, layers=32, heads=32, kv_heads=8, head_dim=128, ffn_dim=14336, tied=False
    )
    assert flops.parameters(llama) == 8_030_261_248
    assert flops.train_flops_per_token(llama, 8192) == pytest.approx(6 * 7_504_658_432 + 6 * 32 * 8193 * 4096)
