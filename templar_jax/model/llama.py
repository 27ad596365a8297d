"""Llama (dense, or a mixture of experts in each layer) as Flax NNX modules, and the bridge to the flat parameter dict
that everything else uses.

The hot path is a pure function of the dict (`hidden`, `logits`): modules are merged from their graph and arrays where
they are used, inside one `lax.scan` over the stacked layers. nnx.jit, nnx.scan and nnx.Optimizer stay out.

Letters: B batch, S sequence, D model dim, N query heads, K key-value heads, H head dim, F ffn dim, V vocabulary.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from templar_jax.config import ModelConfig, RunConfig
from templar_jax.model.attention import attend
from templar_jax.model.layers import linear, rms_norm, rope, rope_angles, swiglu
from templar_jax.model.moe import RouterStats, experts_ffn, route
from templar_jax.model.placement import ALONE, Placement
from templar_jax.model.remat import rematerialized
from templar_jax.sharding import BATCH, LAYERS, table

TAP = ".tap"  # ends the name of what receives the gradient of the parameter of that name (see Placement.weight)


def used_weight(module: nnx.Module, place: Placement, name: str) -> jax.Array:
    """A module's weight as `Placement.weight` gives it, with its tap where the module has one."""
    tap = getattr(module, name + TAP, None)
    return place.weight(name, getattr(module, name)[...], None if tap is None else tap[...])


class Layer(nnx.Module):
    """One decoder layer, or all of them stacked. Attributes are the table's names without "layers/"."""

    def __init__(self, weights: dict[str, jax.Array], model: ModelConfig, place: Placement) -> None:
        self.model, self.place = model, place
        for name, value in weights.items():
            setattr(self, name, nnx.Param(value))

    def _weight(self, name: str) -> jax.Array:
        return used_weight(self, self.place, name)

    def _linear(self, x_BSI: jax.Array, *names: str) -> tuple[jax.Array, ...]:
        return linear(x_BSI, tuple(self._weight(name) for name in names))

    def _heads(self, y_BSO: jax.Array) -> jax.Array:
        """A projection split into heads: [B, S, heads, H]."""
        y_BSNH = y_BSO.reshape(*y_BSO.shape[:2], -1, self.model.head_dim)
        return self.place.constrain(y_BSNH, BATCH, None, self.place.heads, None)

    def _feed_forward(self, h_BSD: jax.Array) -> tuple[jax.Array, RouterStats | None]:
        """The dense network, or the experts and (where there is one) the shared expert."""
        parts, stats = [], None
        if self.model.ffn_dim:
            gate_BSF, up_BSF = self._linear(h_BSD, "gate", "up")
            gate_BSF, up_BSF = checkpoint_name(gate_BSF, "gate"), checkpoint_name(up_BSF, "up")
            parts += self._linear(swiglu(gate_BSF, up_BSF), "down")
        if self.model.experts:
            routing, stats = route(h_BSD, self._weight("router"), self.model)
            weights = self._weight("expert_gate"), self._weight("expert_up"), self._weight("expert_down")
            parts.append(experts_ffn(h_BSD, routing, weights, self.place))
        return sum(parts[1:], parts[0]), stats

    def __call__(self, x_BSD: jax.Array, angles: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, RouterStats | None]:
        place, eps = self.place, self.model.norm_eps
        h_BSD = rms_norm(x_BSD, self._weight("attn_norm"), eps)
        q_BSNH, k_BSKH, v_BSKH = (
            checkpoint_name(self._heads(y), name)
            for y, name in zip(self._linear(h_BSD, "q", "k", "v"), ("queries", "keys", "values"), strict=True)
        )
        a_BSNH = attend(rope(q_BSNH, angles), rope(k_BSKH, angles), v_BSKH, place.attention, place.mesh, place.heads)
        (a_BSD,) = self._linear(a_BSNH.reshape(*x_BSD.shape[:2], -1), "o")
        x_BSD = checkpoint_name(place.constrain(x_BSD + a_BSD, BATCH, None, None), "after_attention")
        h_BSD = rms_norm(x_BSD, self._weight("mlp_norm"), eps)
        f_BSD, stats = self._feed_forward(h_BSD)
        return place.constrain(x_BSD + f_BSD, BATCH, None, None), stats


class Llama(nnx.Module):
    """The whole model. `model(tokens_BS) -> logits_BSV` (f32); `model.hidden(tokens_BS)` stops before the head."""

    def __init__(self, params: dict[str, jax.Array], model: ModelConfig, place: Placement = ALONE) -> None:
        self.model, self.place = model, place
        stacked = {name.removeprefix(LAYERS): value for name, value in params.items() if name.startswith(LAYERS)}
        self.layers = Layer(stacked, model, place)
        for name, value in params.items():
            if not name.startswith(LAYERS):
                setattr(self, name, nnx.Param(value))

    def _weight(self, name: str) -> jax.Array:
        return used_weight(self, self.place, name)

    def hidden(self, tokens_BS: jax.Array) -> jax.Array:
        """Final hidden states after the last norm, [B, S, D] in the compute dtype."""
        return self.hidden_and_stats(tokens_BS)[0]

    def hidden_and_stats(self, tokens_BS: jax.Array) -> tuple[jax.Array, RouterStats | None]:
        """The hidden states, and what the routers did, stacked by layer (None: a dense model)."""
        m, place = self.model, self.place
        angles = rope_angles(tokens_BS.shape[1], m.head_dim, m.rope_theta)
        x_BSD = place.constrain(self._weight("embed")[tokens_BS], BATCH, None, None)
        graph, stacked = nnx.split(self.layers)

        def layer(x_BSD, weights):
            return nnx.merge(graph, weights)(x_BSD, angles)

        x_BSD, stats = jax.lax.scan(rematerialized(layer, place.remat), x_BSD, stacked, unroll=place.unroll)
        return rms_norm(x_BSD, self._weight("norm"), m.norm_eps), stats

    def head_weight(self) -> jax.Array:
        """[D, V] in the compute dtype; the embedding transposed where it is tied."""
        if self.model.tied:
            return self._weight("embed").T
        return self._weight("head")

    def __call__(self, tokens_BS: jax.Array) -> jax.Array:
        logits_BSV = jnp.matmul(self.hidden(tokens_BS), self.head_weight(), preferred_element_type=jnp.float32)
        return self.place.constrain(logits_BSV, BATCH, None, self.place.vocab)


def from_params(run: RunConfig, params: dict[str, jax.Array], place: Placement = ALONE) -> Llama:
    """The module over a flat parameter dict. Nothing is copied."""
    return Llama(params, run.model, place)


def to_params(model: Llama) -> dict[str, jax.Array]:
    """The flat parameter dict of a module, in the order of the table."""
    state = nnx.to_flat_state(nnx.split(model)[1])
    flat = {"/".join(str(part) for part in path): leaf[...] for path, leaf in state}
    return {param.name: flat[param.name] for param in table(RunConfig(model=model.model))}
