"""The outer step: what every node does to the global parameters with the contributions of a manifest.

    update = lr * mean over contributions of clip(decoded)        (clip, mean and lr folded into value tables)
    momentum' = mu * momentum + update                            (only with outer.momentum)
    params' = params - (momentum', or mu * momentum' + update with outer.nesterov, or update)

Bit for bit what plain NumPy f32 gives, on any mesh and in any order of arrival: contributions are added in ascending
order of uid to a sum that starts at 0; every operation is rounded by itself; magnitudes below 2**-100
become 0. One unit at a time: the dense sum of a whole parameter never exists (except with compress.dct).

SparseLoCo (arXiv 2508.15706); DiLoCo (arXiv 2311.08105) for momentum.
"""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from templar_jax.compress import aggregate, dct
from templar_jax.compress.aggregate import Contribution, Tables
from templar_jax.compress.exact import flush, product
from templar_jax.compress.tiles import Tiling, fold, groups, tilings
from templar_jax.config import RunConfig
from templar_jax.sharding import make_zeros, spec, to_devices
from templar_jax.train.offload import fetch, host_zeros, settle

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


def make_outer(run: RunConfig, mesh: Mesh, offload: tuple[str, ...] = ()) -> Outer:
    """Builds the outer step. Compiles once, whatever the number of contributions (1 to max_contributors).

    offload: classes that rest in pinned host memory (offload.py); "snapshot" are parameters and momentum.
    """
    made = [Group(run, mesh, names) for names in groups(run, mesh)]
    senders_mean = run.outer.mean == "contributors"

    def apply(
        params: Params, momentum: Params, contributions: Mapping[int, Contribution], donate: bool = False
    ) -> tuple[Params, Params]:
        if not contributions:
            return params, momentum
        step = run.outer.lr if senders_mean else run.outer.lr / len(contributions)
        factors = aggregate.clip_factors(run, contributions)
        ordered = [contributions[uid] for uid in sorted(contributions)]
        tables = [aggregate.value_tables(run, contributions[uid], factors[uid], step) for uid in sorted(contributions)]
        new_params, new_momentum = dict(params), dict(momentum)
        for group in made:
            names = group.names
            lying = [params[name] for name in names], [momentum[name] for name in names] if momentum else []
            ours, moving = fetch(lying)
            new = group.step(ours, moving, group.place(ordered, tables, run.max_contributors), donate)
            ours, moving = settle(new, lying)
            new_params.update(zip(names, ours, strict=True))
            new_momentum.update(zip(names, moving, strict=bool(moving)))
        return new_params, new_momentum

    def trial(params: Params, contribution: Contribution, factors: dict[str, np.ndarray], scale: float) -> Params:
        tables = aggregate.value_tables(run, contribution, factors, run.outer.lr * scale)
        new_params = dict(params)
        for group in made:
            ours = fetch([params[name] for name in group.names])
            ours = group.subtract(ours, group.place([contribution], [tables], 1))
            new_params.update(zip(group.names, ours, strict=True))
        return new_params

    def dense(contribution: Contribution) -> Params:
        unclipped = {name: np.ones(tiling.param.units) for name, tiling in tilings(run).items()}
        tables = aggregate.value_tables(run, contribution, unclipped, 1.0)
        decoded: Params = {}
        for group in made:
            decoded.update(zip(group.names, group.decode(group.place([contribution], [tables], 1)), strict=True))
        return decoded

    zeros = functools.partial(host_zeros, run, mesh) if "snapshot" in offload else make_zeros(run, mesh)
    return Outer(zeros if run.outer.momentum else dict, apply, trial, dense)


