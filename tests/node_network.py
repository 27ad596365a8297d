"""A run small enough to simulate whole networks of, with its engine built once a process."""

import asyncio
import dataclasses
from collections.abc import Callable, Coroutine
from functools import lru_cache
from pathlib import Path
from typing import Any

import jax
from corpus import small_pages

from templar_jax.chain.messages import parse_commitment
from templar_jax.chain.port import Commitment
from templar_jax.config import ComputeConfig, DataConfig, InnerConfig, MeshConfig, ModelConfig, RunConfig, WindowConfig
from templar_jax.data.pages import Pages
from templar_jax.node import engine as engines
from templar_jax.node.engine import Engine
from templar_jax.sharding import make_mesh
from templar_jax.simulate.loop import run_virtual
from templar_jax.simulate.network import BLOCK_SECONDS, Entry, Network, open_network, roots
from templar_jax.simulate.role import Role
from templar_jax.telemetry.events import ManifestApplied

HORIZON = 20_000.0  # virtual seconds: a node that waits for ever fails its test

RUN = RunConfig(
    name="mini",
    model=ModelConfig(vocab=320, dim=64, layers=1, heads=1, kv_heads=1, head_dim=64, ffn_dim=64),
    window=WindowConfig(
        blocks=16,
        seed_lookback=2,
        deadline=8,
        commit_lead=1,
        keys=10,
        evaluate=1,
        manifest=11,
        leader_slot=1,
        leaders=3,
    ),
    inner=InnerConfig(steps=2, batch=4),
    data=DataConfig(sequence=32, page=4, slots=12),
    max_contributors=8,
)


@lru_cache(maxsize=1)
def engine_of(run: RunConfig) -> Engine:
    return engines.build(run, ComputeConfig(attention="xla"), make_mesh(MeshConfig(fsdp=1), jax.devices()[:1]))


def open_run(folder: Path) -> tuple[RunConfig, Engine, Pages]:
    pages = small_pages(folder, count=200)
    run = dataclasses.replace(RUN, data=dataclasses.replace(RUN.data, manifest=pages.manifest_hash))
    return run, engine_of(run), pages


def play(
    opened: tuple[RunConfig, Engine, Pages],
    scenario: Callable[[Network], Coroutine[Any, Any, Any]],
    seed: int = 1,
    horizon: float = HORIZON,
    **settings,
) -> Network:
    """Runs `scenario(network)` on virtual time and returns the network as it was at the end."""

    async def main() -> Network:
        network = open_network(*opened, seed, **settings)
        await scenario(network)
        return network

    return run_virtual(main, horizon=horizon)


async def together(network: Network, count: int, windows: int, roles: dict[int, Role] | None = None) -> None:
    """`count` nodes through `windows` windows each; those with a role for as long as one of the others runs."""
    chosen = roles or {}
    tasks = [asyncio.ensure_future(network.node(f"peer-{n:02d}", windows, chosen.get(n, Role()))) for n in range(count)]
    honest = [task for number, task in enumerate(tasks) if number not in chosen]
    await asyncio.gather(*(honest or tasks))
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def until(network: Network, wanted: Callable[[Entry], bool], blocks: int = 200) -> Entry:
    """The first log entry that is `wanted`, as soon as it is there."""
    for _ in range(blocks * 48):
        for entry in network.log:
            if wanted(entry):
                return entry
        await asyncio.sleep(BLOCK_SECONDS / 48)
    raise AssertionError("no such event")


def events(network: Network, kind: type, node: str | None = None) -> list[Any]:
    return [e.event for e in network.log if isinstance(e.event, kind) and node in (None, e.node)]


def applied(network: Network, node: str = "peer-00") -> dict[int, ManifestApplied]:
    """What a node says of each window."""
    return {event.window: event for event in events(network, ManifestApplied, node)}


def assert_one_history(network: Network) -> None:
    found = roots(network.log)
    assert found and all(len(each) == 1 for each in found.values()), f"windows with several roots: {found}"


def commitments(network: Network, kind: type) -> list[tuple[str, Any]]:
    """(hotkey, message) of everything of that kind that stands on the chain."""
    rows = run_virtual_read(network)
    parsed = [(row.hotkey, found.message) for row in rows if (found := parse_commitment(row.fields)) is not None]
    return [(hotkey, message) for hotkey, message in parsed if isinstance(message, kind)]


def run_virtual_read(network: Network) -> tuple[Commitment, ...]:
    """All commitments, read after the simulation: nothing in this call waits."""
    call = network.chain.commitments(0, network.chain._height)
    try:
        call.send(None)
    except StopIteration as done:
        return done.value
    raise AssertionError("reading the chain waited for something")
