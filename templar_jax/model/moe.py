"""A mixture of experts: the router, and the feed-forward networks that it sends each token to.

Routing is as in Mixtral (https://arxiv.org/abs/2401.04088): softmax over all experts in f32, the k largest are taken
(ties to the lower expert) and their gates made to sum to 1. No token is dropped, on one device or on many.

Computation: the T * k copies of tokens are sorted by expert and laid in blocks of R rows, each of one expert (as in
MegaBlocks, https://arxiv.org/abs/2211.15841), the last of an expert's blocks being padded; a loop over as many blocks
as there are multiplies each with its expert's weights. Every movement of tokens is a gather, also backwards. Why no
`lax.ragged_dot`: XLA expands it to a matmul with all experts, on CPU and on GPU (measured: docs/decisions.md).

On a mesh whose axis "expert" holds more than one device, each gathers the tokens of all devices on that axis, computes
what its own experts owe to them, and the results are summed and scattered back.

Letters: B sequences, S positions, T tokens, k experts of a token, E experts, D model dim, F dim of an expert,
N blocks, R rows of a block.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from templar_jax.config import ModelConfig
from templar_jax.model.placement import Placement
from templar_jax.sharding import BATCH

ROWS = {"cpu": 128}  # of a block at most, by platform; measured: docs/decisions.md
ROWS_ELSEWHERE = 1024
FEWEST_ROWS = 8

Weights = tuple[jax.Array, jax.Array, jax.Array]  # gate [E, D, F], up [E, D, F], down [E, F, D]


class Routing(NamedTuple):
    """Which experts a token goes to."""

    experts: jax.Array  # int32 [B, S, k]
    gates: jax.Array  # f32 [B, S, k], summing to 1


class RouterStats(NamedTuple):
    """Of one layer and batch, f32."""

    load_balance: jax.Array  # scalar: 1 where all experts are used alike, E where one gets everything
    z_loss: jax.Array  # scalar: mean squared log-sum-exp of the logits
    load: jax.Array  # [E]: share of the copies of tokens that each expert got; sums to 1


def route(x_BSD: jax.Array, router_DE: jax.Array, model: ModelConfig) -> tuple[Routing, RouterStats]:
    """Routes every token; all of it in f32.

    The load-balancing loss is E * sum_e load_e * mean probability_e (Switch, https://arxiv.org/abs/2101.03961, with the
    load over all k choices), the z-loss mean(logsumexp(logits)^2) (ST-MoE, https://arxiv.org/abs/2202.08906).
    """
    logits_BSE = jnp.einsum(
        "bsd,de->bse",
        x_BSD.astype(jnp.float32),
        router_DE.astype(jnp.float32),
        precision=jax.lax.Precision.HIGHEST,
    )
    top_BSk, experts_BSk = jax.lax.top_k(logits_BSE, model.experts_per_token)
    gates_BSk = jax.nn.softmax(top_BSk, axis=-1)  # of the chosen: the softmax over all, divided by its sum over them
    chosen_BSE = (experts_BSk[..., None] == jnp.arange(model.experts)).sum(-2)
    load_E = chosen_BSE.astype(jnp.float32).mean((0, 1)) / model.experts_per_token
    lse_BS = jax.nn.logsumexp(logits_BSE, axis=-1)
    mean_E = jnp.exp(logits_BSE - lse_BS[..., None]).mean((0, 1))
    stats = RouterStats(model.experts * (load_E * mean_E).sum(), jnp.square(lse_BS).mean(), load_E)
    return Routing(experts_BSk, gates_BSk), stats


def router_loss(model: ModelConfig, stats: RouterStats | None) -> jax.Array:
    """What the routers add to the loss of training: means over the layers, times the run's coefficients."""
    if stats is None:
        return jnp.zeros(())
    return model.load_balance * stats.load_balance.mean() + model.z_loss * stats.z_loss.mean()


def experts_ffn(x_BSD: jax.Array, routing: Routing, weights: Weights, place: Placement) -> jax.Array:
    """sum over a token's experts of gate * down(silu(gate x) * up x) -> [B, S, D] in the dtype of x."""
    return jnp.asarray(_experts_ffn(x_BSD, routing.gates, routing.experts, weights, place))


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _experts_ffn(x_BSD: jax.Array, gates_BSk: jax.Array, experts_BSk: jax.Array, weights: Weights, place: Placement):
    return _experts_fwd(x_BSD, gates_BSk, experts_BSk, weights, place)[0]


def _experts_fwd(x_BSD, gates_BSk, experts_BSk, weights, place):
    at = _Layout.of(place)
    y_BSD, saved = at.mapped(_forward, (at.tokens, at.tokens, at.tokens, at.weights), (at.tokens, at.saved))(
        x_BSD, gates_BSk, experts_BSk, weights
    )
    return y_BSD, (x_BSD, gates_BSk, experts_BSk, weights, saved)


def _experts_bwd(place, kept, d_y_BSD):
    x_BSD, gates_BSk, experts_BSk, weights, saved = kept
    at = _Layout.of(place)
    ins = (at.tokens, at.tokens, at.tokens, at.weights, at.saved, at.tokens)
    d_x, d_gates, d_weights = at.mapped(_backward, ins, (at.tokens, at.tokens, at.resting))(
        x_BSD, gates_BSk, experts_BSk, weights, saved, d_y_BSD
    )
    return d_x, d_gates, None, d_weights


_experts_ffn.defvjp(_experts_fwd, _experts_bwd)


class _Layout(NamedTuple):
    """Where things lie, and the collectives that follow from it. `axes`: of the mesh, none on a single device."""

    mesh: Any
    rows: int  # R at most
    expert: bool  # the experts lie over the axis "expert"
    tensor: bool  # the experts' hidden dim lies over the axis "tensor"
    weights: tuple[PartitionSpec, ...]
    resting: tuple[PartitionSpec, ...]  # of the same: where their gradients are wanted
    tokens = PartitionSpec(BATCH, None, None)
    saved = PartitionSpec(("fsdp", "expert", "tensor"), None, None)  # a device's own, never moved

    @staticmethod
    def of(place: Placement) -> "_Layout":
        names = ("expert_gate", "expert_up", "expert_down")
        weights, resting = (
            tuple(dict(specs).get(name, PartitionSpec(None, None, None)) for name in names)
            for specs in (place.weights, place.resting)
        )
        alone = place.mesh is None or place.mesh.size == 1
        platform = place.mesh.devices.flat[0].platform if place.mesh is not None else jax.default_backend()
        return _Layout(
            mesh=None if alone else place.mesh,
            rows=ROWS.get(platform, ROWS_ELSEWHERE),
            expert=weights[0][0] is not None,
            tensor=weights[0][2] is not None,
            weights=weights,
            resting=resting,
        )

    def mapped(self, function: Any, ins: tuple, outs: tuple) -> Any:
        """`function(layout, ...)` on every device's own part."""
        function = functools.partial(function, self)
        if self.mesh is None:
            return function
        return jax.shard_map(function, mesh=self.mesh, in_specs=ins, out_specs=outs, check_vma=False)

    def gathered(self, *arrays: jax.Array) -> tuple[jax.Array, ...]:
        """[b, S, ...] -> [T, ...]: the tokens of all devices on the axis expert."""
        if self.expert:
            arrays = tuple(jax.lax.all_gather(x, "expert", axis=0, tiled=True) for x in arrays)
        return tuple(x.reshape(-1, x.shape[-1]) for x in arrays)

    def scattered(self, partial: jax.Array, like: jax.Array) -> jax.Array:
        """f32 [T, ...] of partial sums -> their sums for this device's own tokens, shaped and typed like `like`."""
        if self.tensor:
            partial = jax.lax.psum(partial, "tensor")
        if self.expert:
            partial = jax.lax.psum_scatter(partial, "expert", scatter_dimension=0, tiled=True)
        return partial.reshape(like.shape).astype(like.dtype)

    def summed(self, d_w: jax.Array, at: PartitionSpec) -> jax.Array:
        """f32 gradient of this device's experts -> its part of the sum over the devices that had other tokens."""
        if self.mesh is None:
            return d_w
        if not self.expert:
            d_w = jax.lax.psum(d_w, "expert")
        if "fsdp" not in at:
            return jax.lax.psum(d_w, "fsdp")
        return jax.lax.psum_scatter(d_w, "fsdp", scatter_dimension=at.index("fsdp"), tiled=True)


class _Blocks(NamedTuple):
    """The copies of tokens in blocks. Slot `n * R + r` is row r of block n."""

    slot_Tk: jax.Array  # int32: where a copy lies; N * R for one of another device's experts
    copy_NR: jax.Array  # int32 [N * R]: token * k + choice of what lies there; T * k where nothing does
    expert_N: jax.Array  # int32: of each block
    count: jax.Array  # int32 scalar: blocks that are not empty


def _blocks(layout: _Layout, experts_Tk: jax.Array, held: int) -> tuple[_Blocks, int]:
    """The blocks of the `held` experts of this device, and R."""
    copies = experts_Tk.size
    rows = FEWEST_ROWS
    while rows < layout.rows and rows * held < copies:
        rows *= 2
    number = copies // rows + min(held, copies)  # sum of ceil(c_e / R), at most
    local = experts_Tk.reshape(-1)
    if layout.expert:
        local = local - jax.lax.axis_index("expert") * held
        local = jnp.where((local >= 0) & (local < held), local, held)
    order = jnp.argsort(local, stable=True)  # sorted place -> copy
    sizes = jnp.bincount(local, length=held + 1)[:held]
    of_expert = -(-sizes // rows)
    ends = jnp.cumsum(of_expert)
    shift = jnp.append((ends - of_expert) * rows - (jnp.cumsum(sizes) - sizes), number * rows)  # sorted place -> slot
    slot = jnp.minimum(jnp.arange(copies) + shift[local[order]], number * rows).astype(jnp.int32)
    slot_Tk = jnp.zeros(copies, jnp.int32).at[order].set(slot, unique_indices=True)
    copy_NR = jnp.full(number * rows, copies, jnp.int32).at[slot].set(order.astype(jnp.int32), mode="drop")
    expert_N = jnp.minimum(jnp.searchsorted(ends, jnp.arange(number), side="right"), held - 1)
    return _Blocks(slot_Tk.reshape(experts_Tk.shape), copy_NR, expert_N.astype(jnp.int32), ends[-1]), rows


def _rows_of(x: jax.Array, index: jax.Array) -> jax.Array:
    """x[index], zeros where the index lies behind the end."""
    return x.at[index].get(mode="fill", fill_value=0)


def _dot(a: jax.Array, b: jax.Array, contract: tuple[int, int]) -> jax.Array:
    """Contracts dim contract[0] of a with contract[1] of b; f32."""
    dims = (((contract[0],), (contract[1],)), ((), ()))
    return jax.lax.dot_general(a, b, dims, preferred_element_type=jnp.float32)


def _forward(layout: _Layout, x_BSD, gates_BSk, experts_BSk, weights):
    x_TD, gates_Tk, experts_Tk = layout.gathered(x_BSD, gates_BSk, experts_BSk)
    gate_EDF, up_EDF, down_EFD = weights
    blocks, rows = _blocks(layout, experts_Tk, gate_EDF.shape[0])
    number, k = blocks.expert_N.size, experts_Tk.shape[1]
    x_NRD = _rows_of(x_TD, blocks.copy_NR // k).reshape(number, rows, -1)

    def block(n, made):
        out_NRD, hidden_NRF = made
        expert, x_RD = blocks.expert_N[n], x_NRD[n]
        gate_RF, up_RF = (_dot(x_RD, w[expert], (1, 0)).astype(x_RD.dtype) for w in (gate_EDF, up_EDF))
        out_RD = _dot(gate_RF * jax.nn.sigmoid(gate_RF) * up_RF, down_EFD[expert], (1, 0))
        both = jnp.concatenate([gate_RF, up_RF], -1)
        return out_NRD.at[n].set(out_RD.astype(out_NRD.dtype)), hidden_NRF.at[n].set(both)

    hidden = jnp.zeros((number, rows, 2 * gate_EDF.shape[2]), x_TD.dtype)
    out_NRD, hidden_NRF = jax.lax.fori_loop(0, blocks.count, block, (jnp.zeros_like(x_NRD), hidden))
    out_TkD = _rows_of(out_NRD.reshape(number * rows, -1), blocks.slot_Tk)
    y_TD = (gates_Tk[..., None] * out_TkD.astype(jnp.float32)).sum(1)
    return layout.scattered(y_TD, x_BSD), hidden_NRF


def _backward(layout: _Layout, x_BSD, gates_BSk, experts_BSk, weights, hidden_NRF, d_y_BSD):
    x_TD, gates_Tk, experts_Tk, d_y_TD = layout.gathered(x_BSD, gates_BSk, experts_BSk, d_y_BSD)
    gate_EDF, up_EDF, down_EFD = weights
    blocks, rows = _blocks(layout, experts_Tk, gate_EDF.shape[0])
    number, k = blocks.expert_N.size, experts_Tk.shape[1]
    x_NRD, d_y_NRD = (_rows_of(a, blocks.copy_NR // k).reshape(number, rows, -1) for a in (x_TD, d_y_TD))
    gates_NR = _rows_of(gates_Tk.reshape(-1), blocks.copy_NR).reshape(number, rows)

    def block(n, made):
        d_x_NRD, d_gates_NR, d_gate_EDF, d_up_EDF, d_down_EFD = made
        expert, x_RD, gate = blocks.expert_N[n], x_NRD[n], gates_NR[n][:, None]
        gate_RF, up_RF = jnp.split(hidden_NRF[n], 2, axis=-1)
        on_RF = jax.nn.sigmoid(gate_RF)
        h_RF = gate_RF * on_RF * up_RF
        back_RF = _dot(d_y_NRD[n], down_EFD[expert], (1, 1))  # gradient of h, before the gate
        d_h_RF = (gate * back_RF).astype(x_RD.dtype)
        d_gate_RF = d_h_RF * up_RF * on_RF * (1 + gate_RF * (1 - on_RF))
        d_up_RF = d_h_RF * gate_RF * on_RF
        d_x_RD = _dot(d_gate_RF, gate_EDF[expert], (1, 1)) + _dot(d_up_RF, up_EDF[expert], (1, 1))
        d_out_RD = (gate * d_y_NRD[n]).astype(x_RD.dtype)
        return (
            d_x_NRD.at[n].set(d_x_RD.astype(d_x_NRD.dtype)),
            d_gates_NR.at[n].set((h_RF * back_RF).sum(-1, dtype=jnp.float32)),
            d_gate_EDF.at[expert].add(_dot(x_RD, d_gate_RF, (0, 0))),
            d_up_EDF.at[expert].add(_dot(x_RD, d_up_RF, (0, 0))),
            d_down_EFD.at[expert].add(_dot(h_RF, d_out_RD, (0, 0))),
        )

    sums = tuple(jnp.zeros(w.shape, jnp.float32) for w in weights)
    start = (jnp.zeros_like(x_NRD), jnp.zeros((number, rows), jnp.float32), *sums)
    d_x_NRD, d_gates_NR, *d_weights = jax.lax.fori_loop(0, blocks.count, block, start)
    d_x_TD = _rows_of(d_x_NRD.reshape(number * rows, -1), blocks.slot_Tk).astype(jnp.float32).sum(1)
    d_gates_Tk = _rows_of(d_gates_NR.reshape(-1), blocks.slot_Tk)
    d_weights = [layout.summed(d_w, at) for d_w, at in zip(d_weights, layout.resting, strict=True)]
    d_weights = tuple(d_w.astype(w.dtype) for d_w, w in zip(d_weights, weights, strict=True))
    return layout.scattered(d_x_TD, x_BSD), layout.scattered(d_gates_Tk, gates_BSk), d_weights
