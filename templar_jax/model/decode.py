"""The model one token at a time, with a key-value cache. `llama.Llama` is the judge: same logits within rounding.

Weights come unstacked, one dict a layer: a scan would copy each layer's slice before using it, which is half of a
decode step's time on a CPU (measured: docs/decisions.md). Positions that no step has written hold zeros or what a
padded prompt left there; they lie behind every query, so nothing reads them before they are overwritten.

Letters: B sequences, P positions of the padded prompt, T positions of the cache, S = P or 1, D model dim, N query
heads, K key-value heads, G = N // K, H head dim, V vocabulary.
"""

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from templar_jax.config import ModelConfig
from templar_jax.model.attention import attend
from templar_jax.model.layers import rms_norm, rope, rope_angles, swiglu
from templar_jax.model.moe import experts_ffn, route
from templar_jax.model.placement import Placement
from templar_jax.sharding import LAYERS


class Cache(NamedTuple):
    """Keys (rotated) and values of every layer, [B, T, K, H] each, in the compute dtype."""

    keys: tuple[jax.Array, ...]
    values: tuple[jax.Array, ...]


class Weights(NamedTuple):
    """Parameters in the compute dtype: `layers[l]` and `rest` by their names in the table, without "layers/"."""

    layers: tuple[dict[str, jax.Array], ...]
    rest: dict[str, jax.Array]


def unstack(model: ModelConfig, names: list[str], load: Callable[[str], jax.Array]) -> Weights:
    """Weights from `load(name)`, one parameter at a time; what is loaded is freed before the next."""
    layers: tuple[dict[str, jax.Array], ...] = tuple({} for _ in range(model.layers))
    rest = {}
    for name in names:
        value = load(name)
        if not name.startswith(LAYERS):
            rest[name] = value
            continue
        for layer, unit in zip(layers, _split(value), strict=True):
            layer[name.removeprefix(LAYERS)] = unit
    return Weights(layers, rest)


@jax.jit
def _split(value: jax.Array) -> list[jax.Array]:
    return [jax.lax.index_in_dim(value, layer, keepdims=False) for layer in range(value.shape[0])]


Attention = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


def _layer(
    w: Mapping[str, jax.Array],
    x_BSD: jax.Array,
    angles: tuple[jax.Array, jax.Array],
    model: ModelConfig,
    place: Placement,
    attention: Attention,
) -> jax.Array:
    """One decoder layer; `attention(q_BSNH, k_BSKH, v_BSKH) -> [B, S, N, H]` keeps what it needs."""

    def weight(name: str) -> jax.Array:
        return place.weight(name, w[name])

    def heads(h_BSD: jax.Array, name: str, count: int) -> jax.Array:
        y = (h_BSD @ weight(name)).reshape(*h_BSD.shape[:2], count, model.head_dim)
        return place.constrain(y, None, None, place.heads, None)

    h_BSD = rms_norm(x_BSD, weight("attn_norm"), model.norm_eps)
    q_BSNH = rope(heads(h_BSD, "q", model.heads), angles)
    k_BSKH = rope(heads(h_BSD, "k", model.kv_heads), angles)
    a_BSNH = attention(q_BSNH, k_BSKH, heads(h_BSD, "v", model.kv_heads))
    x_BSD = x_BSD + a_BSNH.reshape(*x_BSD.shape[:2], -1) @ weight("o")
    h_BSD = rms_norm(x_BSD, weight("mlp_norm"), model.norm_eps)
    if model.ffn_dim:
        x_BSD = x_BSD + swiglu(h_BSD @ weight("gate"), h_BSD @ weight("up")) @ weight("down")
    if model.experts:
        routing, _ = route(h_BSD, weight("router"), model)
        x_BSD = x_BSD + experts_ffn(
            h_BSD, routing, (weight("expert_gate"), weight("expert_up"), weight("expert_down")), place
        )
    return x_BSD


def _logits(weights: Weights, h_BD: jax.Array, model: ModelConfig, place: Placement) -> jax.Array:
    """f32 [B, V] of final states before the last norm."""
    h_BD = rms_norm(h_BD, place.weight("norm", weights.rest["norm"]), model.norm_eps)
    head_DV = (
        place.weight("embed", weights.rest["embed"]).T if model.tied else place.weight("head", weights.rest["head"])
    )
    return jnp.matmul(h_BD, head_DV, preferred_element_type=jnp.float32)


