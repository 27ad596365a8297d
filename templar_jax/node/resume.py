"""Where a node starts from, and what it leaves for its next start: checkpoints of its own and published ones."""

from typing import Any

import jax
import numpy as np

from templar_jax.chain.messages import ManifestMessage, parse_commitment
from templar_jax.config import NodeConfig, RunConfig
from templar_jax.data.cache import PageCache
from templar_jax.data.pages import Pages
from templar_jax.errors import CheckpointError, RefusedError, StoreError
from templar_jax.node import forkchoice
from templar_jax.node.engine import Engine, Params
from templar_jax.node.forkchoice import Candidate
from templar_jax.node.genesis import Genesis
from templar_jax.node.history import ranked_leaders, window_claims
from templar_jax.node.timetable import Timetable
from templar_jax.node.world import GlobalState, Local, Node, Partial, World
from templar_jax.sharding import shardings, table
from templar_jax.store.checkpoint import Meta, Restored
from templar_jax.store.contribution import expire
from templar_jax.store.manifest import GENESIS
from templar_jax.telemetry.events import CheckpointSaved, Noted, Warned

MOMENTUM = "momentum/"  # prefix of the outer momentum's arrays in a public part
FETCH_SECONDS = 3600.0  # for a published checkpoint


async def start(
    world: World, run: RunConfig, config: NodeConfig, engine: Engine, pages: Pages, genesis: Genesis
) -> Node:
    """The node with the newest state it can get hold of: its own checkpoint, a published one, or theta_0.

    The window that it stands at may be long past: `history.catch_up` is next.
    """
    local = Local(opt=engine.inner.init(engine.theta_0()), feedback=engine.compressor.init())
    restored, notes = await world.clock.spend(
        "restore",
        world.costs.checkpoint,
        lambda: world.checkpoints.restore(run.run_id, public_like(engine), _private_like(engine, local)),
    )
    for note in notes:
        world.emit(Warned(note))
    state = None
    if restored is not None:
        state = _global(engine, restored)
        local = _local(world, engine, local, restored)
        world.emit(Noted(f"starting from the own checkpoint of window {state.window}"))
    else:
        state = await _published(world, run, engine)
    if state is None:
        params = engine.theta_0()
        root = engine.root(params)
        state = GlobalState(genesis.first_window, 0, GENESIS, root, params, engine.outer.init())
        world.emit(Noted(f"starting from theta_0 at window {state.window}"))
    return Node(world, run, config, engine, pages, PageCache(pages, world.threads), state, local)


async def rejoin(node: Node, candidate: Candidate) -> None:
    """Leaves this node's history for the one that `candidate` continues: its leader's checkpoint, or any published.

    Raises:
      CheckpointError: nobody serves one.
    """
    state = None
    if candidate.message.checkpoint_window is not None:
        state = await _fetch(node.world, node.run, node.engine, candidate)
    state = state or await _published(node.world, node.run, node.engine)
    if state is None:
        raise CheckpointError(
            f"no checkpoint of the history that uid {candidate.uid} continues is served: start again later, "
            "or remove this node's checkpoints to begin from theta_0"
        )
    node.state = state
    node.local.feedback = node.engine.compressor.init()


def public_like(engine: Engine) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes and shardings of a checkpoint's public part: parameters, and the outer momentum where there is one."""
    at = shardings(engine.run, engine.mesh)
    like = {p.name: jax.ShapeDtypeStruct(p.shape, np.float32, sharding=at[p.name]) for p in table(engine.run)}
    momentum = {MOMENTUM + name: struct for name, struct in like.items()} if engine.run.outer.momentum else {}
    return {**like, **momentum}


def _private_like(engine: Engine, local: Local):
    """A function of a checkpoint's record: the private tree, with the half-trained parameters where it says so."""

    def like(extra: dict[str, Any]) -> Any:
        tree = {"opt": local.opt, "feedback": local.feedback}
        if extra.get("cursor") is not None:
            tree["partial"] = {p.name: public_like(engine)[p.name] for p in table(engine.run)}
        return tree

    return like


def _global(engine: Engine, restored: Restored) -> GlobalState:
    """The global state of a checkpoint. CheckpointError if its parameters do not have the root that it names."""
    meta, public = restored.meta, restored.public
    params: Params = {p.name: public[p.name] for p in table(engine.run)}
    momentum = {name.removeprefix(MOMENTUM): x for name, x in public.items() if name.startswith(MOMENTUM)}
    root = engine.root(params)
    if root != meta.root:
        raise CheckpointError(f"the checkpoint of window {meta.window} does not have the root that it names")
    return GlobalState(meta.window, meta.outer_step, meta.predecessor, root, params, momentum)


