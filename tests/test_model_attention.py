"""Blockwise attention and chunked cross-entropy against the plain forms, values and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from models import mesh_of

from templar_jax.model import blockwise
from templar_jax.model.attention import attend
from templar_jax.model.loss import sum_nats, token_nats
from templar_jax.model.placement import Placement


def _qkv(sequence, heads, kv_heads, dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(0), 4)
    shapes = [(8, sequence, n, 16) for n in (heads, kv_heads, kv_heads, heads)]
    return [jax.random.normal(key, shape, dtype) for key, shape in zip(keys, shapes, strict=True)]


def _value_and_gradients(q, k, v, d, **path):
    out, back = jax.vjp(lambda *qkv: attend(*qkv, **path), q, k, v)
    return out, *back(d)


# 40: one short block; 128: one full; 300: a ragged last block; 1100: wider blocks, so that there are no more than 8.
@pytest.mark.parametrize(("sequence", "heads", "kv_heads"), [(40, 4, 4), (128, 4, 2), (300, 6, 2), (1100, 2, 1)])
def test_blockwise_equals_xla(sequence, heads, kv_heads):
    args = _qkv(sequence, heads, kv_heads)
    got = jax.jit(lambda *a: _value_and_gradients(*a, path="blockwise"))(*args)
    want = jax.jit(lambda *a: _value_and_gradients(*a, path="xla"))(*args)
    for g, w in zip(got, want, strict=True):
        np.testing.assert_allclose(g, w, atol=2e-5)


def test_blockwise_is_causal():
    q, k, v, _ = _qkv(300, 2, 2)
    out = attend(q, k, v, "blockwise")
    later = attend(q, k.at[:, 200:].set(9.0), v.at[:, 200:].set(-9.0), "blockwise")
    np.testing.assert_array_equal(out[:, :200], later[:, :200])
    assert not np.allclose(out[:, 200:], later[:, 200:])


def test_blockwise_never_holds_a_full_score_matrix():
    q, k, v, d = _qkv(1024, 2, 2)
    text = jax.jit(lambda *a: _value_and_gradients(*a, path="blockwise")).lower(q, k, v, d).as_text()
    assert "x128x1024x" in text and "1024x1024" not in text


@given(st.integers(1, 5000))
@settings(derandomize=True, max_examples=40, deadline=None)
def test_blocks_cover_the_rows_once(sequence):
    edges = blockwise.block_edges(sequence)
    assert [row for start, stop in edges for row in range(start, stop)] == list(range(sequence))
    assert len(edges) <= blockwise.BLOCKS


def test_blockwise_on_a_mesh_needs_no_collective():
    mesh = mesh_of(4, 2)
    args = _qkv(130, 4, 2)
    step = jax.jit(lambda *a: _value_and_gradients(*a, path="blockwise", mesh=mesh, heads="tensor"))
    want = _value_and_gradients(*args, path="blockwise")
    for g, w in zip(step(*args), want, strict=True):
        np.testing.assert_allclose(g, w, atol=2e-5)
    laid = jax.NamedSharding(mesh, jax.P("fsdp", None, "tensor", None))
    hlo = step.lower(*(jax.device_put(x, laid) for x in args)).compile().as_text() or ""
    assert "dot" in hlo and not [
        op for op in ("all-gather", "all-reduce", "all-to-all", "collective-permute") if op in hlo
    ]


@pytest.mark.parametrize("chunk", [512, 64, 48, 7])
def test_chunked_loss_equals_the_full_one(chunk):
    keys = jax.random.split(jax.random.key(1), 3)
    h, head = jax.random.normal(keys[0], (3, 96, 32)), jax.random.normal(keys[1], (32, 128)) * 0.3
    ids = jax.random.randint(keys[2], (3, 96), 0, 128)
    place = Placement(loss_chunk=chunk)

    def full(h, head):
        log_p = jax.nn.log_softmax(h @ head)
        return -jnp.take_along_axis(log_p[:, :-1], ids[:, 1:, None], -1).sum()

    want, want_grads = jax.value_and_grad(full, (0, 1))(h, head)
    got, grads = jax.jit(jax.value_and_grad(lambda h, w: 3.0 * sum_nats(h, w, ids, place), (0, 1)))(h, head)
    np.testing.assert_allclose(got, 3 * want, rtol=1e-6)
    for g, w in zip(grads, want_grads, strict=True):
        np.testing.assert_allclose(g, 3 * w, atol=1e-4, rtol=1e-5)
    nats = token_nats(h, head, ids, place)
    assert nats.shape == (3, 96) and not nats[:, -1].any()
    np.testing.assert_allclose(nats.sum(), want, rtol=1e-6)
