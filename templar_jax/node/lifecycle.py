"""A node from its start to its stop."""

from templar_jax.config import NodeConfig, RunConfig
from templar_jax.data.pages import Pages
from templar_jax.node import resume
from templar_jax.node.engine import Engine
from templar_jax.node.genesis import join_or_start
from templar_jax.node.history import Diverged, Stopped, catch_up
from templar_jax.node.miner import emit_heldout, run_window
from templar_jax.node.world import Node, World
from templar_jax.telemetry.events import NodeStopped, Registered, Warned


async def run_node(
    world: World, run: RunConfig, config: NodeConfig, engine: Engine, pages: Pages, windows: int | None = None
) -> Node | None:
    """Registers, joins (or starts) the run, catches up, and takes part in `windows` windows (None: until stopped).

    Whatever ends it, the state is checkpointed first where there is one. Returns the node as it ended; None if it
    was stopped before it had a state.

    Raises:
      TemplarError: whatever cannot be mended here, with the next step.
    """
    try:
        world.emit(Registered(await world.chain.register(world.key)))
        genesis = await join_or_start(world, run, engine.root(engine.theta_0()))
        node = await resume.start(world, run, config, engine, pages, genesis)
    except Stopped:
        return None
    reason = "done"
    try:
        await _run(node, windows)
        await emit_heldout(node)
    except Stopped:
        reason = "asked to"
    await resume.save(node)
    await resume.finish(node)
    world.emit(NodeStopped(node.state.window, node.state.root.hex(), reason))
    return node


async def _run(node: Node, windows: int | None) -> None:
    done = 0
    while windows is None or done < windows:
        try:
            await catch_up(node)
            done += await run_window(node)
        except Diverged as fork:
            node.world.emit(Warned(f"this node's history was left by the others: {fork}; starting from a checkpoint"))
            await resume.rejoin(node, fork.candidate)
            continue
        if node.state.window % node.config.checkpoint_every == 0:
            await resume.save(node)
