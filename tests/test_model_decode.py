"""Decoding with a cache against the whole model: the same logits at every position, whatever the padding and mesh."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models import LITTLE, SMALL, WIDE, mesh_of, rough_params, small_run, tokens

from templar_jax.config import ComputeConfig
from templar_jax.model import decode
from templar_jax.model.llama import Llama
from templar_jax.model.placement import ALONE, make_placement

# f32 logits of order 1: the same products summed in another order (measured 1e-6), with room for other CPUs.
TOLERANCE = 2e-5
UNTIED = dataclasses.replace(SMALL, tied=False)


def weights_of(run, params) -> decode.Weights:
    return decode.unstack(run.model, list(params), params.__getitem__)


def stepped(run, place, params, tokens_BS, lengths_B, padded: int, length: int) -> list[np.ndarray]:
    """Logits [B, V] after each prompt, then after each further token of `tokens_BS`."""
    weights = weights_of(run, params)
    rows = np.arange(len(tokens_BS))
    prompts = np.where(np.arange(padded) < lengths_B[:, None], np.pad(tokens_BS, ((0, 0), (0, padded)))[:, :padded], 7)
    prefill = jax.jit(lambda w, t, n: decode.prefill(w, t, n, length, run.model, place))
    step = jax.jit(lambda w, c, t, p: decode.step(w, c, t, p, run.model, place), donate_argnums=1)
    logits, cache = prefill(weights, prompts.astype(np.int32), lengths_B)
    out = [np.asarray(logits)]
    for count in range(tokens_BS.shape[1] - int(lengths_B.max())):
        positions_B = lengths_B + np.int32(count)
        logits, cache = step(weights, cache, tokens_BS[rows, positions_B], positions_B)
        out.append(np.asarray(logits))
    return out


@pytest.mark.parametrize(
    ("model", "path"),
    [(SMALL, "xla"), (SMALL, "blockwise"), (UNTIED, "xla"), (LITTLE, "xla")],
    ids=["tied", "tied-blockwise", "untied", "mixture"],
)
def test_cached_logits_are_the_full_forwards(model, path):
    """Prompts of different lengths in one batch, with rubbish as padding."""
    run = small_run(model)
    params, tokens_BS = rough_params(run), tokens(run, 3, 40)
    lengths_B = np.array([1, 9, 17], np.int32)
    place = make_placement(run, ComputeConfig(attention=path), mesh_of(1))
    found = stepped(run, place, params, tokens_BS, lengths_B, padded=24, length=64)
    full_BSV = np.asarray(Llama(params, run.model, ALONE)(jnp.asarray(tokens_BS)))
    assert np.abs(full_BSV).max() > 0.5
    for count, logits_BV in enumerate(found):
        expected_BV = full_BSV[np.arange(3), lengths_B - 1 + count]
        np.testing.assert_allclose(logits_BV, expected_BV, atol=TOLERANCE, err_msg=f"{count} tokens after the prompt")


def test_heads_and_vocabulary_over_an_axis_change_nothing():
    run = small_run(WIDE)
    params, tokens_BS, lengths_B = rough_params(run), tokens(run, 2, 20), np.array([10, 16], np.int32)
    alone = stepped(run, ALONE, params, tokens_BS, lengths_B, 16, 32)
    mesh = mesh_of(1, 2)
    place = make_placement(run, ComputeConfig(attention="xla"), mesh)
    assert (place.heads, place.vocab) == ("tensor", "tensor")
    spread = stepped(run, place, rough_params(run, mesh), tokens_BS, lengths_B, 16, 32)
    for one, other in zip(alone, spread, strict=True):
        np.testing.assert_allclose(one, other, atol=TOLERANCE)


def test_bfloat16_stays_near():
    run = small_run()
    params, tokens_BS, lengths_B = rough_params(run), tokens(run, 2, 20), np.array([10, 16], np.int32)
    exact = stepped(run, ALONE, params, tokens_BS, lengths_B, 16, 32)
    place = make_placement(run, ComputeConfig(dtype="bfloat16", attention="xla"), mesh_of(1))
    half = {name: value.astype(jnp.bfloat16) for name, value in params.items()}
    rough = stepped(run, place, half, tokens_BS, lengths_B, 16, 32)
    for one, other in zip(exact, rough, strict=True):
        assert other.dtype == np.float32
        assert np.abs(one - other).max() < 0.03 * np.abs(one).max()  # 8 bits of mantissa, two layers


def test_a_step_updates_the_cache_in_place():
    run = small_run()
    params = rough_params(run)
    weights = weights_of(run, params)
    step = jax.jit(lambda w, c, t, p: decode.step(w, c, t, p, run.model, ALONE), donate_argnums=1)
    zeros = jnp.zeros((2, 64, run.model.kv_heads, run.model.head_dim))
    cache = decode.Cache((zeros,) * run.model.layers, (zeros,) * run.model.layers)
    at = jnp.zeros(2, jnp.int32)
    text = step.lower(weights, cache, at, at).compile().as_text() or ""
    aliased = re.search(r"input_output_alias=\{(.*?)\}, entry", text.replace("\n", " "))
    assert aliased is not None
    assert aliased.group(1).count("may-alias") + aliased.group(1).count("must-alias") == 2 * run.model.layers
