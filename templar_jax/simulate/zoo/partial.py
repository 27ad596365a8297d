"""Class (b): nodes on their own that do a part of the work and claim all of it."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from templar_jax.node.craft import Trained, begin, own_pages, take_steps
from templar_jax.node.engine import Engine
from templar_jax.node.world import Node
from templar_jax.simulate.role import Role
from templar_jax.simulate.zoo.entry import Adversary, alone
from templar_jax.simulate.zoo.partial_arrays import median_norms, with_norms
from templar_jax.simulate.zoo.past import Past
from templar_jax.simulate.zoo.sending import Contribution, own, sending

MEMORY_RATE = 4.0  # times the run's learning rate: see docs/decisions.md


def share_of(node: Node, share: float) -> int:
    """That share of the H inner steps, at least one."""
    return max(1, round(share * node.run.inner.steps))


async def some_steps(node: Node, window: int, slot: int, seed: bytes, steps: int) -> Trained:
    """The first `steps` inner steps of an honest miner; the header claims H."""
    params, first, loader = begin(node, window, own_pages(node, slot, seed), seed)
    return claiming_all(node, await take_steps(node, window, params, loader, first, steps))


def claiming_all(node: Node, trained: Trained) -> Trained:
    """Whoever had time for nothing claims nothing and sends nothing."""
    return dataclasses.replace(trained, steps=node.run.inner.steps) if trained.losses else trained


def like_the_others(node: Node, past: Past, contribution: Contribution) -> Contribution:
    """With the median norms of the contributions applied last, which everybody can read; unchanged in the first."""
    if past.last is None or not past.last.contributions:
        return contribution
    return with_norms(node.run, contribution, median_norms(node.run, past.last.contributions.values()))


def lazy(share: float, rescaled: bool = False) -> Role:
    """`share` of the steps in each window."""
    past = Past()

    async def train(node: Node, window: int, slot: int, seed: bytes) -> Trained:
        return await some_steps(node, window, slot, seed, share_of(node, share))

    async def make(node: Node, trained: Trained) -> Contribution:
        sent = await own(node, trained)
        return like_the_others(node, past, sent) if rescaled else sent

    return Role(craft=dataclasses.replace(sending(make), train=train), engine=past.engine)


def memoriser(share: float = 0.2, rate: float = MEMORY_RATE) -> Role:
    """Moves as far as it can towards its own sequences: no momentum and no error feedback of earlier windows' data."""
    past = Past()

    async def train(node: Node, window: int, slot: int, seed: bytes) -> Trained:
        node.local.opt = without_momentum(node.local.opt)
        return await some_steps(node, window, slot, seed, share_of(node, share))

    async def make(node: Node, trained: Trained) -> Contribution:
        node.local.feedback = node.engine.compressor.init()
        return like_the_others(node, past, await own(node, trained))

    craft = dataclasses.replace(sending(make), train=train)
    return Role(craft=craft, engine=lambda engine: past.engine(at_rate(engine, rate)))


def without_momentum(opt: Any) -> Any:
    """The optimizer's state with its first moments at zero; second moments and counts stay."""

    def forget(path: tuple, leaf: jax.Array) -> jax.Array:
        names = [key.name for key in path if isinstance(key, jax.tree_util.GetAttrKey)]
        return jnp.zeros_like(leaf) if "mu" in names else leaf

    return jax.tree.map_with_path(forget, opt)


def at_rate(engine: Engine, rate: float) -> Engine:
    """The same engine, whose inner step goes `rate` times as far."""

    def step(params: Any, opt: Any, batch: Any, index: int) -> Any:
        before = jax.tree.map(lambda x: x.copy(), params)
        after, opt, metrics = engine.inner.step(params, opt, batch, index)
        return jax.tree.map(lambda a, b: b + rate * (a - b), after, before), opt, metrics

    return dataclasses.replace(engine, inner=dataclasses.replace(engine.inner, step=step))


ROWS = {
    "lazy50": Adversary("b", "does half of the steps and claims all", alone(lambda: lazy(0.5))),
    "lazy25": Adversary("b", "does a quarter of the steps and claims all", alone(lambda: lazy(0.25))),
    "lazy20": Adversary("b", "does a fifth of the steps and claims all", alone(lambda: lazy(0.2))),
    "lazy50-rescaled": Adversary(
        "b", "half of the steps, with the median norm of the last contributions", alone(lambda: lazy(0.5, True))
    ),
    "lazy25-rescaled": Adversary(
        "b", "a quarter of the steps, with the median norm of the last contributions", alone(lambda: lazy(0.25, True))
    ),
    "lazy20-rescaled": Adversary(
        "b", "a fifth of the steps, with the median norm of the last contributions", alone(lambda: lazy(0.2, True))
    ),
    "memoriser": Adversary(
        "b", "a fifth of the steps at a high rate, without anything of earlier windows", alone(memoriser)
    ),
}
