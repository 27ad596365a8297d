"""The outer step: what every node does to the global parameters with the contributions of a manifest.

    update = lr * mean over contributions of clip(decoded)        (clip, mean and lr folded into value tables)
    momentum' = mu * momentum + update                            (only with outer.momentum)
    params' = params - (momentum', or mu * momentum' + update with outer.nesterov, or update)

Bit for bit what plain NumPy f32 gives, on any mesh and in any order of arrival: contributions are added in ascending
order of uid to a sum that starts at 0; every operation is rounded by itself; magnitudes below 2**-100
become 0. One group of parameters at a time (at most one parameter's stack in a large model): one dense sum, however
many contributions there are.

SparseLoCo (arXiv 2508.15706); DiLoCo (arXiv 2311.08105) for momentum.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from templar_jax.compress import aggregate, dct
from templar_jax.compress.aggregate import Contribution, Tables
from templar_jax.compress.exact import flush, product
from templar_jax.compress.tiles import Tiling, fold, groups, tilings
from templar_jax.config import RunConfig
from templar_jax.sharding import shardings, spec, table

Params = dict[str, jax.Array]
Arrays = list[jax.Array]


@dataclass(frozen=True)
class Outer:
    """The outer step of a run on a mesh.

    init() -> momentum: zeros like the parameters, or an empty dict where the run has none.
    apply(params, momentum, {uid: contribution}, donate=False) -> (params, momentum). Without contributions nothing
      changes, the momentum neither. `donate=True` gives up the arguments' buffers.
    trial(params, contribution, clip factors, scale) -> params as they would be after `scale` times the outer learning
      rate times one contribution alone, clipped by the factors that `aggregate.clip_factors` gave it among its peers.
    dense(contribution) -> the decoded pseudo-gradient itself, unclipped, as large as the parameters.
    """

    init: Callable[[], Params]
    apply: Callable[..., tuple[Params, Params]]
    trial: Callable[[Params, Contribution, dict[str, np.ndarray], float], Params]
    dense: Callable[[Contribution], Params]


def make_outer(run: RunConfig, mesh: Mesh) -> Outer:
    """Builds the outer step. Compiles once, whatever the number of contributions (1 to max_contributors)."""
    made = [_Group(run, mesh, names) for names in groups(run, mesh)]
    by_senders = run.outer.mean == "contributors"

    def init() -> Params:
        if not run.outer.momentum:
            return {}
        return _zeros(run, mesh)

    def apply(
        params: Params, momentum: Params, contributions: Mapping[int, Contribution], donate: bool = False
    ) -> tuple[Params, Params]:
        if not contributions:
            return params, momentum
        step = run.outer.lr if by_senders else run.outer.lr / len(contributions)
        factors = aggregate.clip_factors(run, contributions)
        ordered = [
            (contributions[uid], aggregate.value_tables(run, contributions[uid], factors[uid], step))
            for uid in sorted(contributions)
        ]
        new_params, new_momentum = dict(params), dict(momentum)
        for group in made:
            total = group.sum(ordered)
            ours = [params[name] for name in group.names]
            moving = [momentum[name] for name in group.names] if momentum else []
            ours, moving = group.step(ours, moving, total, donate)
            new_params.update(zip(group.names, ours, strict=True))
            new_momentum.update(zip(group.names, moving, strict=bool(moving)))
        return new_params, new_momentum

    def trial(params: Params, contribution: Contribution, factors: dict[str, np.ndarray], scale: float) -> Params:
        tables = aggregate.value_tables(run, contribution, factors, run.outer.lr * scale)
        new_params = dict(params)
        for group in made:
            total, _ = group.sum([(contribution, tables)])
            ours = group.subtract([params[name] for name in group.names], total, np.uint32(0))
            new_params.update(zip(group.names, ours, strict=True))
        return new_params

    def dense(contribution: Contribution) -> Params:
        unclipped = {name: np.ones(tiling.param.units) for name, tiling in tilings(run).items()}
        tables = aggregate.value_tables(run, contribution, unclipped, 1.0)
        decoded: Params = {}
        for group in made:
            decoded.update(zip(group.names, group.elements(group.sum([(contribution, tables)])[0]), strict=True))
        return decoded

    return Outer(init, apply, trial, dense)


def _zeros(run: RunConfig, mesh: Mesh) -> Params:
    shapes = {param.name: param.shape for param in table(run)}
    make = jax.jit(
        lambda: {name: jnp.zeros(shape, jnp.float32) for name, shape in shapes.items()},
        out_shardings=shardings(run, mesh),
    )
    zeros = make()
    return {name: zeros[name] for name in shapes}


class _Group:
    """The executables of one group of parameters; lists are in the order of `names`."""

    def __init__(self, run: RunConfig, mesh: Mesh, names: tuple[str, ...]) -> None:
        self.run, self.names = run, names
        self.cut = [tilings(run)[name] for name in names]
        self.specs = [spec(tiling.param, mesh) for tiling in self.cut]
        self.where = [NamedSharding(mesh, where) for where in self.specs]
        self.whole = NamedSharding(mesh, PartitionSpec())
        self.by_senders = run.outer.mean == "contributors"
        self.senders_dtype = np.uint8 if run.max_contributors < 2**8 else np.uint16
        none, specs = PartitionSpec(), self.specs
        senders = specs if self.by_senders else []
        moving = specs if run.outer.momentum else []

        def mapped(function: Callable, in_specs: tuple, out_specs) -> Callable:
            return jax.shard_map(function, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)

        self._add = jax.jit(
            mapped(self._add_on_shard, (specs, senders, specs, specs, specs, none), (specs, senders)),
            donate_argnums=(0, 1),
        )
        self.subtract = jax.jit(mapped(self._subtract_on_shard, (specs, specs, none), specs), donate_argnums=1)
        self._transform = jax.jit(mapped(self._transform_on_shard, (specs, none), specs), donate_argnums=0)
        step = mapped(self._step_on_shard, (specs, moving, specs, senders, none, none), (specs, moving))
        self._step = jax.jit(step, donate_argnums=2)
        self._step_in_place = jax.jit(step, donate_argnums=(0, 1))
        self._start = jax.jit(self._empty, out_shardings=(self.where, self.where if self.by_senders else []))

    def _empty(self) -> tuple[Arrays, Arrays]:
        shapes = [tiling.param.shape for tiling in self.cut]
        senders = [jnp.zeros(shape, self.senders_dtype) for shape in shapes] if self.by_senders else []
        return [jnp.zeros(shape, jnp.float32) for shape in shapes], senders

    def sum(self, ordered: list[tuple[Contribution, Tables]]) -> tuple[Arrays, Arrays]:
        """The dense sum of the contributions in this order, and how many sent each element."""
        total, senders = self._start()
        for contribution, tables in ordered:
            total, senders = self._add(total, senders, *self._placed(contribution, tables))
        return total, senders

    def _placed(self, contribution: Contribution, tables: Tables) -> tuple:
        """A contribution on the devices, each tile where its elements lie. What is not needed there is None."""
        sign1 = self.run.compress.quantizer == "sign1"
        sent = [contribution[name] for name in self.names]
        parts = list(zip(self.cut, sent, self.where, strict=True))
        indices = [None if t.full else jax.device_put(fold(t, np.asarray(one.indices)), w) for t, one, w in parts]
        codes = [jax.device_put(fold(t, np.asarray(one.codes)), w) for t, one, w in parts]
        scales = [jax.device_put(fold(t, np.asarray(one.scales)), w) if sign1 else None for t, one, w in parts]
        return indices, codes, scales, jax.device_put([tables[name] for name in self.names], self.whole)

    def _add_on_shard(
        self, totals: Arrays, senders: Arrays, indices: list, codes: Arrays, scales: list, tables: Arrays
    ) -> tuple[Arrays, Arrays]:
        new, counted = [], []
        for at, tiling in enumerate(self.cut):
            found = aggregate.look_up(tables[at], codes[at], scales[at], len(tiling.grid))
            offsets = _offsets(tiling, indices[at], codes[at])
            new.append(aggregate.add(totals[at], tiling, offsets, found))
            if senders:
                sent = (found != 0).astype(self.senders_dtype)
                counted.append(aggregate.add(senders[at], tiling, offsets, sent))
        return new, counted

    def elements(self, totals: Arrays) -> Arrays:
        """Sums as elements of the parameters: the inverse cosine transform, where the run uses it."""
        return self._transform(totals, np.uint32(0)) if self.run.compress.dct else totals

    def _transform_on_shard(self, totals: Arrays, zero: jax.Array) -> Arrays:
        return dct.transform_units(self.cut, totals, True, zero) if self.run.compress.dct else totals

    def _subtract_on_shard(self, params: Arrays, totals: Arrays, zero: jax.Array) -> Arrays:
        updates = self._transform_on_shard(totals, zero)
        return [flush(param - update) for param, update in zip(params, updates, strict=True)]

    def step(self, params: Arrays, momentum: Arrays, total: tuple[Arrays, Arrays], donate: bool) -> tuple:
        step = self._step_in_place if donate else self._step
        counts = np.arange(self.run.max_contributors + 1)
        reciprocals = np.divide(1.0, counts, out=np.zeros(counts.shape), where=counts > 0).astype(np.float32)
        constants = (reciprocals, np.float32(self.run.outer.momentum))
        return step(params, momentum, *total, constants, np.uint32(0))

    def _step_on_shard(
        self, params: Arrays, momentum: Arrays, totals: Arrays, senders: Arrays, constants: tuple, zero: jax.Array
    ) -> tuple[Arrays, Arrays]:
        reciprocals, decay = constants
        if senders:
            shares = [reciprocals.at[count.astype(jnp.int32)].get(mode="promise_in_bounds") for count in senders]
            totals = [product(total, share, zero) for total, share in zip(totals, shares, strict=True)]
        updates = self._transform_on_shard(totals, zero)
        if momentum:
            moved = zip(momentum, updates, strict=True)
            momentum = [flush(product(decay, moving, zero) + update) for moving, update in moved]
            if self.run.outer.nesterov:
                moved = zip(momentum, updates, strict=True)
                updates = [product(decay, moving, zero) + update for moving, update in moved]
            else:
                updates = momentum
        return [flush(param - update) for param, update in zip(params, updates, strict=True)], momentum


def _offsets(tiling: Tiling, indices: jax.Array | None, codes: jax.Array) -> jax.Array:
    """Offsets of the values; full tiles carry none."""
    if indices is not None:
        return indices
    return jnp.broadcast_to(jnp.arange(tiling.k, dtype=jnp.int32), codes.shape)