class Group:
    """The executables of one group of parameters; lists are in the order of `names`.

    What goes to the devices of W contributions (see `place`): their number, and per parameter a dict of
    indices uint16 and codes uint8 [*stack, W, *grid, k], scales uint8 [*stack, W, *grid], table f32 [*stack, W, E].
    Full tiles carry no indices, v213 no scales.
    """

    def __init__(self, run: RunConfig, mesh: Mesh, names: tuple[str, ...]) -> None:
        self.run, self.names = run, names
        self.cut = [tilings(run)[name] for name in names]
        whole, none = [spec(tiling.param, mesh) for tiling in self.cut], PartitionSpec()
        sent = [self._sent_specs(*item) for item in zip(self.cut, whole, strict=True)]
        moving = whole if run.outer.momentum else []
        self.where = [{part: NamedSharding(mesh, where) for part, where in one.items()} for one in sent]

        def mapped(function: Callable, in_specs: tuple, out_specs) -> Callable:
            return jax.shard_map(function, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)

        step = mapped(self._step_on_shard, (whole, moving, (none, sent), none, none), (whole, moving))
        self.step_jit = jax.jit(step)
        self.step_in_place_jit = jax.jit(step, donate_argnums=(0, 1))
        self.subtract_jit = jax.jit(mapped(self._subtract_on_shard, (whole, (none, sent), none), whole))
        self.decode_jit = jax.jit(mapped(self._decode_on_shard, ((none, sent), none), whole))

    def _sent_specs(self, tiling: Tiling, whole: PartitionSpec) -> dict[str, PartitionSpec]:
        stack = tiling.param.stack
        tiles = PartitionSpec(*whole[:stack], None, *whole[stack:])
        parts = {"codes": tiles, "table": PartitionSpec(*whole[:stack])}
        if not tiling.full:
            parts["indices"] = tiles
        if self.run.compress.quantizer == "sign1":
            parts["scales"] = tiles
        return parts

    def place(self, contributions: list[Contribution], tables: list[Tables], width: int) -> tuple:
        """Contributions on the devices, each tile where its elements lie; past their number lies what is never read."""

        def stacked(arrays: list[np.ndarray], dim: int) -> np.ndarray:
            first = arrays[0]
            out = np.empty((*first.shape[:dim], width, *first.shape[dim:]), first.dtype)
            for number, array in enumerate(arrays):
                out[(slice(None),) * dim + (number,)] = array
            return out

        sent = []
        for tiling, name, parts in zip(self.cut, self.names, self.where, strict=True):
            stack = tiling.param.stack
            one = {"table": stacked([of_peer[name] for of_peer in tables], stack)}
            for part in parts.keys() - {"table"}:
                arrays = [np.asarray(getattr(contribution[name], part)) for contribution in contributions]
                one[part] = fold(tiling, stacked(arrays, stack), batch=1)
            sent.append(one)
        return np.int32(len(contributions)), to_devices(sent, self.where)

    def step(self, params: Arrays, momentum: Arrays, placed: tuple, donate: bool) -> tuple[Arrays, Arrays]:
        step = self.step_in_place_jit if donate else self.step_jit
        return step(params, momentum, placed, self.constants(), np.uint32(0))

    def constants(self) -> tuple[np.ndarray, np.float32]:
        """Reciprocals of 0 (as 0) to R, and the momentum's decay."""
        counts = np.arange(self.run.max_contributors + 1)
        reciprocals = np.divide(1.0, counts, out=np.zeros(counts.shape), where=counts > 0)
        return reciprocals.astype(np.float32), np.float32(self.run.outer.momentum)

    def subtract(self, params: Arrays, placed: tuple) -> Arrays:
        return self.subtract_jit(params, placed, np.uint32(0))

    def decode(self, placed: tuple) -> Arrays:
        return self.decode_jit(placed, np.uint32(0))

    def _step_on_shard(self, params: Arrays, momentum: Arrays, placed: tuple, constants: tuple, zero: jax.Array):
        reciprocals, decay = constants
        by_senders = reciprocals if self.run.outer.mean == "contributors" else None

        def finish(update: jax.Array, param: jax.Array, *moving: jax.Array) -> tuple[jax.Array, ...]:
            if moving:
                moving = (flush(product(decay, moving[0], zero) + update),)
                update = product(decay, moving[0], zero) + update if self.run.outer.nesterov else moving[0]
            return (flush(param - update), *moving)

        rows = [params, momentum] if momentum else [params]
        new = self._per_unit(placed, by_senders, finish, rows, zero)
        return [one[0] for one in new], [one[1] for one in new] if momentum else []

    def _subtract_on_shard(self, params: Arrays, placed: tuple, zero: jax.Array) -> Arrays:
        return self._per_unit(placed, None, lambda update, param: flush(param - update), [params], zero)

    def _decode_on_shard(self, placed: tuple, zero: jax.Array) -> Arrays:
        decoded = [aggregate.dense(tiling, one) for tiling, one in zip(self.cut, placed[1], strict=True)]
        return dct.transform_units(self.cut, decoded, True, zero) if self.run.compress.dct else decoded

    def _per_unit(
        self, placed: tuple, reciprocals: jax.Array | None, finish: Callable, rows: list[Arrays], zero: jax.Array
    ) -> list:
        """finish(update of a unit, that unit of each of `rows`) for every unit of every parameter of a shard."""
        count, sent = placed
        own = [[row[at] for row in rows] for at in range(len(self.cut))]

        def update(tiling: Tiling, one: dict[str, jax.Array]) -> jax.Array:
            return aggregate.unit_update(tiling, count, one, reciprocals, zero)

        if self.run.compress.dct:
            sums = [
                _over_stack(tiling, functools.partial(update, tiling), one)
                for tiling, one in zip(self.cut, sent, strict=True)
            ]
            elements = dct.transform_units(self.cut, sums, True, zero)
            return [finish(part, *ours) for part, ours in zip(elements, own, strict=True)]

        def new(tiling: Tiling, one: dict[str, jax.Array], *ours: jax.Array):
            return finish(update(tiling, one), *ours)

        items = zip(self.cut, sent, own, strict=True)
        return [_over_stack(tiling, functools.partial(new, tiling), one, *ours) for tiling, one, ours in items]


def _over_stack(tiling: Tiling, function: Callable, *trees):
    """function of each unit in turn, for trees of arrays [*stack, ...]."""
    stack = tiling.param.stack
    if not stack:
        return function(*trees)
    shape = jax.tree.leaves(trees)[0].shape[:stack]
    flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[stack:]), trees)
    done = jax.lax.map(lambda unit: function(*unit), flat)
    return jax.tree.map(lambda x: x.reshape(*shape, *x.shape[1:]), done)