def _local(world: World, engine: Engine, fresh: Local, restored: Restored) -> Local:
    """The miner's own state. Error feedback older than its last contribution is dropped: part of it is sent."""
    if restored.private is None:
        return fresh
    private, extra = restored.private, restored.extra
    local = Local(private["opt"], private["feedback"], extra["own_steps"], extra["contributed"])
    newest = world.seals.newest()
    if newest is not None and newest > local.contributed:
        local.feedback = engine.compressor.init()
        local.contributed = newest
        world.emit(Noted(f"error feedback dropped: window {newest} was sealed after the checkpoint"))
    if extra.get("cursor") is not None:
        local.partial = Partial(extra["cursor"], private["partial"])
    return local


async def _published(world: World, run: RunConfig, engine: Engine) -> GlobalState | None:
    """The newest checkpoint that a leader committed together with its manifest, if one can be had."""
    commitments = await world.chain.commitments(0, await world.chain.finalized())
    windows: dict[int, None] = {}
    for commitment in reversed(commitments):
        parsed = parse_commitment(commitment.fields)
        message = parsed.message if parsed is not None else None
        if isinstance(message, ManifestMessage) and message.checkpoint_window is not None:
            windows[message.window] = None
    for window in sorted(windows, reverse=True):
        timetable = Timetable(window, run.window)
        claims = await window_claims(world, run, window)
        ranked = await ranked_leaders(world, run, window, claims)
        for candidate in forkchoice.candidates(commitments, ranked, timetable):
            if candidate.message.checkpoint_window is not None:
                state = await _fetch(world, run, engine, candidate)
                if state is not None:
                    return state
    return None


async def _fetch(world: World, run: RunConfig, engine: Engine, candidate: Candidate) -> GlobalState | None:
    message = candidate.message
    assert message.checkpoint_window is not None and message.checkpoint_sha256 is not None
    try:
        reader = world.open_reader(candidate.locator)
        restored = await world.checkpoints.fetch(
            reader, run.run_id, message.checkpoint_window, message.checkpoint_sha256, public_like(engine), FETCH_SECONDS
        )
        state = _global(engine, restored)
    except (StoreError, RefusedError, CheckpointError) as error:
        world.emit(Warned(f"checkpoint of window {message.checkpoint_window} of uid {candidate.uid}: {error}"))
        return None
    world.emit(Noted(f"starting from the checkpoint of window {state.window} that uid {candidate.uid} published"))
    return state


async def save(node: Node) -> None:
    """Starts a checkpoint of everything; it becomes durable in the background."""
    world, state, local = node.world, node.state, node.local
    public = {**state.params, **{MOMENTUM + name: x for name, x in state.momentum.items()}}
    private = {"opt": local.opt, "feedback": local.feedback}
    extra: dict[str, Any] = {"own_steps": local.own_steps, "contributed": local.contributed, "cursor": None}
    if local.partial is not None:
        private["partial"] = local.partial.params
        extra["cursor"] = local.partial.cursor
    meta = Meta(node.run.run_id, state.window, state.outer_step, state.predecessor, state.root)
    started = world.clock.time()
    with world.phase("checkpoint", state.window):
        await world.clock.spend(
            "checkpoint", world.costs.checkpoint, lambda: world.checkpoints.save(meta, public, private, extra)
        )
    node.unpublished = True
    world.emit(CheckpointSaved(state.window, world.clock.time() - started))


async def publish(node: Node) -> None:
    """Uploads the public part of the newest checkpoint if this node leads, and throws away what is too old.

    Called when the miner is idle; the next manifest that this node commits names the checkpoint.
    """
    world = node.world
    if not (node.led and node.unpublished):
        return
    node.unpublished = False
    await world.clock.spend("checkpoint", world.costs.checkpoint, world.checkpoints.wait)
    older = node.published
    node.published = await world.checkpoints.publish(world.bucket)
    oldest = node.published[0] - node.config.keep_windows
    await expire(world.bucket, oldest, older[0] if older else None)


async def finish(node: Node) -> None:
    """Waits until the last checkpoint is durable."""
    await node.world.clock.spend("checkpoint", 0.0, node.world.checkpoints.wait)
