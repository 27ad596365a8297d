"""Where a node starts from, and what it leaves for its next start: checkpoints of its own and published ones."""

import asyncio
import contextlib
from typing import Any

import jax

from templar_jax.chain.messages import ManifestMessage, parse_commitment
from templar_jax.config import NodeConfig, RunConfig
from templar_jax.data.cache import PageCache
from templar_jax.data.pages import Pages
from templar_jax.errors import CheckpointError, StoreError
from templar_jax.node.engine import Engine, Params
from templar_jax.node.forkchoice import Candidate
from templar_jax.node.gather import reader_of
from templar_jax.node.genesis import Genesis, find_genesis
from templar_jax.node.history import window_candidates, window_claims
from templar_jax.node.judge import fetch_manifest
from templar_jax.node.world import GlobalState, Local, Node, Partial, World
from templar_jax.sharding import table
from templar_jax.store.checkpoint import Meta, Restored
from templar_jax.store.contribution import expire
from templar_jax.store.manifest import GENESIS, Manifest, manifest_hash
from templar_jax.telemetry.events import CheckpointSaved, Noted, Warned

MOMENTUM = "momentum/"  # prefix of the outer momentum's arrays in a public part
FETCH_SECONDS = 3600.0  # for a published checkpoint
MANIFEST_BLOCKS = 2.0  # for a manifest while a joiner looks back


async def start(
    world: World,
    run: RunConfig,
    config: NodeConfig,
    engine: Engine,
    pages: Pages,
    genesis: Genesis,
    trains: bool = True,
) -> Node:
    """The node with the newest state it can get hold of: its own checkpoint, a published one, or theta_0.

    The window that it stands at may be long past: `history.catch_up` is next. A node that never `trains` has no
    optimizer and no error feedback: three copies of the model less.
    """
    local = Local(engine.inner.init(), engine.compressor.init()) if trains else Local(None, {})
    restored, notes = await world.clock.spend(
        "restore",
        world.costs.checkpoint,
        lambda: world.checkpoints.restore(run.run_id, public_like(engine), _private_like(engine, local)),
    )
    for note in notes:
        world.emit(Warned(note))
    state = None
    if restored is not None:
        try:
            state = _global(engine, restored)
            local = _local(world, engine, local, restored)
            world.emit(Noted(f"starting from the own checkpoint of window {state.window}"))
        except CheckpointError as error:
            world.emit(Warned(f"{error}: passed over"))
    if state is None:
        state = await _published(world, run, engine)
    if state is None:
        state = _theta_0(engine, genesis)
        world.emit(Noted(f"starting from theta_0 at window {state.window}"))
    node = Node(world, run, config, engine, pages, PageCache(pages, world.threads), state, local)
    node.published = await _published_before(world)
    node.led = node.published is not None
    return node


async def rejoin(node: Node) -> None:
    """Leaves this node's history for the others': from a published checkpoint, or from theta_0 where there is none.

    What follows is replayed from manifests like any other history.
    """
    world, run, engine = node.world, node.run, node.engine
    state = await _published(world, run, engine)
    if state is None:
        genesis = await find_genesis(world, run)
        assert genesis is not None  # this node joined by it
        state = _theta_0(engine, genesis)
    world.emit(Noted(f"joining the others' history from window {state.window}"))
    node.state, node.foreign, node.watched = state, 0, -1
    node.local.feedback = engine.compressor.init() if node.local.feedback else {}
    node.local.partial = None
    node.local.ended = -1
    node.sealed.clear()
    node.opened.clear()
    node.outcomes.clear()
    await stop_tidying(node)
    node.published, node.unpublished = None, False  # of the history that was left


def _theta_0(engine: Engine, genesis: Genesis) -> GlobalState:
    params = engine.theta_0()
    return GlobalState(genesis.first_window, 0, GENESIS, engine.root(params), params, engine.outer.init())


def public_like(engine: Engine) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes and shardings of a checkpoint's public part: parameters, and the outer momentum where there is one."""
    momentum = {MOMENTUM + name: struct for name, struct in engine.like.items()} if engine.run.outer.momentum else {}
    return {**engine.like, **momentum}


def _private_like(engine: Engine, local: Local):
    """A function of a checkpoint's record: the private tree, with the half-trained parameters where it says so."""

    def like(extra: dict[str, Any]) -> Any:
        tree = {"opt": local.opt, "feedback": local.feedback}
        if extra.get("cursor") is not None:
            tree["partial"] = engine.inner.like
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
    own_steps, contributed = extra["own_steps"], extra["contributed"]
    local = Local(private["opt"], private["feedback"], own_steps=own_steps, contributed=contributed)
    newest = world.seals.newest()
    if newest is not None and newest > local.contributed:
        local.feedback = engine.compressor.init()
        local.contributed = newest
        world.emit(Noted(f"error feedback dropped: window {newest} was sealed after the checkpoint"))
    if extra.get("cursor") is not None:
        local.partial = Partial(extra["cursor"], private["partial"])
        local.first_loss = extra["first_loss"]
    return local


async def _manifest_messages(world: World) -> list[tuple[str, ManifestMessage]]:
    """(hotkey, message) of every final manifest commitment, in chain order."""
    commitments = await world.chain.commitments(0, await world.chain.finalized())
    parsed = [(c.hotkey, found.message) for c in commitments if (found := parse_commitment(c.fields)) is not None]
    return [(hotkey, message) for hotkey, message in parsed if isinstance(message, ManifestMessage)]


async def _published_before(world: World) -> tuple[int, bytes] | None:
    """(window, sha256) of the newest checkpoint in the own bucket, as the own newest manifest commitment names it."""
    own = [message for hotkey, message in await _manifest_messages(world) if hotkey == world.hotkey]
    newest = own[-1] if own else None
    if newest is None or newest.checkpoint_window is None or newest.checkpoint_sha256 is None:
        return None
    return newest.checkpoint_window, newest.checkpoint_sha256


