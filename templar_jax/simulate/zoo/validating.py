"""Class (c), validators: how to be paid for judging without judging, and how to move what others are judged by."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from templar_jax.chain.port import Chain
from templar_jax.config import RunConfig
from templar_jax.errors import ChainError
from templar_jax.incentive.weights import U16
from templar_jax.node import draws
from templar_jax.node.craft import Trained
from templar_jax.node.engine import Engine
from templar_jax.node.timetable import Timetable, window_of
from templar_jax.node.world import Node, World
from templar_jax.simulate.role import Role
from templar_jax.simulate.zoo.entry import Adversary, alone
from templar_jax.simulate.zoo.ports import Port
from templar_jax.simulate.zoo.sending import Contribution, added, between, changed, idle, negated
from templar_jax.train.evaluate_peer import PeerEvaluation, PeerLosses

GUESS = 50.0  # nats a sequence: what it writes down instead of measuring
TRIES = 32  # seeds that a grinder looks at


def copier() -> Role:
    """Sets the stake-weighted mean of what the other validators have set, and evaluates nobody."""

    def alter(world: World) -> World:
        async def set_weights(key: Any, weights: Mapping[int, int]) -> None:
            copied = await mean_of_others(world.chain, world.hotkey)
            if copied:
                await world.chain.set_weights(key, copied)

        costs = dataclasses.replace(world.costs, evaluate=0.0, likeness=0.0)
        return dataclasses.replace(world, costs=costs, chain=Port(world.chain, set_weights=set_weights))

    return Role(alter=alter, engine=unevaluated)


async def mean_of_others(chain: Chain, hotkey: str) -> dict[int, int]:
    """u16 by uid; empty where nobody else has set weights."""
    stands = await chain.weights()
    total: dict[int, float] = {}
    for neuron in (await chain.metagraph()).neurons:
        set_by = stands.get(neuron.uid, {}) if neuron.hotkey != hotkey else {}
        for uid, weight in set_by.items():
            total[uid] = total.get(uid, 0.0) + neuron.stake * weight / sum(set_by.values())
    largest = max(total.values(), default=0.0)
    return {uid: round(U16 * share / largest) for uid, share in sorted(total.items()) if largest > 0.0}


def unevaluated(engine: Engine) -> Engine:
    """An engine that writes down a small improvement for everybody and never runs the model."""

    def before(params: Any, tokens_BS: Any) -> np.ndarray:
        return np.full(len(tokens_BS), GUESS, np.float32)

    def peer(params: Any, contribution: Any, factors: Any, scale: float, assigned_BS: Any, unassigned_BS: Any) -> Any:
        own = np.full(len(assigned_BS), GUESS, np.float32)
        return params, PeerLosses(own, own - 2.0, np.full(len(unassigned_BS), GUESS - 1.0, np.float32))

    return dataclasses.replace(engine, peers=PeerEvaluation(before, peer))


def grinder() -> Role:
    """Draws its evaluation from the best of TRIES seeds: here one with beta 0.2, at which large updates look best.

    An honest seed leaves nothing to choose: it is a hash over a fixed block's hash and the hotkey, and the hotkey had
    to hold stake before the block was there. So the grinder takes another seed than its own.
    """
    return _hashing(lambda hotkey, honest: next((s for s in _seeds(honest) if _beta(s, hotkey) == 0.2), honest))


def picky() -> Role:
    """Records only windows whose draw it likes (beta 0.2): the one freedom that a fixed seed leaves is to be silent."""

    def choose(hotkey: str, honest: bytes) -> bytes:
        if _beta(honest, hotkey) != 0.2:
            raise ChainError("this window's draw does not please")
        return honest

    return _hashing(choose)


def _beta(block_hash: bytes, hotkey: str) -> float:
    return draws.draw_beta(draws.evaluation_seed(block_hash, hotkey))


def _seeds(honest: bytes) -> list[bytes]:
    return [bytes([honest[0] ^ number]) + honest[1:] for number in range(TRIES)]


def _hashing(choose: Callable[[str, bytes], bytes]) -> Role:
    """For this node the hash of the block that seeds its evaluation is `choose(hotkey, hash)`."""
    runs: list[RunConfig] = []

    def engine(engine: Engine) -> Engine:
        runs.append(engine.run)  # where the timetable stands
        return engine

    def alter(world: World) -> World:
        async def block_hash(block: int) -> bytes:
            honest = await world.chain.block_hash(block)
            window = runs[-1].window
            seeds = Timetable(window_of(block, window), window).evaluation_block == block
            return choose(world.hotkey, honest) if seeds else honest

        return dataclasses.replace(world, chain=Port(world.chain, block_hash=block_hash))

    return Role(alter=alter, engine=engine)


async def losing(node: Node, _: Trained) -> Contribution:
    """A small step up the hill: always accepted, always harmful."""
    start, inner = node.state.params, node.run.inner
    noise = await between(node, start, lambda: added(node, start, inner.lr))
    return changed(noise, negated)


ROWS = {
    "weight-copier": Adversary(
        "c", "evaluates nobody and sets the mean of the others' weights", alone(copier), "validator"
    ),
    "seed-grinder": Adversary("c", "evaluates on draws of its own choice", alone(grinder), "validator"),
    "picky-validator": Adversary("c", "records only windows whose draw it likes", alone(picky), "validator"),
    "loser-planting": Adversary(
        "c",
        "miners that always lose, planted to move what the others are measured by",
        alone(lambda: Role(craft=idle(losing))),
    ),
}
