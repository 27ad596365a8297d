"""One window of a miner, in the order of the timetable.

theta_w known -> train -> compress -> seal -> upload -> commit -> [D(w)] publish the key -> [K(w)+F] answer
for the window, beside the rest -> lead if it is this node's turn -> canonical manifest -> theta_{w+1}

What goes wrong with the own bucket, the own seal or a commitment costs this window's contribution and is said; the
node goes on.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

import numpy as np

from templar_jax.chain.wait import until_final
from templar_jax.data.assign import assigned
from templar_jax.errors import ChainError, StoreError
from templar_jax.node import audit, resume
from templar_jax.node.craft import HONEST, Craft
from templar_jax.node.engine import heldout_nats
from templar_jax.node.gather import cache_key, fetch_ciphertexts
from templar_jax.node.history import advance, canonical, watch_leaders, window_claims
from templar_jax.node.lead import lead, my_rank
from templar_jax.node.patience import Stopped, bounded
from templar_jax.node.profile import profiled
from templar_jax.node.seals import SavedSeal
from templar_jax.node.timetable import window_of
from templar_jax.node.world import Node
from templar_jax.store.seal import sealed_hash
from templar_jax.telemetry.events import HeldOut, Warned


async def run_window(node: Node, craft: Craft = HONEST) -> bool:
    """Takes part in window `node.state.window` and moves the state on to the next. True if it contributed.

    Raises:
      Stopped: asked to stop; Diverged: see history; ChainError: the chain stalls.
    """
    world, window = node.world, node.state.window
    timetable = node.timetable(window)
    with world.phase("wait", window):
        await _wait(until_final(world.chain, world.clock, timetable.seed_block, world.stop))
    try:
        with profiled(node.config, node.run.run_id, window, world.emit):
            saved = await _contribute(node, window, craft)
    except StoreError as error:  # a damaged seal, a full disk
        world.emit(Warned(f"window {window}: no contribution: {error}"))
        saved = None
    owed, params = node.answering, node.state.params
    node.answering = asyncio.ensure_future(_answer(node, window, lambda: craft.answer(node, window, params), owed))
    idle = asyncio.ensure_future(emit_heldout(node))  # in the time that is idle anyway; it must not delay the key
    try:
        contributed = await _reveal_and_lead(node, window, saved, craft)
        with world.phase("wait", window):
            verdict = await canonical(node, window)
        await idle
    finally:
        idle.cancel()
        await asyncio.gather(idle, return_exceptions=True)
    await _prefetch(node, window + 1)
    with world.phase("apply", window):
        await advance(node, verdict)
    newest = world.seals.newest()
    if newest is not None:  # it stays: it shows a restart which contribution was the last
        world.seals.prune(min(window - 1, newest))
    return contributed


async def take_over(node: Node) -> None:
    """In a process that has just started: answers beside the rest what its predecessor may still owe to an audit.

    It is due early in the next window, so it waits neither for the windows that were missed nor for training.
    """
    if not audit.allowed(node.run):
        return
    head = await node.world.chain.head()
    window = window_of(head, node.run.window)
    if head < node.timetable(window).evaluation_block:
        window -= 1
    if node.timetable(window).seed_block >= 0:
        node.answering = asyncio.ensure_future(_answer(node, window, lambda: audit.answer(node, window), None))


async def _answer(
    node: Node, window: int, answer: Callable[[], Awaitable[None]], before: "asyncio.Task[None] | None"
) -> None:
    """Answers for the window beside everything else, until that is done or due. What fails is said."""
    world = node.world
    if before is not None:
        await asyncio.gather(before, return_exceptions=True)
    try:
        await _wait(until_final(world.chain, world.clock, node.timetable(window).evaluation_block, world.stop))
        await answer()
    except Stopped:
        return
    except (ChainError, StoreError) as error:
        world.emit(Warned(f"window {window}: not answered for: {error}"))


async def finish(node: Node) -> None:
    """Waits for what is still owed for the last window."""
    if node.answering is not None:
        await node.answering


async def _wait(waiting) -> None:
    if not await waiting:
        raise Stopped


async def _contribute(node: Node, window: int, craft: Craft) -> SavedSeal | None:
    """Trains, seals, uploads and commits in time; None where there is nothing to contribute or no time for it.

    Raises StoreError (the own disk), Stopped.
    """
    world, timetable = node.world, node.timetable(window)
    saved = world.seals.load(window)  # sealed before a restart: revealed as it is, never replaced
    if saved is None:
        if await world.chain.head() >= timetable.commit_aim:
            return None
        slot, seed = await _slot(node, window)
        if slot is None:
            world.emit(Warned(f"window {window}: not registered at block {timetable.seed_block}, looking on"))
            return None
        await audit.enter(node, window)
        with world.phase("train", window):
            trained = await craft.train(node, window, slot, seed)
        if trained.steps == 0:
            node.finish_seconds *= 0.5  # measured in a bad moment, perhaps: one slow upload must not end all training
            return None
        started = world.clock.time()
        with world.phase("compress", window):
            plaintext = await craft.compress(node, window, trained)
            await audit.leave(node, window)
        with world.phase("seal", window):
            saved = await craft.seal(node, window, trained, plaintext)
    else:
        started = world.clock.time()
    if await craft.submit(node, window, saved):  # a failure shows nothing about the next window
        node.finish_seconds = max(world.clock.time() - started, 0.5 * node.finish_seconds)
    return saved


async def _slot(node: Node, window: int) -> tuple[int | None, bytes]:
    """This uid's rank among those registered at the seed block (None: not among them), and the seed."""
    chain, block = node.world.chain, node.timetable(window).seed_block
    hotkeys = [neuron.hotkey for neuron in (await chain.metagraph(block)).neurons]
    slot = hotkeys.index(node.world.hotkey) if node.world.hotkey in hotkeys else None
    return slot, await chain.block_hash(block)