async def _published(world: World, run: RunConfig, engine: Engine) -> GlobalState | None:
    """The newest checkpoint that a leader committed together with its manifest, if one can be had.

    A window speaks through the first of its manifests that is served (in a healthy network the canonical one), and a
    checkpoint counts only where walking that manifest's predecessors leads to it.
    """
    messages = await _manifest_messages(world)
    named = {message.window for _, message in messages if message.checkpoint_window is not None}
    for window in sorted(named, reverse=True):
        spoken = await _spokesman(world, run, window)
        if spoken is None or spoken[0].message.checkpoint_window is None:
            continue
        state = await _fetch(world, run, engine, spoken[0])
        if state is not None and await _leads_to(world, run, spoken[1], state):
            uid, at = spoken[0].uid, state.window
            world.emit(Noted(f"starting from the checkpoint of window {at} that uid {uid} published"))
            return state
    return None


async def _spokesman(world: World, run: RunConfig, window: int) -> tuple[Candidate, Manifest] | None:
    """The first manifest of a window, in chain order, that is served; with its candidate."""
    claims = await window_claims(world, run, window)
    locators = [claim.locator for claim in claims]
    for candidate in await window_candidates(world, run, window, await world.chain.finalized(), claims):
        with contextlib.suppress(StoreError):
            seconds = MANIFEST_BLOCKS * world.chain.block_seconds
            return candidate, await fetch_manifest(world, run, candidate, locators, seconds)
    return None


async def _leads_to(world: World, run: RunConfig, manifest: Manifest, state: GlobalState) -> bool:
    """True if walking back from `manifest` comes to one that starts from exactly this state.

    A state of a window after which nobody led yet cannot be checked, and is not believed.
    """
    by_hash = {message.manifest_sha256: message.window for _, message in await _manifest_messages(world)}
    while True:
        if manifest.predecessor == state.predecessor and manifest.window >= state.window:
            return (manifest.outer_step, manifest.root) == (state.outer_step, state.root)
        window = by_hash.get(manifest.predecessor)
        if window is None or not state.window <= window < manifest.window:
            world.emit(Warned(f"the checkpoint of window {state.window} is not part of its leader's history"))
            return False
        spoken = await _spokesman(world, run, window)
        if spoken is None or manifest_hash(spoken[1]) != manifest.predecessor:
            world.emit(Warned(f"the manifest of window {window} is not served, or contested"))
            return False
        manifest = spoken[1]


async def _fetch(world: World, run: RunConfig, engine: Engine, candidate: Candidate) -> GlobalState | None:
    message = candidate.message
    assert message.checkpoint_window is not None and message.checkpoint_sha256 is not None
    try:
        reader = reader_of(world, candidate.locator)
        restored = await world.checkpoints.fetch(
            reader, run.run_id, message.checkpoint_window, message.checkpoint_sha256, public_like(engine), FETCH_SECONDS
        )
        state = _global(engine, restored)
    except Exception as error:  # the boundary of one peer
        world.emit(Warned(f"checkpoint of window {message.checkpoint_window} of uid {candidate.uid}: {error}"))
        return None
    return state


async def save(node: Node) -> None:
    """Starts a checkpoint of everything; it becomes durable in the background."""
    world, state, local = node.world, node.state, node.local
    public = {**state.params, **{MOMENTUM + name: x for name, x in state.momentum.items()}}
    private = {"opt": local.opt, "feedback": local.feedback}
    extra: dict[str, Any] = {"own_steps": local.own_steps, "contributed": local.contributed, "cursor": None}
    if local.partial is not None:
        private["partial"] = local.partial.params
        extra |= {"cursor": local.partial.cursor, "first_loss": local.first_loss}
    meta = Meta(node.run.run_id, state.window, state.outer_step, state.predecessor, state.root)
    started = world.clock.time()
    with world.phase("checkpoint", state.window):
        await world.clock.spend(
            "checkpoint", world.costs.checkpoint, lambda: world.checkpoints.save(meta, public, private, extra)
        )
    node.unpublished = True
    world.emit(CheckpointSaved(state.window, world.clock.time() - started))


def tidy(node: Node) -> None:
    """Starts, beside the window's own work, to publish the newest checkpoint (a leader) and to remove what is old.

    The next manifest that this node commits names the checkpoint.
    """
    if node.unpublished and node.tidying is None:
        node.unpublished = False
        node.tidying = asyncio.ensure_future(_tidy(node))


async def _tidy(node: Node) -> None:
    world, window = node.world, node.state.window
    older = node.published
    try:
        if node.led:
            await world.clock.spend("checkpoint", world.costs.checkpoint, world.checkpoints.wait)
            node.published = await world.checkpoints.publish(world.bucket)
        oldest = min(window, node.published[0] if node.published else window) - node.config.keep_windows
        await expire(world.bucket, oldest, older[0] if older else None)
    except (CheckpointError, StoreError) as error:
        node.unpublished = True  # tried again in the next window
        world.emit(Warned(f"publishing a checkpoint, or removing old objects: {error}"))
    finally:
        node.tidying = None


async def stop_tidying(node: Node) -> None:
    """Ends what `tidy` started; a checkpoint that is half published is found by nobody."""
    if node.tidying is not None:
        task, node.tidying = node.tidying, None
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def finish(node: Node) -> None:
    """Waits until the last checkpoint is durable. Raises CheckpointError."""
    await stop_tidying(node)
    await node.world.clock.spend("checkpoint", 0.0, node.world.checkpoints.wait)
    node.cache.close()
