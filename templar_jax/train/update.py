"""The optimiser's update, one group of parameters after the other.

What rests in pinned host memory (offload.py) visits the device group by group: at no time does the device hold more
than the gradients that are left and one group's parameters and moments.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from templar_jax.compress.tiles import groups
from templar_jax.config import RunConfig
from templar_jax.sharding import shardings, table
from templar_jax.train.offload import fetch, settle
from templar_jax.train.optimizer import make_optimizer, merge, part_of, state_shapes
from templar_jax.train.state import Params

Names = tuple[str, ...]


@dataclass(frozen=True)
class Update:
    """init() -> opt: the optimiser's state before the first step, one optax tree of all parameters.
    apply(params, opt, grads, scale, rate) -> (params, opt): params - rate * direction(scale * grads). All three trees
      are given up, the dict of gradients is emptied; what comes back lies where params and opt lay.
    executables: (names of a group, its jitted update), for plans and tests: (params, opt, grads, scale, rate) ->
      (params, opt) of that group, params and opt donated.
    """

    init: Callable[[], Any]
    apply: Callable[[Params, Any, Params, jax.Array, jax.Array], tuple[Params, Any]]
    executables: tuple[tuple[Names, Any], ...]


def make_update(run: RunConfig, mesh: Mesh, offload: tuple[str, ...]) -> Update:
    """The update of `run` on `mesh`; the moments rest where `offload` says."""
    made = tuple((names, _executable(run, mesh, names)) for names in groups(run, mesh))
    starts = [_start(run, mesh, names, "moments" in offload) for names, _ in made]

    def apply(params: Params, opt: Any, grads: Params, scale: jax.Array, rate: jax.Array) -> tuple[Params, Any]:
        new: Params = {}
        parts = []
        for names, update in made:
            lying = {name: params[name] for name in names}, part_of(run, opt, names)
            ours, part = fetch(lying)
            ours, part = settle(update(ours, part, {name: grads.pop(name) for name in names}, scale, rate), lying)
            new.update(ours)
            parts.append(part)
        return {name: new[name] for name in params}, merge(run, parts)

    return Update(lambda: merge(run, [start() for start in starts]), apply, made)


def _executable(run: RunConfig, mesh: Mesh, names: Names) -> Any:
    optimizer, at = make_optimizer(run, names), shardings(run, mesh)
    opt_at = jax.tree.map(lambda shape: shape.sharding, state_shapes(run, mesh, names))

    def update(params: Params, opt: Any, grads: Params, scale: jax.Array, rate: jax.Array) -> tuple[Params, Any]:
        directions, opt = optimizer.update(jax.tree.map(lambda g: g * scale, grads), opt, params)
        return jax.tree.map(lambda p, d: p - rate * d, params, directions), opt

    return jax.jit(update, donate_argnums=(0, 1), out_shardings=({name: at[name] for name in names}, opt_at))


def _start(run: RunConfig, mesh: Mesh, names: Names, offloaded: bool) -> Callable[[], Any]:
    optimizer, zeros = make_optimizer(run, names), [param for param in table(run) if param.name in names]

    def init() -> Any:
        return optimizer.init({param.name: jnp.zeros(param.shape, jnp.float32) for param in zeros})

    at = jax.tree.map(lambda shape: shape.sharding, state_shapes(run, mesh, names))
    lying, make = state_shapes(run, mesh, names, offloaded), jax.jit(init, out_shardings=at)
    return lambda: settle(make(), lying)
