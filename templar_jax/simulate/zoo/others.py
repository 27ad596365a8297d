"""What an adversary finds out of the others' work in the window that runs."""

import asyncio
import contextlib
import hashlib
from collections.abc import Mapping
from functools import partial

import numpy as np

from templar_jax.compress.tiles import tilings
from templar_jax.errors import ChainError, RefusedError, StoreError
from templar_jax.node import draws
from templar_jax.node.engine import heldout_nats
from templar_jax.node.forkchoice import Claim
from templar_jax.node.gather import fetch_key, fetch_sealed, one_peer, open_contribution, persist, reader_of
from templar_jax.node.history import window_claims
from templar_jax.node.world import Node
from templar_jax.simulate.zoo.sending import Contribution
from templar_jax.store import contribution
from templar_jax.store.seal import read_header


def half_of(actor: str) -> bool:
    """True for about half of all names, always the same ones."""
    return hashlib.sha256(actor.encode()).digest()[0] % 2 == 0


async def first_claim(node: Node, window: int) -> Claim | None:
    """The first commitment of somebody else in this window, waited for while there is time to commit after it."""
    world, deadline = node.world, node.timetable(window).deadline
    while await world.chain.head() + 1 < deadline:
        claims = [claim for claim in await window_claims(world, node.run, window) if claim.hotkey != world.hotkey]
        if claims:
            return min(claims, key=lambda claim: (claim.block, claim.index))
        await world.clock.sleep(world.chain.block_seconds / 2)
    return None


async def opened_by(node: Node, window: int, until: float) -> dict[int, Contribution]:
    """By uid: what the others sent and had opened by clock time `until`. D(w) is over."""
    world = node.world

    async def one(claim: Claim) -> Contribution:
        sealed = await persist(world, until, lambda seconds: fetch_sealed(node, claim, (), window, seconds))
        key = await fetch_key(node, claim, window, read_header(sealed), until)
        return (await open_contribution(node, claim, window, sealed, key)).packed

    claims = [claim for claim in await window_claims(world, node.run, window) if claim.hotkey != world.hotkey]
    found = await asyncio.gather(*(one_peer(world, claim.uid, one(claim)) for claim in claims))
    return {c.uid: one for c, one in zip(claims, found, strict=True) if not isinstance(one, RefusedError)}


async def last_moment(node: Node, window: int) -> float:
    """Clock time until which a key may be published: a leader asks for it more and more often, and then closes."""
    world = node.world
    cutoff = await world.chain.eta(node.timetable(window).manifest - 1)
    return cutoff + (node.run.window.leader_slot / 2 - 0.1) * world.chain.block_seconds


async def evaluation_draw(node: Node, window: int) -> np.ndarray | None:
    """The unassigned sequences that the first validator will evaluate on: int32 [n, S]; None while nobody knows."""
    chain, timetable = node.world.chain, node.timetable(window)
    try:
        block_hash = await chain.block_hash(timetable.evaluation_block)
        slots = len((await chain.metagraph(timetable.seed_block)).neurons)
        assignment = await chain.block_hash(timetable.seed_block)
    except ChainError:
        return None
    validators = [neuron.hotkey for neuron in (await chain.metagraph()).neurons if neuron.permit]
    if not validators:
        return None
    seed = draws.evaluation_seed(block_hash, validators[0])
    return draws.draw_unassigned(node.run, node.pages, seed, assignment, slots, node.config.score_sequences)


async def gains(
    node: Node, contributions: Mapping[int, Contribution], tokens_NS: np.ndarray | None
) -> dict[int, float]:
    """By the same keys: how many nats each contribution alone takes off theta_w's loss on the sequences.

    Takes the time of as many evaluations. Where no sequences are given: `batch` held-out ones.
    """
    if tokens_NS is None:
        tokens_NS, _ = node.pages.read_heldout(node.run.inner.batch)
    ones = {name: np.ones(tiling.param.units) for name, tiling in tilings(node.run).items()}
    world, params = node.world, node.state.params

    def gain(one: Contribution) -> float:
        moved = node.engine.outer.trial(params, one, ones, 1.0)
        return heldout_nats(node.engine, params, tokens_NS) - heldout_nats(node.engine, moved, tokens_NS)

    found = {}
    for name, one in contributions.items():
        found[name] = await world.clock.spend("evaluate", world.costs.evaluate, partial(gain, one))
    return found


async def key_of(node: Node, claim: Claim, window: int, until: float) -> bytes | None:
    """The key that the claim's owner publishes, a moment after it is there; None if it never is."""
    world = node.world
    while world.clock.time() < until:
        with contextlib.suppress(RefusedError, StoreError):
            return await contribution.fetch_key(reader_of(world, claim.locator), window, world.chain.block_seconds)
        await world.clock.sleep(world.chain.block_seconds / 500)
    return None
