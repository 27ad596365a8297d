"""What a miner does to come to a contribution, to hand it in, and to answer for it: the steps of a window that are
its own affair.

`HONEST` is how a miner is meant to work. The rest of the network sees only what these steps put into the bucket and
onto the chain, and has to hold against any other `Craft`: the simulator's adversaries are such (simulate/zoo).
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from templar_jax.chain.messages import SealMessage, encode_commitment
from templar_jax.compress.packed import Packed
from templar_jax.data.assign import assigned
from templar_jax.data.loader import Loader, restore_loader
from templar_jax.errors import ChainError
from templar_jax.node import audit, challenge
from templar_jax.node.engine import Params
from templar_jax.node.history import window_claims
from templar_jax.node.patience import Stopped, insist
from templar_jax.node.seals import SavedSeal
from templar_jax.node.world import Node, Partial
from templar_jax.store import contribution, parts
from templar_jax.store import seal as sealing
from templar_jax.store.seal import Claim, sealed_hash
from templar_jax.telemetry.events import Committed, Revealed, Sealed, StepDone, Warned


@dataclass(frozen=True)
class Trained:
    """What the inner steps of one window came to."""

    params: Params
    steps: int
    losses: tuple[float, ...]  # nats per token of each step


async def train(node: Node, window: int, slot: int, seed: bytes) -> Trained:
    """As many inner steps on the assigned pages as fit before the commitment is due, at most H.

    Args:
      slot: this uid's. seed: of the window's assignments.

    Raises:
      Stopped: a clean stop in the middle; it leaves `node.local.partial` behind.
    """
    params, first_step, loader = begin(node, window, own_pages(node, slot, seed), seed)
    return await take_steps(node, window, params, loader, first_step, node.run.inner.steps)


def own_pages(node: Node, slot: int, seed: bytes) -> list[int]:
    """The pages that are assigned to `slot`."""
    return assigned(seed, slot, node.run.pages_per_window, node.pages.manifest.n_pages)


def begin(node: Node, window: int, pages: list[int], seed: bytes) -> tuple[Params, int, Loader]:
    """(params to train, first step, loader): from a partial window that a clean stop left, or from theta_w."""
    inner, run_id, threads = node.run.inner, node.run.run_id, node.world.threads
    partial, node.local.partial = node.local.partial, None
    what: Any = dict(run_id=run_id, window=window, batch=inner.batch, steps=inner.steps, seed=seed, threads=threads)
    if partial is None or partial.cursor["window"] != window:
        return node.engine.inner.begin(node.state.params), 0, node.engine.make_loader(node.cache, pages, **what)
    loader = restore_loader(node.cache, pages, partial.cursor, make=node.engine.make_loader, **what)
    return partial.params, partial.cursor["step"], loader


async def take_steps(node: Node, window: int, params: Params, loader: Loader, first_step: int, last: int) -> Trained:
    """Inner steps from number `first_step` up to `last`, as many as there is time for. Gives up `params` and `loader`.

    Raises Stopped, as `train` does.
    """
    world, run, local = node.world, node.run, node.local
    due = await world.chain.eta(node.timetable(window).commit_aim)
    losses: list[float] = []
    step = first_step
    while step < last:
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
        local.first_loss = loss if step == 0 else local.first_loss
        step += 1
        local.own_steps += 1
        tokens = run.inner.batch * run.data.sequence
        global_step = node.state.outer_step * run.inner.steps + step
        world.emit(StepDone(window, step, global_step, loss, tokens / max(seconds, 1e-9), grad_norm, lr))
    loader.close()
    return Trained(params, step, tuple(losses))


async def compress(node: Node, window: int, trained: Trained) -> bytes:
    """The contribution's plaintext. Moves what it sends out of the error feedback."""
    packed = await pack(node, trained.params)
    node.local.contributed = window
    return node.engine.encode(packed)


async def pack(node: Node, params: Params) -> dict[str, Packed]:
    """theta_w - params with the error feedback, compressed. What is sent leaves the error feedback."""
    local = node.local

    def work() -> dict[str, Packed]:
        local.feedback, packed = node.engine.compressor.update(local.feedback, node.state.params, params)
        return packed

    return await node.world.clock.spend("compress", node.world.costs.compress, work)


async def seal(node: Node, window: int, trained: Trained, plaintext: bytes) -> SavedSeal:
    """Encrypts under a fresh key; sealed object and key are on disk before anybody can see either."""
    return await seal_as(node, await claim_of(node, window, trained.steps), plaintext)


async def claim_of(node: Node, window: int, steps: int) -> Claim:
    """What stands in the header of this node's contribution. The node has a slot in `window`."""
    metagraph = await node.world.chain.metagraph(node.timetable(window).seed_block)
    neuron = metagraph.by_hotkey(node.world.hotkey)
    assert neuron is not None  # the node has a slot
    return Claim(node.run.run_id, window, neuron.uid, steps, node.local.first_loss, *node.local.roots)


async def seal_as(node: Node, claim: Claim, plaintext: bytes) -> SavedSeal:
    """Seals the plaintext under that claim. The earlier seal, if the claim's window has one."""
    world = node.world

    def work() -> SavedSeal:
        key = world.entropy(32)
        return world.seals.save(claim.window, SavedSeal(key, sealing.seal(claim, plaintext, world.key, key)))

    saved = await world.clock.spend("seal", world.costs.seal, work)
    bits = 8 * len(plaintext) / sum(x.size for x in node.state.params.values())
    world.emit(Sealed(claim.window, len(saved.sealed), bits, claim.inner_steps))
    return saved


async def submit(node: Node, window: int, saved: SavedSeal) -> bool:
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


async def reveal(node: Node, window: int, saved: SavedSeal, until: float) -> None:
    """Publishes the key, which opens the object for everybody. D(w) is final; `until`: clock time of giving up."""
    publish = partial(contribution.publish_key, node.world.bucket, window, saved.key)
    if await insist(node.world, publish, until, f"window {window}: publishing the key"):
        node.world.emit(Revealed(window))


async def answer(node: Node, window: int, params: Params) -> None:
    """What a miner owes once the keys are out, what is due first first. Block K(w)+F is final; params: theta_w.

    Raises ChainError, Stopped.
    """
    await audit.answer(node, window)
    await challenge.answer(node, window, params)


@dataclass(frozen=True)
class Craft:
    """The steps, in their order. Those that are not given are an honest miner's."""

    train: Callable[[Node, int, int, bytes], Awaitable[Trained]] = train
    compress: Callable[[Node, int, Trained], Awaitable[bytes]] = compress
    seal: Callable[[Node, int, Trained, bytes], Awaitable[SavedSeal]] = seal
    submit: Callable[[Node, int, SavedSeal], Awaitable[bool]] = submit
    reveal: Callable[[Node, int, SavedSeal, float], Awaitable[None]] = reveal
    answer: Callable[[Node, int, Params], Awaitable[None]] = answer


HONEST = Craft()
