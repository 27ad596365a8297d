"""One window of a miner, in the order of the timetable.

theta_w known -> train -> compress -> seal -> upload -> commit -> [D(w)] publish the key -> lead if it is
this node's turn -> canonical manifest -> theta_{w+1}

What goes wrong with the own bucket, the own seal or a commitment costs this window's contribution and is said; the
node goes on.
"""

import asyncio
import contextlib
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from templar_jax.chain.messages import SealMessage, encode_commitment
from templar_jax.chain.wait import until_final
from templar_jax.compress.codec import encode
from templar_jax.data.assign import assigned
from templar_jax.data.loader import Loader, make_loader, restore_loader
from templar_jax.errors import ChainError, StoreError
from templar_jax.node import resume
from templar_jax.node.engine import Params, copy, heldout_nats
from templar_jax.node.gather import cache_key, fetch_ciphertexts
from templar_jax.node.history import advance, canonical, watch_leaders, window_claims
from templar_jax.node.lead import lead, my_rank
from templar_jax.node.patience import Stopped, bounded, insist
from templar_jax.node.seals import SavedSeal
from templar_jax.node.world import Node, Partial
from templar_jax.store import contribution, parts
from templar_jax.store.seal import Claim, seal, sealed_hash
from templar_jax.telemetry.events import Committed, HeldOut, Revealed, Sealed, StepDone, Warned


@dataclass(frozen=True)
class Trained:
    """What the inner steps of one window came to."""

    params: Params
    steps: int
    losses: tuple[float, ...]  # nats per token of each step


async def run_window(node: Node) -> bool:
    """Takes part in window `node.state.window` and moves the state on to the next. True if it contributed.

    Raises:
      Stopped: asked to stop; Diverged: see history; ChainError: the chain stalls.
    """
    world, window = node.world, node.state.window
    timetable = node.timetable(window)
    with world.phase("wait", window):
        await _wait(until_final(world.chain, world.clock, timetable.seed_block, world.stop))
    try:
        saved = await _contribute(node, window)
    except StoreError as error:  # a damaged seal, a full disk
        world.emit(Warned(f"window {window}: no contribution: {error}"))
        saved = None
    idle = asyncio.ensure_future(emit_heldout(node))  # in the time that is idle anyway; it must not delay the key
    try:
        contributed = await _reveal_and_lead(node, window, saved)
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


async def _wait(waiting) -> None:
    if not await waiting:
        raise Stopped


async def _contribute(node: Node, window: int) -> SavedSeal | None:
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
        with world.phase("train", window):
            trained = await _train(node, window, slot, seed)
        if trained.steps == 0:
            node.finish_seconds *= 0.5  # measured in a bad moment, perhaps: one slow upload must not end all training
            return None
        started = world.clock.time()
        with world.phase("compress", window):
            plaintext = await _compress(node, window, trained)
        with world.phase("seal", window):
            saved = await _seal(node, window, trained, plaintext)
    else:
        started = world.clock.time()
    if await _upload_and_commit(node, window, saved):  # a failure shows nothing about the next window
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


async def _train(node: Node, window: int, slot: int, seed: bytes) -> Trained:
    """As many inner steps as fit before the commitment is due, at most H.

    A clean stop in the middle leaves `node.local.partial` behind and raises Stopped.
    """
    world, run, local = node.world, node.run, node.local
    pages = assigned(seed, slot, run.pages_per_window, node.pages.manifest.n_pages)
    params, first_step, loader = _begin(node, window, pages, seed)
    due = await world.chain.eta(node.timetable(window).commit_aim)
    losses: list[float] = []
    step = first_step
    while step < run.inner.steps:
        started = world.clock.time()
        if started + node.step_seconds + node.finish_seconds > due:
            break
        if world.stop.is_set():
            local.partial = Partial(loader.state(), params)
            loader.close()
            raise Stopped

        def work(params=params, step=step):
            batch = next(loader)
            global_step = node.state.outer_step * run.inner.steps + step
            out = node.engine.inner.step(params, local.opt, batch, global_step)
            return *out, float(out[2].loss), float(out[2].grad_norm), float(out[2].lr)

        params, local.opt, _, loss, grad_norm, lr = await world.clock.spend("train", world.costs.step, work)
        seconds = world.clock.time() - started
        node.step_seconds = seconds if node.step_seconds == 0 else 0.7 * node.step_seconds + 0.3 * seconds
        losses.append(loss)
        step += 1
        local.own_steps += 1
        tokens = run.inner.batch * run.data.sequence
        global_step = node.state.outer_step * run.inner.steps + step
        world.emit(StepDone(window, step, global_step, loss, tokens / max(seconds, 1e-9), grad_norm, lr))
    loader.close()
    return Trained(params, step, tuple(losses))