async def _prefetch(node: Node, window: int) -> None:
    """Starts to read the pages of a window whose seed is known already."""
    if await node.world.chain.finalized() >= node.timetable(window).seed_block:
        slot, seed = await _slot(node, window)
        if slot is not None:
            node.cache.prefetch(assigned(seed, slot, node.run.pages_per_window, node.pages.manifest.n_pages))


async def _reveal_and_lead(node: Node, window: int, saved: SavedSeal | None, craft: Craft) -> bool:
    """After D(w) is final: the key is published, and the window closed if that is this node's duty.

    Who does not lead fetches the ciphertexts meanwhile: they will be needed, and show what the leader could see.
    Returns True if the chain holds this node's contribution.
    """
    world, timetable = node.world, node.timetable(window)
    resume.tidy(node)
    with world.phase("wait", window):
        await _wait(until_final(world.chain, world.clock, timetable.deadline, world.stop))
    manifest_due = await world.chain.eta(timetable.manifest)
    claims = await window_claims(world, node.run, window)
    own = next((claim for claim in claims if claim.hotkey == world.hotkey), None)
    contributed = saved is not None and own is not None and own.sealed_sha256 == sealed_hash(saved.sealed)
    if saved is not None and own is not None and contributed:
        node.sealed[cache_key(own, window)] = saved.sealed
        with world.phase("reveal", window):
            await craft.reveal(node, window, saved, manifest_due)
    rank = await my_rank(node, window, claims)
    if rank is not None:
        with world.phase("lead", window):
            await lead(node, window, claims, rank)
    elif (left := manifest_due - world.clock.time()) > 0:
        with world.phase("wait", window), contextlib.suppress(StoreError):
            await bounded(world, fetch_ciphertexts(node, claims, window, manifest_due), left, "fetching")
    await watch_leaders(node, window - 1)  # asks peers, who may take their time: not before the own duty is done
    return contributed


async def emit_heldout(node: Node) -> None:
    """Says the held-out bits per byte of theta_w."""
    if node.config.eval_sequences:
        bits = await node.world.clock.spend("evaluate", node.world.costs.evaluate, lambda: heldout_bits_per_byte(node))
        node.world.emit(HeldOut(node.state.window, bits))


def heldout_bits_per_byte(node: Node) -> float:
    """Bits per UTF-8 byte of the global model on the first `eval_sequences` held-out sequences."""
    size = node.run.inner.batch
    tokens_NS, n_bytes = node.pages.read_heldout(node.config.eval_sequences // size * size)
    return heldout_nats(node.engine, node.state.params, tokens_NS) / np.log(2) / n_bytes