def prefill(
    weights: Weights, tokens_BP: jax.Array, lengths_B: jax.Array, length: int, model: ModelConfig, place: Placement
) -> tuple[jax.Array, Cache]:
    """Reads prompts, padded on the right to P <= T positions with anything.

    Args:
      tokens_BP: int32.
      lengths_B: int32, tokens of each prompt, 1 to P.
      length: T, positions of the cache that is made.

    Returns:
      logits f32 [B, V] for the token after each prompt, and the cache.
    """
    angles = rope_angles(tokens_BP.shape[1], model.head_dim, model.rope_theta)
    x_BPD = place.weight("embed", weights.rest["embed"])[tokens_BP]
    keys, values = [], []

    def attention(q_BPNH: jax.Array, k_BPKH: jax.Array, v_BPKH: jax.Array) -> jax.Array:
        for kept, new in ((keys, k_BPKH), (values, v_BPKH)):
            kept.append(jnp.pad(new, ((0, 0), (0, length - new.shape[1]), (0, 0), (0, 0))))
        return attend(q_BPNH, k_BPKH, v_BPKH, place.attention, place.mesh, place.heads)

    for layer in weights.layers:
        x_BPD = _layer(layer, x_BPD, angles, model, place, attention)
    last_BD = jnp.take_along_axis(x_BPD, (lengths_B - 1)[:, None, None], axis=1)[:, 0]
    return _logits(weights, last_BD, model, place), Cache(tuple(keys), tuple(values))


def step(
    weights: Weights, cache: Cache, tokens_B: jax.Array, positions_B: jax.Array, model: ModelConfig, place: Placement
) -> tuple[jax.Array, Cache]:
    """One token more for each sequence. The cache is meant to be donated.

    Args:
      tokens_B: int32, the token at `positions_B`.
      positions_B: int32 below T; everything before is in the cache.

    Returns:
      logits f32 [B, V] for the token at `positions_B + 1`, and the cache with this one in it.
    """
    length = cache.keys[0].shape[1]
    # [B, 1, H / 2]: `rope` reads the dims as (S, H / 2), and every sequence has its own position
    cos_TH, sin_TH = rope_angles(length, model.head_dim, model.rope_theta)
    angles = cos_TH[positions_B][:, None], sin_TH[positions_B][:, None]
    x_B1D = place.weight("embed", weights.rest["embed"])[tokens_B][:, None]
    rows_B = jnp.arange(tokens_B.shape[0])
    behind_BT = jnp.arange(length) <= positions_B[:, None]
    keys, values = [], []

    def attention(q_B1NH: jax.Array, k_B1KH: jax.Array, v_B1KH: jax.Array) -> jax.Array:
        layer = len(keys)
        k_BTKH = cache.keys[layer].at[rows_B, positions_B].set(k_B1KH[:, 0], unique_indices=True)
        v_BTKH = cache.values[layer].at[rows_B, positions_B].set(v_B1KH[:, 0], unique_indices=True)
        keys.append(k_BTKH)
        values.append(v_BTKH)
        q_BKGH = q_B1NH.reshape(q_B1NH.shape[0], model.kv_heads, -1, model.head_dim)
        s_BKGT = jnp.einsum("bkgh,btkh->bkgt", q_BKGH, k_BTKH, preferred_element_type=jnp.float32)
        s_BKGT = jnp.where(behind_BT[:, None, None], s_BKGT / math.sqrt(model.head_dim), -jnp.inf)
        p_BKGT = jax.nn.softmax(s_BKGT, axis=-1).astype(v_BTKH.dtype)
        return jnp.einsum("bkgt,btkh->bkgh", p_BKGT, v_BTKH).reshape(q_B1NH.shape)

    for weights_of_layer in weights.layers:
        x_B1D = _layer(weights_of_layer, x_B1D, angles, model, place, attention)
    return _logits(weights, x_B1D[:, 0], model, place), Cache(tuple(keys), tuple(values))