def _begin(node: Node, window: int, pages: list[int], seed: bytes) -> tuple[Params, int, Loader]:
    """(params to train, first step, loader): from a partial window that a clean stop left, or from theta_w."""
    inner, run_id, threads = node.run.inner, node.run.run_id, node.world.threads
    partial, node.local.partial = node.local.partial, None
    what: Any = dict(run_id=run_id, window=window, batch=inner.batch, steps=inner.steps, seed=seed, threads=threads)
    if partial is None or partial.cursor["window"] != window:
        return copy(node.state.params), 0, make_loader(node.cache, pages, **what)
    return partial.params, partial.cursor["step"], restore_loader(node.cache, pages, partial.cursor, **what)


async def _compress(node: Node, window: int, trained: Trained) -> bytes:
    """The contribution's plaintext. Moves what it sends out of the error feedback."""
    local = node.local

    def work() -> bytes:
        local.feedback, packed = node.engine.compressor.update(local.feedback, node.state.params, trained.params)
        return encode(node.run, packed)

    plaintext = await node.world.clock.spend("compress", node.world.costs.compress, work)
    local.contributed = window
    return plaintext


async def _seal(node: Node, window: int, trained: Trained, plaintext: bytes) -> SavedSeal:
    """Encrypts under a fresh key; sealed object and key are on disk before anybody can see either."""
    world = node.world
    neuron = (await world.chain.metagraph(node.timetable(window).seed_block)).by_hotkey(world.hotkey)
    assert neuron is not None  # _slot found it
    claim = Claim(node.run.run_id, window, neuron.uid, trained.steps)

    def work() -> SavedSeal:
        key = world.entropy(32)
        return world.seals.save(window, SavedSeal(key, seal(claim, plaintext, world.key, key)))

    saved = await world.clock.spend("seal", world.costs.seal, work)
    bits = 8 * len(plaintext) / sum(x.size for x in node.state.params.values())
    world.emit(Sealed(window, len(saved.sealed), bits, trained.steps))
    return saved


async def _upload_and_commit(node: Node, window: int, saved: SavedSeal) -> bool:
    """Puts the hash on chain at or before D(w), with the object in the bucket before. False (and said) if it fails."""
    world, timetable = node.world, node.timetable(window)
    digest = sealed_hash(saved.sealed)
    with world.phase("commit", window):
        if await _claimed(node, window, digest):
            return True  # committed before a restart, and uploaded before that
        last = await world.chain.eta(timetable.deadline)  # a commitment stands in the block after the head
        upload = partial(parts.upload, world.bucket, contribution.sealed_key(window), saved.sealed)
        what = f"window {window}: the upload"
        if world.clock.time() < last and not await insist(world, upload, last, what, small=False):
            return False
        head = await world.chain.head()
        if head + 1 > timetable.deadline:
            world.emit(Warned(f"window {window}: sealed at block {head}, too late for block {timetable.deadline}"))
            return False
        try:
            message = SealMessage(window, digest)
            await world.chain.commit(world.key, encode_commitment(world.bucket.locator, message))
        except ChainError as error:
            world.emit(Warned(f"window {window}: the chain refused the commitment: {error}"))
            return False
        world.emit(Committed(window, await world.chain.head()))
        return True


async def _claimed(node: Node, window: int, digest: bytes) -> bool:
    """True if the chain holds that hash as this node's claim of `window`."""
    claims = await window_claims(node.world, node.run, window)
    return any(claim.hotkey == node.world.hotkey and claim.sealed_sha256 == digest for claim in claims)


async def _reveal_and_lead(node: Node, window: int, saved: SavedSeal | None) -> bool:
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
            publish = partial(contribution.publish_key, world.bucket, window, saved.key)
            if await insist(world, publish, manifest_due, f"window {window}: publishing the key"):
                world.emit(Revealed(window))
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
