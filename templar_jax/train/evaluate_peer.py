"""What one contribution does to the loss: applied to the parameters in place, evaluated, and taken back exactly.

The parameters' buffers are overwritten where the contribution touches them (1 value of 64 with the default
compression) with what the outer step would make of them at `scale` times its learning rate; the old values are set
aside, and after the forward passes their bits are written back. So there is no second copy of the model and no
rounding: what comes back is what came in. With compress.dct an update touches everything; then the changed model is a
second copy.

Changing, evaluating and taking back are executables of their own: in one, XLA copies the parameters between them
(measured: docs/decisions.md), and the passes before and after can share one executable.

Letters: B sequences, M sequences of one forward pass, C passes, S tokens of a sequence.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from templar_jax.compress import aggregate, dct
from templar_jax.compress.aggregate import Contribution
from templar_jax.compress.exact import flush
from templar_jax.compress.quantize import CODES
from templar_jax.compress.tiles import Tiling, fold, place, tilings
from templar_jax.config import ComputeConfig, RunConfig
from templar_jax.model.llama import Llama
from templar_jax.model.loss import token_nats
from templar_jax.model.placement import Placement, make_placement
from templar_jax.sharding import BATCH, shardings, shards, spec
from templar_jax.train.offload import fetch
from templar_jax.train.state import Params, ordered

Tokens = jax.Array | np.ndarray


class PeerLosses(NamedTuple):
    """Nats summed over the S - 1 predicted positions of each sequence: f32 [B] each."""

    assigned_before: np.ndarray
    assigned_after: np.ndarray
    unassigned_after: np.ndarray


@dataclass(frozen=True)
class PeerEvaluation:
    """Evaluation of contributions on a mesh.

    before(params, tokens_BS) -> f32 [B]: losses as they are; once a window for the sequences that all peers share.
    peer(params, contribution, factors, scale, assigned_BS, unassigned_BS) -> (params, PeerLosses): params are given up
      and come back, on the device, with the same bits; `factors` are what `aggregate.clip_factors` gave this
      contribution among its peers; `scale` (beta) multiplies the outer learning rate.
    """

    before: Callable[[Params, Tokens], np.ndarray]
    peer: Callable[..., tuple[Params, PeerLosses]]


def make_evaluate_peer(run: RunConfig, compute: ComputeConfig, mesh: Mesh) -> PeerEvaluation:
    """Builds the evaluation. Compiles once per number of passes (evaluate as many sequences on either side).

    Raises:
      ConfigError: the attention path cannot run here.
    """
    rows = _rows(run, compute, mesh)
    tokens_at = NamedSharding(mesh, PartitionSpec(None, BATCH, None))
    model = make_placement(run, compute, mesh)

    def evaluate(params: Params, tokens_CMS: jax.Array) -> jax.Array:
        return _losses(run, model, params, tokens_CMS)

    losses = jax.jit(evaluate)
    apply, take_back = make_apply(run, mesh), make_take_back(run, mesh)

    def passes(tokens_BS: Tokens) -> jax.Array:
        tokens = np.asarray(tokens_BS, np.int32)
        padded = np.pad(tokens, ((0, -len(tokens) % rows), (0, 0)))
        return jax.device_put(padded.reshape(-1, rows, tokens.shape[1]), tokens_at)

    def before(params: Params, tokens_BS: Tokens) -> np.ndarray:
        return np.asarray(losses(fetch(params), passes(tokens_BS)))[: len(tokens_BS)]

    def peer(
        params: Params,
        contribution: Contribution,
        factors: dict[str, np.ndarray],
        scale: float,
        assigned_BS: Tokens,
        unassigned_BS: Tokens,
    ) -> tuple[Params, PeerLosses]:
        tables = aggregate.value_tables(run, contribution, factors, run.outer.lr * scale)
        sent = put(run, mesh, contribution, tables)
        assigned_CMS, unassigned_CMS = passes(assigned_BS), passes(unassigned_BS)
        params = fetch(params)
        assigned_before = losses(params, assigned_CMS)
        changed, old = apply(params, *sent)
        found = (assigned_before, losses(changed, assigned_CMS), losses(changed, unassigned_CMS))
        if not run.compress.dct:
            params = take_back(changed, sent[0], sent[1], old)
        counts = len(assigned_BS), len(assigned_BS), len(unassigned_BS)
        fetched = (array[:count] for array, count in zip(jax.device_get(found), counts, strict=True))
        return ordered(run, params), PeerLosses(*fetched)

    return PeerEvaluation(before, peer)


def _rows(run: RunConfig, compute: ComputeConfig, mesh: Mesh) -> int:
    """M: sequences of one forward pass: a training micro-batch, which is known to fit, made to spread over devices."""
    parts = shards(mesh, BATCH)
    return max(parts, (compute.micro_batch or run.inner.batch) // parts * parts)


def _losses(run: RunConfig, model_at: Placement, params: Params, tokens_CMS: jax.Array) -> jax.Array:
    """f32 [C * M], one pass of M sequences in memory at a time."""

    def one(tokens_MS: jax.Array) -> jax.Array:
        model = Llama(params, run.model, model_at)
        return token_nats(model.hidden(tokens_MS), model.head_weight(), tokens_MS, model_at).sum(-1)

    if tokens_CMS.shape[0] == 1:
        return one(tokens_CMS[0])
    return jax.lax.map(one, tokens_CMS).reshape(-1)


def put(run: RunConfig, mesh: Mesh, contribution: Contribution, tables: aggregate.Tables) -> tuple:
    """What `apply` takes beside the parameters, each tile where its elements lie; what is not needed is None."""
    cut, params_at = tilings(run), shardings(run, mesh)

    def placed(name: str, array: np.ndarray | jax.Array) -> jax.Array:
        return jax.device_put(fold(cut[name], np.asarray(array)), params_at[name])

    sign1 = run.compress.quantizer == "sign1"
    indices = {name: None if cut[name].full else placed(name, contribution[name].indices) for name in cut}
    codes = {name: placed(name, contribution[name].codes) for name in cut}
    scales = {name: placed(name, contribution[name].scales) if sign1 else None for name in cut}
    tables_at = {name: NamedSharding(mesh, of_units(tiling, mesh)) for name, tiling in cut.items()}
    return indices, codes, scales, jax.device_put(tables, tables_at), np.uint32(0)


def of_units(tiling: Tiling, mesh: Mesh) -> PartitionSpec:
    """Where [*stack, E] lies: with its units."""
    return PartitionSpec(*spec(tiling.param, mesh)[: tiling.param.stack])


def _where(tiling: Tiling, indices: jax.Array | None, codes: jax.Array) -> tuple[jax.Array, ...]:
    """Coordinates of the values in a shard; full tiles carry no indices."""
    if indices is None:
        indices = jnp.broadcast_to(jnp.arange(tiling.k, dtype=jnp.int32), codes.shape)
    return place(tiling.sides, indices, tiling.param.stack)


def _look_up(value_table: jax.Array, codes: jax.Array, scales: jax.Array | None, dims: int) -> jax.Array:
    """f32 [*stack, *grid, k]: the entries of f32 [*stack, E] that uint8 codes [*stack, *grid, k] and scales name.

    dims: number of grid dims; scales None: v213.
    """
    stack = value_table.shape[:-1]
    entry = codes.astype(jnp.int32)
    if scales is not None:
        entry = scales.astype(jnp.int32)[..., None] * CODES + entry
    flat_table = value_table.reshape(math.prod(stack), -1)
    unit = jnp.arange(flat_table.shape[0]).reshape(*stack, *(1,) * (dims + 1))
    return flat_table.at[unit, entry].get(mode="promise_in_bounds")


def make_apply(run: RunConfig, mesh: Mesh) -> Callable[..., tuple[Params, Params]]:
    """`apply(params, indices, codes, scales, tables, zero) -> (params, old)`: the outer step's arithmetic, bit for bit.

    Params are donated, except in the cosine domain, where the result is a copy.
    `old` holds the touched values, f32 [*stack, *grid, k]; nothing of use in the cosine domain.
    """
    cut = tilings(run)

    def one(tiling: Tiling, param: jax.Array, indices, codes, scales, value_table, zero) -> tuple[jax.Array, jax.Array]:
        found = _look_up(value_table, codes, scales, len(tiling.grid))
        where = _where(tiling, indices, codes)
        if run.compress.dct:
            total = jnp.zeros_like(param).at[where].set(found, unique_indices=True, mode="promise_in_bounds")
            (total,) = dct.transform_units([tiling], [total], True, zero)
            return flush(param - total), codes
        old = param.at[where].get(unique_indices=True, mode="promise_in_bounds")
        return param.at[where].set(flush(old - found), unique_indices=True, mode="promise_in_bounds"), old

    def on_shard(params, indices, codes, scales, tables, zero):
        made = {
            name: one(tiling, params[name], indices[name], codes[name], scales[name], tables[name], zero)
            for name, tiling in cut.items()
        }
        return {name: param for name, (param, _) in made.items()}, {name: old for name, (_, old) in made.items()}

    at = {name: spec(tiling.param, mesh) for name, tiling in cut.items()}
    tables_at = {name: of_units(tiling, mesh) for name, tiling in cut.items()}
    specs = (at, at, at, at, tables_at, PartitionSpec())
    mapped = jax.shard_map(on_shard, mesh=mesh, in_specs=specs, out_specs=(at, at), check_vma=False)
    return jax.jit(mapped, donate_argnums=() if run.compress.dct else 0)


def make_take_back(run: RunConfig, mesh: Mesh) -> Callable[..., Params]:
    """`take_back(params, indices, codes, old) -> params` as they were before `apply`; params are donated."""
    cut = tilings(run)

    def on_shard(params, indices, codes, old):
        return {
            name: params[name]
            .at[_where(tiling, indices[name], codes[name])]
            .set(old[name], unique_indices=True, mode="promise_in_bounds")
            for name, tiling in cut.items()
        }

    at = {name: spec(tiling.param, mesh) for name, tiling in cut.items()}
    mapped = jax.shard_map(on_shard, mesh=mesh, in_specs=(at, at, at, at), out_specs=at, check_vma=False)
    return jax.jit(mapped, donate_argnums=0)
