"""The inner optimiser as an optax (init, update) pair without a learning rate, and where its state lives.

`update` returns directions: the caller multiplies by the rate of the global inner step. The bias correction inside
counts the miner's own steps, which its own moments have seen.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from templar_jax.config import InnerConfig, RunConfig
from templar_jax.sharding import Param, shardings, table
from templar_jax.train.offload import rest

MUON_BETA = 0.95


def is_muon(param: Param) -> bool:
    """Muon takes the matrices of the layers; AdamW takes embedding, head and norms."""
    return param.stack > 0 and len(param.unit_shape) == 2


def _muon(config: InnerConfig) -> optax.GradientTransformation:
    """Orthogonalised momentum of each unit (https://kellerjordan.github.io/posts/muon), at AdamW's update size.

    The factor 0.2 * sqrt(max(rows, columns)) gives the update the RMS that AdamW's has, so that one learning rate
    serves both (https://arxiv.org/abs/2502.16982).
    """

    def dims(tree):  # batches of matrices: the dims in front are the layer and the expert
        return jax.tree.map(lambda u: optax.contrib.MuonDimensionNumbers(u.ndim - 2, u.ndim - 1), tree)

    def scaled(updates, _params=None):
        return jax.tree.map(lambda u: u * (0.2 * max(u.shape[-2:]) ** 0.5), updates)

    return optax.chain(
        optax.contrib.scale_by_muon(beta=MUON_BETA, weight_dimension_numbers=dims),
        optax.stateless(scaled),
    )


def make_optimizer(run: RunConfig, names: Sequence[str] = ()) -> optax.GradientTransformation:
    """AdamW or Muon with decoupled weight decay by the table (https://arxiv.org/abs/1711.05101).

    names: the parameters that it is for; all of them where empty.
    """
    config = run.inner
    rows = [param for param in table(run) if not names or param.name in names]
    adam = optax.scale_by_adam(config.beta1, config.beta2, config.eps)
    if config.optimizer == "adamw":
        direction = adam
    else:
        labels = {param.name: "muon" if is_muon(param) else "adam" for param in rows}
        direction = optax.partition({"adam": adam, "muon": _muon(config)}, labels)
    decay = {param.name: param.decay for param in rows}
    return optax.chain(direction, optax.add_decayed_weights(config.weight_decay, decay))


def state_shapes(run: RunConfig, mesh: Mesh, names: Sequence[str] = (), offloaded: bool = False) -> Any:
    """Shapes and shardings of the optimiser's state: moments as their parameters, counters on every device.

    offloaded: moments in pinned host memory; counters stay.
    """
    layout, everywhere = rest(shardings(run, mesh), offloaded), NamedSharding(mesh, PartitionSpec())
    shapes = {p.name: jax.ShapeDtypeStruct(p.shape, "float32") for p in table(run) if not names or p.name in names}

    def placed(path: tuple, leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        owners = [key.key for key in path if isinstance(key, jax.tree_util.DictKey) and key.key in layout]
        where = layout[owners[0]] if owners else everywhere
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)

    return jax.tree.map_with_path(placed, jax.eval_shape(make_optimizer(run, names).init, shapes))


def _by_parameter(run: RunConfig) -> Callable[[Any], bool]:
    """True for the dicts of an optimiser's state that are keyed by parameter."""
    names = {param.name for param in table(run)}
    return lambda node: isinstance(node, dict) and bool(node) and node.keys() <= names


def part_of(run: RunConfig, state: Any, names: Sequence[str]) -> Any:
    """The state of `make_optimizer(run, names)` out of that of all parameters; counters are copied, for donation."""
    by_parameter = _by_parameter(run)

    def part(node: Any) -> Any:
        return {name: node[name] for name in names} if by_parameter(node) else node.copy()

    return jax.tree.map(part, state, is_leaf=by_parameter)


def merge(run: RunConfig, parts: Sequence[Any]) -> Any:
    """The inverse of `part_of`: the state of all parameters out of its parts. Counters are the last part's."""

    def whole(*nodes: Any) -> Any:
        return {name: x for node in nodes for name, x in node.items()} if isinstance(nodes[0], dict) else nodes[-1]

    return jax.tree.map(whole, *parts, is_leaf=_by_parameter(run))
