"""A node from its start to its stop."""

import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial

from templar_jax.chain.wait import until_final
from templar_jax.config import NodeConfig, RunConfig
from templar_jax.data.pages import Pages
from templar_jax.errors import TemplarError
from templar_jax.node import audit, resume
from templar_jax.node.craft import HONEST, Craft
from templar_jax.node.engine import Engine
from templar_jax.node.genesis import join_or_start
from templar_jax.node.history import Diverged, catch_up
from templar_jax.node.miner import emit_heldout, finish, run_window, take_over
from templar_jax.node.patience import Stopped
from templar_jax.node.timetable import window_of
from templar_jax.node.world import Node, World
from templar_jax.telemetry.events import NodeStopped, Registered, Warned


async def _nothing(*_: object) -> None:
    """Miners leave nothing running beside their windows."""


@dataclass(frozen=True)
class Duty:
    """What a node does in each window: a miner's from `miner`, a validator's from `validator.validator`."""

    trains: bool
    run_window: Callable[[Node], Awaitable[bool]]  # True: the window counts
    finish: Callable[[Node], Awaitable[None]] = _nothing  # what still runs beside the windows, to its end
    abort: Callable[[], Awaitable[None]] = _nothing  # the same, at once


def miner(craft: Craft = HONEST) -> Duty:
    """What a miner does, by its craft."""
    return Duty(trains=True, run_window=partial(run_window, craft=craft), finish=finish)


MINER = miner()


async def run_node(
    world: World,
    run: RunConfig,
    config: NodeConfig,
    engine: Engine,
    pages: Pages,
    windows: int | None = None,
    duty: Duty = MINER,
) -> Node | None:
    """Registers, joins (or starts) the run, catches up, and takes part in `windows` windows (None: until stopped).

    Whatever ends it, the state is checkpointed first where there is one. Returns the node as it ended; None if it
    was stopped before it had a state.

    Raises:
      TemplarError: whatever cannot be mended here, with the next step.
    """
    if problem := audit.why_not(run):
        world.emit(Warned(problem))
    try:
        world.emit(Registered(await world.chain.register(world.key)))
        root_0 = bytes.fromhex(run.start) or engine.root(engine.theta_0())  # a model's root is checked where it is read
        genesis = await join_or_start(world, run, root_0)
        node = await resume.start(world, run, config, engine, pages, genesis, duty.trains)
    except Stopped:
        return None
    reason = "done"
    try:
        await _run(node, windows, duty)
        await duty.finish(node)
        await emit_heldout(node)
    except Stopped:
        reason = "asked to"
    except TemplarError as error:
        world.emit(Warned(f"ending: {error}"))
        with contextlib.suppress(TemplarError):  # the first error is the one to tell
            await _end(node, "failed")
        raise
    finally:  # also where the process's end comes as a cancellation
        for beside in (node.tidying, node.answering):
            if beside is not None:
                beside.cancel()
        await duty.abort()
    await _end(node, reason)
    return node


async def _end(node: Node, reason: str) -> None:
    await resume.save(node)
    await resume.finish(node)
    node.world.emit(NodeStopped(node.state.window, node.state.root.hex(), reason))


async def _run(node: Node, windows: int | None, duty: Duty) -> None:
    """`windows` counts those in which the chain took this node's contribution; a validator's, those that it saw."""
    world, done = node.world, 0
    if duty.trains:
        await take_over(node)
    rejoined = -1  # the window of the chain in which this node last changed its history
    while windows is None or done < windows:
        try:
            await catch_up(node)
            done += await duty.run_window(node)
        except Diverged as fork:
            present = window_of(await world.chain.head(), node.run.window)
            if present == rejoined:  # in vain: nothing better is served at present
                world.emit(Warned(f"{fork}; trying again in window {present + 1}"))
                if not await until_final(world.chain, world.clock, node.timetable(present + 1).start, world.stop):
                    raise Stopped from fork
                present += 1
            else:
                world.emit(Warned(f"this node's history was left by the others: {fork}"))
            rejoined = present
            await resume.rejoin(node)
            continue
        if node.state.window % node.config.checkpoint_every == 0:
            await resume.save(node)
