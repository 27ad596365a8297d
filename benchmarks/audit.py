"""What a full audit finds of honest miners on other hardware, and of adversaries: every miner, in every window.

    python scripts/bench.py audit --windows 12 --json FILE

One simulation of honest miners and one miner of each adversary, in which everybody keeps what an audit asks for. Each
window of each is then run again by engines that round otherwise: a smaller micro-batch, eight devices, bf16. What
bf16 gives says what an honest miner looks like that trains in bf16 beside a validator that does not. Limits:
incentive/config.py.
"""

import argparse
import asyncio
import dataclasses
import statistics
from typing import Any, NamedTuple

import jax

from templar_jax.compress.codec import decode
from templar_jax.config import MeshConfig, NodeConfig, RunConfig
from templar_jax.data.assign import assigned
from templar_jax.data.loader import make_loader
from templar_jax.data.pages import Pages
from templar_jax.node import engine as engines
from templar_jax.node import private, rerun
from templar_jax.node.craft import Trained
from templar_jax.node.engine import Engine, Params
from templar_jax.node.open import pin_data, set_up_devices
from templar_jax.node.rerun import Likeness
from templar_jax.node.seals import SavedSeal
from templar_jax.node.world import Node
from templar_jax.sharding import make_mesh
from templar_jax.simulate.loop import run_virtual
from templar_jax.simulate.network import open_network
from templar_jax.simulate.role import Role
from templar_jax.simulate.zoo.table import ROLES
from templar_jax.train.offload import copy

CONFIG = "configs/nano.toml"
HONEST = 3
DEVICES = 8
ADVERSARIES = (
    "lazy50", "lazy50-rescaled", "lazy20", "thin50", "thin25", "memoriser", "other-data", "feedback-drain",
    "norm-x100", "nan", "sign-flip", "noise",
)  # fmt: skip


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--windows", type=int, default=12, help="(default 12)")
    parser.add_argument("--seed", type=int, default=1, help="(default 1)")
    parser.add_argument("--only", nargs="+", default=ADVERSARIES, metavar="NAME", help="adversaries")


class Kept(NamedTuple):
    """One window of one miner: all that an audit needs."""

    role: str
    window: int
    outer_step: int
    slot: int
    seed: bytes  # of the assignments
    steps: int  # claimed
    plaintext: bytes
    theta: Params
    before: bytes
    after: bytes


def keeping(name: str, role: Role, kept: list[Kept]) -> Role:
    """The same role, which keeps every window's audit in `kept`."""
    given: dict[int, tuple[int, bytes]] = {}

    async def train(node: Node, window: int, slot: int, seed: bytes) -> Trained:
        given[window] = slot, seed
        return await role.craft.train(node, window, slot, seed)

    async def seal(node: Node, window: int, trained: Trained, plaintext: bytes) -> SavedSeal:
        disk, state = node.world.snapshots, node.state
        before, after = disk.load(max(w for w in disk.windows() if w < window)), disk.load(window)
        theta = copy(state.params, offloaded=False)
        what = name, window, state.outer_step, *given.pop(window), trained.steps, plaintext, theta, before, after
        kept.append(Kept(*what))
        return await role.craft.seal(node, window, trained, plaintext)

    return dataclasses.replace(role, craft=dataclasses.replace(role.craft, train=train, seal=seal))


def again(engine: Engine, pages: Pages, one: Kept) -> Likeness:
    """The window's steps and compression on `engine`, compared with what the miner kept."""
    run = engine.run
    theta = {name: jax.device_put(x, engine.like[name].sharding) for name, x in one.theta.items()}
    opt, feedback = private.from_bytes(engine, one.before)
    ids = assigned(one.seed, one.slot, run.pages_per_window, pages.manifest.n_pages)
    what: Any = dict(run_id=run.run_id, window=one.window, batch=run.inner.batch, seed=one.seed, threads=0)
    loader, params = make_loader(pages, ids, steps=run.inner.steps, **what), engine.inner.begin(theta)
    for step in range(one.steps):
        params, opt, _ = engine.inner.step(params, opt, next(loader), one.outer_step * run.inner.steps + step)
    loader.close()
    feedback, sent = engine.compressor.update(feedback, theta, params)
    ended = private.views(run, one.after)
    return rerun.compare(run, decode(run, one.plaintext), ended, sent, private.leaves(run, opt, feedback))


def others(run: RunConfig, config: NodeConfig) -> dict[str, Engine]:
    """Validators' engines that round otherwise than the miners'."""
    one, many = (make_mesh(MeshConfig(fsdp=n), jax.devices()[:n]) for n in (1, DEVICES))
    compute = config.compute
    return {
        "same": engines.build(run, compute, one),
        "micro-batch": engines.build(run, dataclasses.replace(compute, micro_batch=run.inner.batch // 4), one),
        "eight devices": engines.build(run, compute, many),
        "bf16": engines.build(run, dataclasses.replace(compute, dtype="bfloat16"), one),
    }


def played(run: RunConfig, engine: Engine, pages: Pages, args: argparse.Namespace) -> list[Kept]:
    """What HONEST honest miners and one of each adversary kept."""
    kept: list[Kept] = []
    roles = [("honest", Role())] * HONEST + [(name, ROLES[name].roles(1)[0]) for name in args.only]

    async def network() -> None:
        net = open_network(run, engine, pages, args.seed)
        jobs = [
            net.node(f"peer-{n:02d}", args.windows, keeping(name, role, kept)) for n, (name, role) in enumerate(roles)
        ]
        tasks = [asyncio.ensure_future(job) for job in jobs]
        await asyncio.gather(*tasks[:HONEST])
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    run_virtual(network, horizon=1e6)
    return kept


def run(args: argparse.Namespace) -> dict[str, Any]:
    set_up_devices(dataclasses.replace(args.node, mesh=dataclasses.replace(args.node.mesh, cpu_devices=DEVICES)))
    pinned, pages = pin_data(args.run, args.node, lambda text: print(text, flush=True))
    audited = dataclasses.replace(pinned, audit_bytes_max=2 * private.state_bytes(pinned))
    validators = others(audited, args.node)
    kept = played(audited, validators["same"], pages, args)
    figures: dict[str, Any] = {"state_bytes": private.state_bytes(pinned)}
    for role in ("honest", *args.only):
        rows = [one for one in kept if one.role == role]
        for name, engine in validators.items() if role == "honest" else (("same", validators["same"]),):
            found = [again(engine, pages, one) for one in rows]
            for part in Likeness._fields:
                values = [getattr(one, part) for one in found]
                spread = min(values), statistics.median(values), max(values)
                figures[f"{role}, {name}, {part}"] = " ".join(f"{value:.5f}" for value in spread)
        print(role, flush=True)
    return figures
