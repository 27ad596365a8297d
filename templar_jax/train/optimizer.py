"""The inner optimiser as an optax (init, update) pair without a learning rate, and where its state lives.

`update` returns directions: the caller multiplies by the rate of the global inner step. The bias correction inside
counts the miner's own steps, which its own moments have seen.
"""

from typing import Any

import jax
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from templar_jax.config import InnerConfig, RunConfig
from templar_jax.sharding import Param, shardings, table

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


def make_optimizer(run: RunConfig) -> optax.GradientTransformation:
    """AdamW or Muon with decoupled weight decay by the table (https://arxiv.org/abs/1711.05101)."""
    config = run.inner
    adam = optax.scale_by_adam(config.beta1, config.beta2, config.eps)
    if config.optimizer == "adamw":
        direction = adam
    else:
        labels = {param.name: "muon" if is_muon(param) else "adam" for param in table(run)}
        direction = optax.partition({"adam": adam, "muon": _muon(config)}, labels)
    decay = {param.name: param.decay for param in table(run)}
    return optax.chain(direction, optax.add_decayed_weights(config.weight_decay, decay))


def optimizer_shardings(run: RunConfig, optimizer: optax.GradientTransformation, mesh: Mesh) -> Any:
    """Shardings of the optimiser's state: moments as their parameters, counters on every device."""
    layout = shardings(run, mesh)
    everywhere = NamedSharding(mesh, PartitionSpec())
    shapes = {param.name: jax.ShapeDtypeStruct(param.shape, "float32") for param in table(run)}

    def place(path: tuple, _leaf: jax.ShapeDtypeStruct) -> NamedSharding:
        names = [key.key for key in path if isinstance(key, jax.tree_util.DictKey)]
        return next((layout[name] for name in names if name in layout), everywhere)

    return jax.tree.map_with_path(place, jax.eval_shape(optimizer.init, shapes))
