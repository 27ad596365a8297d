"""Opens everything that a node of this machine stands on: devices, pages, engine, chain, bucket, checkpoints."""

import asyncio
import dataclasses
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import jax

from templar_jax.chain.keys import load_or_create
from templar_jax.chain.local import LocalChain
from templar_jax.clock import WallClock
from templar_jax.config import NodeConfig, RunConfig
from templar_jax.config_check import check_data, fit_mesh
from templar_jax.data.pages import Pages, open_pages
from templar_jax.data.prepare import Show, prepare, standard_library
from templar_jax.errors import ConfigError, DataError
from templar_jax.node import engine as engines
from templar_jax.node.engine import Engine
from templar_jax.node.home import Home
from templar_jax.node.seals import DiskSeals
from templar_jax.node.snapshots import open_snapshots
from templar_jax.node.world import World
from templar_jax.sharding import make_mesh, table
from templar_jax.store.bucket import Bucket
from templar_jax.store.checkpoint_orbax import OrbaxCheckpoints
from templar_jax.store.disk import make_folder
from templar_jax.store.open import file_locator, open_bucket, open_reader
from templar_jax.telemetry.events import Event, NodeStarted
from templar_jax.train.compiles import enable_compile_cache

PROBE = "probe"  # written and deleted at the start
WINDOWS_PER_TEMPO = 4  # of a local chain: two commitments a window fit a hotkey's space in a tempo


@dataclass(frozen=True)
class Machine:
    """What is open before the network is: the run with its data pinned, pages, engine."""

    run: RunConfig
    config: NodeConfig
    pages: Pages
    engine: Engine


def set_up_devices(config: NodeConfig) -> None:
    """As many CPU devices as cores (or as configured), before JAX looks at them."""
    count = config.mesh.cpu_devices or len(os.sched_getaffinity(0))
    jax.config.update("jax_num_cpu_devices", count)
    enable_compile_cache(Path(config.home).absolute() / "jax")


def pin_data(
    run: RunConfig, config: NodeConfig, note: Callable[[str], None], show: Show | None = None
) -> tuple[RunConfig, Pages]:
    """The pages, and the run with their manifest hash in it. Prepares the default corpus on first use.

    Args:
      note: is told what happens, in lines. show: the progress of preparing.

    Raises:
      DataError: no pages at `config.data`, or others than the run pins. ConfigError: too few pages for the run.
    """
    folder = Path(config.data) if config.data else _default_pages(run, config, note, show)
    pages = open_pages(folder)
    found, wanted = pages.manifest_hash, run.data.manifest
    if wanted and wanted != found:
        raise DataError(f"{folder} has manifest {found[:16]}, the run pins {wanted[:16]}: point node.data to its pages")
    for name, here, there in (
        ("sequence", pages.manifest.sequence, run.data.sequence),
        ("page", pages.manifest.page, run.data.page),
    ):
        if here != there:
            raise ConfigError(
                f"{folder} was prepared with {name} {here}, the run has {there}: "
                f"set data.{name} to {here}, or prepare others"
            )
    if pages.manifest.vocab > run.model.vocab:
        raise ConfigError(
            f"the tokenizer has {pages.manifest.vocab} tokens, model.vocab is {run.model.vocab}: raise it"
        )
    check_data(run, pages.manifest.n_pages)
    return dataclasses.replace(run, data=dataclasses.replace(run.data, manifest=found)), pages


def _default_pages(run: RunConfig, config: NodeConfig, note: Callable[[str], None], show: Show | None) -> Path:
    folder = Path(config.home).absolute() / "data" / f"stdlib-s{run.data.sequence}-p{run.data.page}"
    if run.data.tokenizer != "bytes":
        raise ConfigError(f'tokenizer "{run.data.tokenizer}" needs pages: prepare them and set node.data')
    if not (folder / "manifest.json").exists():  # once made it stays: a newer Python's library would be another run
        note(f"no data named: preparing the Python standard library's source in {folder} (once)")
        data = run.data
        prepare(standard_library(), folder, tokenizer="bytes", sequence=data.sequence, page=data.page, progress=show)
    return folder


