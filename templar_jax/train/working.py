"""The parameters as a forward pass reads them: on the device, those that rest on the host in the compute dtype."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from templar_jax.compress.tiles import groups
from templar_jax.config import ComputeConfig, RunConfig
from templar_jax.sharding import shardings
from templar_jax.train.offload import fetch, on_host
from templar_jax.train.state import Params


def make_working(run: RunConfig, compute: ComputeConfig, mesh: Mesh) -> Callable[[Params], Params]:
    """`working(params)`: what lies on the device as it is; what rests on the host as a copy in the compute dtype.

    The rounding is the one that each weight would get where it is used (Placement.weight). One group of parameters
    after the other, so that the device never holds them all in f32.
    """
    dtype, at = jnp.dtype(compute.dtype), shardings(run, mesh)

    def narrowed(names: tuple[str, ...]) -> Callable[[Params], Params]:
        def narrow(params: Params) -> Params:
            return {name: value.astype(dtype) for name, value in params.items()}

        return jax.jit(narrow, out_shardings={name: at[name] for name in names})

    made = [(names, narrowed(names)) for names in groups(run, mesh)]

    def working(params: Params) -> Params:
        if not any(map(on_host, params.values())):
            return params
        parts: Params = {}
        for names, narrow in made:
            part = fetch({name: params[name] for name in names})
            parts.update(part if dtype == jnp.float32 else jax.block_until_ready(narrow(part)))
        return {name: parts[name] for name in params}

    return working
