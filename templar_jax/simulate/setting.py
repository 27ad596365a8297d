"""What a simulation needs of a configuration before it starts, checked with one clear line each."""

import dataclasses
import difflib
from collections.abc import Iterable

import jax

from templar_jax.config import MeshConfig, NodeConfig, RunConfig
from templar_jax.config_timetable import timetable_problems
from templar_jax.errors import ConfigError
from templar_jax.node import engine as engines
from templar_jax.node.engine import Engine
from templar_jax.node.open import set_up_devices
from templar_jax.sharding import make_mesh
from templar_jax.simulate.network import FINALITY
from templar_jax.simulate.zoo.table import ROLES


def check_simulated(run: RunConfig, nodes: int) -> None:
    """ConfigError where the timetable is too short for a simulated chain's finality, or the data has too few slots."""
    problem = next(iter(timetable_problems(run.window, FINALITY)), None)
    if problem is not None:
        raise ConfigError(problem)
    if nodes > run.data.slots:
        raise ConfigError(f"{nodes} nodes, but data.slots is {run.data.slots}: raise it, or lower --peers")


def attacks(words: Iterable[str], peers: int, validators: int = 0) -> dict[str, int]:
    """How many nodes take which role, from words NAME:COUNT. ConfigError for an unknown one, or too many."""
    found: dict[str, int] = {}
    names = ("honest", *ROLES)
    for word in words:
        name, _, count = word.partition(":")
        if name not in names:
            near = difflib.get_close_matches(name, names, 1)
            hint = f"did you mean {near[0]}?" if near else "--attack list shows all"
            raise ConfigError(f'--attack "{name}": {hint}')
        if count and not (count.isascii() and count.isdigit()):
            raise ConfigError(f'--attack "{word}": write NAME:COUNT, e.g. {name}:2')
        found[name] = found.get(name, 0) + int(count or 1)
    for acts, there, option in (("miner", peers, "peers"), ("validator", validators, "validators")):
        wanted = sum(n for name, n in found.items() if (ROLES[name].acts if name in ROLES else "miner") == acts)
        if wanted > there:
            raise ConfigError(f"{wanted} roles for {there} {option}: raise --{option}")
    return found


def machine(run: RunConfig, config: NodeConfig) -> Engine:
    """One engine for all nodes, on one device: a simulation's models are small, and its nodes take turns."""
    alone = dataclasses.replace(config.mesh, cpu_devices=1)
    set_up_devices(dataclasses.replace(config, mesh=alone))
    return engines.build(run, config.compute, make_mesh(MeshConfig(fsdp=1), jax.devices()[:1]), config.start)