def build_engine(run: RunConfig, config: NodeConfig) -> Engine:
    """The engine on this process's devices, or on those of all hosts. Raises ConfigError."""
    devices = jax.devices() if config.hosts.count > 1 else jax.local_devices()
    mesh = make_mesh(fit_mesh(run, config, len(devices)), devices)
    if config.hosts.count > 1 and mesh.size < len(devices):
        raise ConfigError(
            f"{config.hosts.count} hosts have {len(devices)} devices, over which {run.inner.batch} sequences spread to "
            f"{mesh.size} only: set node.mesh so that it takes all, or raise inner.batch or compute.micro_batch"
        )
    return engines.build(run, config.compute, mesh, config.start)


def open_machine(
    run: RunConfig,
    config: NodeConfig,
    pages: Pages,
    note: Callable[[str], None],
    trains: bool = True,
    spread: Callable[[Engine], Engine] = lambda engine: engine,
) -> Machine:
    """Builds the engine and compiles everything that a window of a miner (`trains`) or of a validator runs.

    spread: makes the engine run on all hosts.
    """
    engine = spread(build_engine(run, config))
    started, devices = time.monotonic(), engine.mesh.devices.ravel()
    note(f"compiling for {devices.size} {devices[0].platform} devices, attention {engine.inner.placement.attention}")
    score = 0 if trains else config.score_sequences
    if run.start:
        note(f"theta_0: the model in {config.start}, state root {run.start[:16]}")
    engines.warm(engine, config.eval_sequences, lambda part: note(f"compiling: {part}"), score)
    note(f"compiled in {time.monotonic() - started:.0f} s")
    return Machine(run, config, pages, engine)


def open_checkpoints(config: NodeConfig, node: Path) -> OrbaxCheckpoints:
    """The checkpoints in a node's folder."""
    hosts = config.hosts
    return OrbaxCheckpoints(node / "checkpoints", config.checkpoint_keep, index=hosts.index, count=hosts.count)


def open_chain(run: RunConfig, config: NodeConfig, home: Home) -> LocalChain:
    """The run's local chain; the first node to open it creates it, and block 0 is then. ChainError, ConfigError."""
    if config.network.chain != "local":
        raise ConfigError(f'network.chain "{config.network.chain}": only "local" exists so far')
    return LocalChain.create(
        home.network / "chain.db",
        f"local-{run.run_id[:8]}",
        config.network.block_seconds,
        config.network.finality,
        WINDOWS_PER_TEMPO * run.window.blocks,
        WallClock(),
    )


def position(chain: LocalChain) -> Callable[[], float]:
    """The chain's position now in fractions of blocks, for a display: arithmetic, no access to the chain."""
    genesis = asyncio.run(chain.eta(0))
    return lambda: (time.time() - genesis) / chain.block_seconds


def open_world(
    config: NodeConfig, home: Home, chain: LocalChain, emit: Callable[[Event], None], stop: asyncio.Event
) -> World:
    """The ports of a node on the local network. Raises ChainError, ConfigError, StoreError with the next step."""
    for folder in ("bucket", "checkpoints", "seals"):
        make_folder(home.node / folder)
    return World(
        chain=chain,
        clock=WallClock(),
        key=load_or_create(home.wallet),
        bucket=open_bucket(config.network.bucket or file_locator(home.node / "bucket")),
        open_reader=lambda locator: open_reader(locator, local=True),
        checkpoints=open_checkpoints(config, home.node),
        seals=DiskSeals(home.node / "seals"),
        snapshots=open_snapshots(home.node / "snapshots"),
        emit=emit,
        stop=stop,
    )


async def probe(bucket: Bucket) -> None:
    """Writes to the own bucket once: better refused (StoreError) now than after the first window's training."""
    await bucket.put(PROBE, b"templar_jax")
    await bucket.delete([PROBE])


def started_event(machine: Machine, name: str, hotkey: str, restarts: int) -> NodeStarted:
    """Who runs what on what."""
    run, window = machine.run, machine.run.window
    devices, hosts = machine.engine.mesh.devices.ravel(), machine.config.hosts.count
    return NodeStarted(
        run=run.name,
        run_id=run.run_id,
        hotkey=hotkey,
        parameters=sum(math.prod(param.shape) for param in table(run)),
        devices=f"{devices.size} {devices[0].platform}" + (f" on {hosts} hosts" if hosts > 1 else ""),
        tokens_per_step=run.inner.batch * run.data.sequence,
        steps=run.inner.steps,
        window_blocks=window.blocks,
        marks=(("D", window.deadline), ("K", window.keys), ("M", window.manifest)),
        block_seconds=machine.config.network.block_seconds,
        restarts=restarts,
        name=name,
    )
