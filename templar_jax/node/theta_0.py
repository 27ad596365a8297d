"""Where a run starts: theta_0 drawn from its seed, or the published model that it goes on from, read and checked."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
from jax.sharding import Mesh

from templar_jax.compress.root import make_root
from templar_jax.config import RunConfig
from templar_jax.errors import ConfigError
from templar_jax.export import read_folder
from templar_jax.huggingface.config_json import CONFIG
from templar_jax.sharding import shardings
from templar_jax.train.offload import settle
from templar_jax.train.state import init_params, ordered

Params = dict[str, jax.Array]


def make_theta_0(
    run: RunConfig, mesh: Mesh, like: dict[str, jax.ShapeDtypeStruct], folder: str
) -> Callable[[], Params]:
    """Builds `theta_0() -> parameters`, f32, lying as `like` says: the same bits on any mesh, a fresh copy each time.

    Args:
      folder: `node.start`, a Hugging Face folder. Only a run with a `start` reads it, and only when theta_0 is called.
    """
    if run.start:
        return lambda: read_start(run, mesh, like, folder)
    make = jax.jit(partial(init_params, run, mesh), out_shardings=shardings(run, mesh))  # traced once, not at each call
    return lambda: settle(ordered(run, make()), like)


def read_start(run: RunConfig, mesh: Mesh, like: dict[str, jax.ShapeDtypeStruct], folder: str) -> Params:
    """The model that the run goes on from. One parameter at a time passes the device where `like` rests on the host.

    Raises:
      ConfigError: no folder, no model in it, or another than the run pins. DataError: its files are damaged.
    """
    whose = f"run {run.name} goes on from the model with state root {run.start[:16]}"
    if not folder:
        raise ConfigError(f"{whose}, and node.start is empty: set it to the model's Hugging Face folder")
    if not (Path(folder) / CONFIG).is_file():
        raise ConfigError(
            f"{whose}, and node.start {folder} has no {CONFIG}: set it to the model's Hugging Face folder"
        )
    params = {name: settle(value, like[name]) for name, value in read_folder(Path(folder), run, mesh)}
    root = make_root(run, mesh)(params).hex()
    if root != run.start:
        raise ConfigError(
            f"{whose}, and the one in node.start {folder} has {root[:16]}: get the weights that the run was made with "
            "(same model, revision and dtype)"
        )
    return params
