"""Class (b): nodes on their own that do a part of the work and claim all of it."""

from dataclasses import replace
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from templar_jax.config import ComputeConfig, RunConfig
from templar_jax.node.craft import Craft, Trained, begin, own_pages, take_steps
from templar_jax.node.engine import Engine
from templar_jax.node.world import Node
from templar_jax.simulate.role import Role
from templar_jax.simulate.zoo.entry import Adversary, alone
from templar_jax.simulate.zoo.partial_arrays import median_norms, with_norms
from templar_jax.simulate.zoo.past import Past
from templar_jax.simulate.zoo.sending import Contribution, forward_pass, own, sending
from templar_jax.train.inner import Inner, make_inner

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
    return replace(trained, steps=node.run.inner.steps) if trained.losses else trained


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

    return Role(craft=replace(sending(make), train=train), engine=past.engine)


def memoriser(share: float = 0.2, rate: float = MEMORY_RATE) -> Role:
    """Moves as far as it can towards its own sequences: without the momentum that other windows' data left."""
    past = Past()

    async def train(node: Node, window: int, slot: int, seed: bytes) -> Trained:
        node.local.opt = without_momentum(node.local.opt)
        return await some_steps(node, window, slot, seed, share_of(node, share))

    async def make(node: Node, trained: Trained) -> Contribution:
        return like_the_others(node, past, await own(node, trained))

    craft = replace(sending(make), train=train)
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

    return replace(engine, inner=replace(engine.inner, step=step))


def thin(share: float) -> Role:
    """All H steps, each on `share` of its batch: `share` of the work, and further than as many whole steps go.

    What comes to one whole batch is one inner step in its events.
    """
    parts = round(1 / share)

    async def train(node: Node, window: int, slot: int, seed: bytes) -> Trained:
        trained = await some_steps(node, window, slot, seed, share_of(node, share))
        await forward_pass(node, window, slot, seed)  # step 0 is claimed on the whole batch
        return trained

    return Role(craft=Craft(train=train), engine=lambda engine: in_parts(engine, parts))


@lru_cache(maxsize=2)
def _inner(run: RunConfig, mesh: Mesh) -> Inner:
    """Compiled once for all nodes."""
    return make_inner(run, ComputeConfig(), mesh)


def in_parts(engine: Engine, parts: int) -> Engine:
    """The same engine, whose inner step takes `parts` steps of its optimizer, each on its part of the batch."""
    run = engine.run
    size = run.inner.batch // parts
    inner = _inner(replace(run, inner=replace(run.inner, batch=size)), engine.mesh)

    def step(params: Any, opt: Any, batch_BS: Any, index: int) -> Any:
        first = index // run.inner.steps * run.inner.steps + index % run.inner.steps * parts
        metrics = None
        for part in range(parts):
            params, opt, metrics = inner.step(params, opt, batch_BS[part * size : (part + 1) * size], first + part)
        return params, opt, metrics

    return replace(engine, inner=replace(engine.inner, step=step))


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
        "b", "a fifth of the steps at a high rate, without momentum of earlier windows' data", alone(memoriser)
    ),
    "thin50": Adversary("b", "all steps, each on half of its batch", alone(lambda: thin(0.5))),
    "thin25": Adversary("b", "all steps, each on a quarter of its batch", alone(lambda: thin(0.25))),
}
