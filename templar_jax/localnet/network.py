"""A new local network on disk: its folder, the settings that all its nodes share, and its chain."""

import asyncio
import dataclasses
import itertools
import os
import time
from dataclasses import dataclass
from pathlib import Path

from templar_jax.chain import ledger
from templar_jax.chain.keys import load_or_create
from templar_jax.chain.ledger import Limits, Rules
from templar_jax.chain.local import LocalChain
from templar_jax.clock import WallClock
from templar_jax.config import NodeConfig, RunConfig
from templar_jax.config_write import to_toml
from templar_jax.errors import ConfigError, StoreError
from templar_jax.store.disk import explain, write_file
from templar_jax.store.open import file_locator

SHARED = ("data", "jax")  # folders of node.home that every network of this machine shares
PROCESS_BYTES = 700 << 20  # resident set of a node of the smallest run: Python, JAX, and what they load
WINDOWS_BETWEEN = 2  # two times that weights are set, and two epochs: a short run shall show several


@dataclass(frozen=True)
class Network:
    """What stands before the first node starts."""

    run: RunConfig  # with its data pinned
    node: NodeConfig  # of every node, but for the hotkey
    home: Path
    miners: int
    validators: int
    s3: bool = False  # buckets on an S3 server of its own; else folders

    @property
    def names(self) -> list[tuple[str, str]]:
        """(name, role) of every node, in the order of their uids."""
        counts = (("miner", self.miners), ("validator", self.validators))
        return [(f"{role}-{number}", role) for role, count in counts for number in range(count)]

    @property
    def settings(self) -> Path:
        """The --config of every node; anybody on this machine joins with it."""
        return self.home / "run.toml"

    @property
    def folder(self) -> Path:
        return self.home / self.run.run_id[:8]

    @property
    def chain(self) -> Path:
        return self.folder / "chain.db"

    @property
    def logs(self) -> Path:
        return self.home / "logs"


def check_sizes(run: RunConfig, node: NodeConfig, miners: int, validators: int) -> None:
    """ConfigError for a network that this machine or this run cannot hold, before anything is made."""
    nodes = miners + validators
    if nodes > run.data.slots:
        raise ConfigError(f"{nodes} nodes, but data.slots is {run.data.slots}: raise it, or lower --miners")
    from templar_jax.plan.memory import plan_memory, plan_mesh

    memory = plan_memory(run, node, plan_mesh(run, node, 1), None)
    needed = nodes * (memory.peak(memory.worst) + PROCESS_BYTES)
    free = _free_bytes()
    if free is not None and needed > free:
        raise ConfigError(
            f"{nodes} processes need about {needed / 2**30:.1f} GiB of memory, {free / 2**30:.1f} are free: "
            "lower --miners or --validators, or take a smaller --config"
        )


def _free_bytes() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
    return int(found[0]) * 1024 if found else None


def new_home(root: Path) -> Path:
    """ROOT/net-N, the first that does not exist, with the folders that all networks share linked into it.

    Raises:
      ConfigError: the path is too long for a bucket's locator on the chain; StoreError: it cannot be made.
    """
    for number in itertools.count(1):
        home = root / f"net-{number}"
        try:
            file_locator(home / ("0" * 8) / "validator-00" / "bucket")
            home.mkdir()
        except FileExistsError:
            continue
        except OSError as error:
            raise StoreError(explain(error, home)) from error
        for name in SHARED:
            (root / name).mkdir(exist_ok=True)
            (home / name).symlink_to(root / name, target_is_directory=True)
        return home
    raise AssertionError("numbers do not end")


def node_settings(node: NodeConfig, home: Path, run: RunConfig, devices: int) -> NodeConfig:
    """What every node of the network gets: one home, few devices each, weights as often as the chain will allow."""
    mesh = node.mesh if node.mesh.cpu_devices else dataclasses.replace(node.mesh, cpu_devices=devices)
    every = WINDOWS_BETWEEN * run.window.blocks
    return dataclasses.replace(node, home=str(home), hotkey="", mesh=mesh, weights_blocks=every)


def write_settings(network: Network) -> None:
    """Raises StoreError."""
    write_file(network.settings, [to_toml(network.run, network.node).encode()])


def make_chain(network: Network, ready: float) -> LocalChain:
    """The chain, whose block 0 is `ready` seconds from now: nodes that start meanwhile all begin with block 1.

    Raises:
      ChainError, StoreError.
    """
    every = WINDOWS_BETWEEN * network.run.window.blocks
    config = network.node.network
    rules = Rules(config.block_seconds, config.finality, every, Limits(weights_interval=every))
    name = f"local-{network.run.run_id[:8]}"
    return LocalChain(ledger.create(network.chain, name, rules, time.time() + ready, None), WallClock())


async def register(network: Network, chain: LocalChain) -> None:
    """Gives the nodes their uids in the order of `names`, whoever starts first: they find themselves registered."""
    keys = [load_or_create(network.home / "wallet" / name) for name, _ in network.names]
    await asyncio.gather(*(chain.register(key) for key in keys))


def devices_each(nodes: int) -> int:
    """CPU devices of one node: its share of the cores, at least one."""
    return max(1, cores() // nodes)


def cores() -> int:
    return len(os.sched_getaffinity(0))
