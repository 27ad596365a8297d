"""What the tests of full audits share: a run that makes them, and how to look at what came of them."""

import asyncio
import dataclasses
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from node_network import RUN, engine_of, events, open_run

from templar_jax.config import RunConfig
from templar_jax.data.pages import Pages
from templar_jax.incentive import evidence as evidences
from templar_jax.incentive.evidence import Audit
from templar_jax.node.engine import Engine
from templar_jax.simulate.network import NODE, Network
from templar_jax.simulate.role import HONEST, Role
from templar_jax.telemetry.events import Registered

SEED = 3
BIG = dataclasses.replace(
    RUN,
    audit_bytes_max=2**24,
    inner=dataclasses.replace(RUN.inner, steps=8, lr=3e-3, warmup=2, decay_steps=2000),
    data=dataclasses.replace(RUN.data, slots=8),
)
SCORED = dataclasses.replace(NODE, score_sequences=8)


def opened(folder: Path) -> tuple[RunConfig, Engine, Pages]:
    run, _, pages = open_run(folder)
    run = dataclasses.replace(BIG, data=dataclasses.replace(run.data, slots=8))
    return run, engine_of(run), pages


def audits(network: Network) -> list[tuple[int, int, Audit]]:
    """(window, number of the peer, its audit)."""
    records = network.disks["validator-0"].records
    names = {entry.node for entry in network.log if entry.node.startswith("peer-")}
    numbers = {events(network, Registered, name)[0].uid: int(name.removeprefix("peer-")) for name in names}
    seen = [evidences.decode(records.load(window).evidence) for window in records.windows()]
    return [(one.window, numbers[peer.uid], peer.audit) for one in seen for peer in one.peers if peer.audit]


def two(windows: int, scorer: Role = HONEST, second: Role = HONEST) -> Callable[[Network], Coroutine[Any, Any, None]]:
    async def scenario(network: Network) -> None:
        tasks = [asyncio.ensure_future(network.node(f"peer-{n}", role=role)) for n, role in enumerate((HONEST, second))]
        await network.validator("validator-0", windows, scorer)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    return scenario
