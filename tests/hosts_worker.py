"""One of the processes of test_hosts: `hosts_worker.py PORT COUNT INDEX FOLDER`. Process 0 writes what came out."""

import dataclasses
import os
import pickle
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from kills import ROOT
from node_network import RUN

from templar_jax.config import ComputeConfig, HostsConfig, MeshConfig, NodeConfig, OuterConfig, RunConfig
from templar_jax.config_check import OFFLOADS
from templar_jax.data.cache import PageCache
from templar_jax.data.pages import Pages, open_pages
from templar_jax.hosts import join
from templar_jax.hosts.channel import Caller, Hello, Listening
from templar_jax.hosts.follow import follow
from templar_jax.hosts.open import engine_for
from templar_jax.hosts.spread import Share, functions, own_rows
from templar_jax.node import engine as engines
from templar_jax.node.engine import Engine, Params, heldout_nats
from templar_jax.node.open import open_checkpoints
from templar_jax.sharding import make_mesh
from templar_jax.store.checkpoint import Meta
from templar_jax.store.checkpoint_orbax import OrbaxCheckpoints
from templar_jax.store.manifest import GENESIS
from templar_jax.train.compiles import enable_compile_cache

DEVICES = 4  # of all processes together


def run_of() -> RunConfig:
    """As small as parameters of which four devices have a quarter each can be."""
    model = dataclasses.replace(RUN.model, vocab=512, dim=256, heads=4, kv_heads=4, ffn_dim=256)
    return dataclasses.replace(RUN, model=model, outer=OuterConfig(momentum=0.875, nesterov=True))


def build(run: RunConfig, offload: tuple[str, ...] = ()) -> Engine:
    compute = ComputeConfig(attention="xla", offload=offload)
    return engines.build(run, compute, make_mesh(MeshConfig(fsdp=4), jax.devices()[:DEVICES]))


@dataclass(frozen=True)
class Outcome:
    """Of a window: what is compared by its bytes or closely, and what the inner steps left."""

    found: dict[str, Any]
    params: Params
    private: dict[str, Any]


def window(engine: Engine, pages: Pages) -> Outcome:
    """With every function that a miner's mesh runs. What is found before "losses" does not depend on inner steps."""
    run, found = engine.run, {}
    theta = engine.theta_0()
    found["root of theta_0"] = engine.root(theta)
    found["salted root"] = engine.salted_root(theta, 7)
    feedback, packed = engine.compressor.update(engine.compressor.init(), theta, engine.compressor.init())
    plaintext = engine.encode(packed)
    feedback, again = engine.compressor.update(feedback, theta, theta)
    found["contributions"] = plaintext, engine.encode(again)
    moved, momentum = engine.outer.apply(theta, engine.outer.init(), {4: packed, 9: again})
    moved, momentum = engine.outer.apply(moved, momentum, {2: again})
    found["root after two outer steps"] = engine.root(moved)
    found["root of the momentum"] = engine.root(momentum)
    found["root of the error feedback"] = engine.root(feedback)
    found["nats"] = heldout_nats(engine, theta, pages.read_heldout(4)[0])

    what: Any = dict(run_id=run.run_id, window=3, batch=run.inner.batch, steps=run.inner.steps, seed=b"seed")
    loader = engine.make_loader(PageCache(pages), [5, 9], **what)
    params, opt, losses = engine.inner.begin(theta), engine.inner.init(), []
    for step in range(run.inner.steps):
        params, opt, metrics = engine.inner.step(params, opt, next(loader), step)
        losses.append(float(metrics.loss))
    found["cursor"] = loader.state()
    loader.close()
    found["losses"] = losses
    found["root trained"] = engine.root(params)
    return Outcome(found, params, {"opt": opt, "feedback": feedback})


def main(port: int, count: int, index: int, folder: Path) -> int:
    hosts = HostsConfig(count, index, f"127.0.0.1:{port}", heartbeat_seconds=20)
    node = NodeConfig(home=str(folder / "home"), hosts=hosts, mesh=MeshConfig(fsdp=4, cpu_devices=DEVICES // count))
    set_up_devices(node.mesh.cpu_devices)
    channel = join.listen(node) if index else join.lead(node)
    engine, pages = build(run_of(), OFFLOADS), open_pages(folder / "pages")
    checkpoints = open_checkpoints(node, folder)
    hello = Hello(engine.run.run_id, "test", "none", jax.__version__)
    if isinstance(channel, Listening):
        channel.receive()
        channel.reply(hello)
        return follow(channel, {**functions(Share(engine, pages, index, count)), **checkpoints.parts}, engine.mesh)
    assert isinstance(channel, Caller)
    channel.meet(hello)
    spread = engine_for(channel, node, engine, pages, checkpoints)
    done = window(spread, pages)
    done.found["rows"] = own_rows(engine)
    save_and_restore(done, spread, checkpoints)
    (folder / "found.pickle").write_bytes(pickle.dumps(done.found))
    channel.end(0)
    return 0


def save_and_restore(done: Outcome, engine: Engine, checkpoints: OrbaxCheckpoints) -> None:
    """Leaves a checkpoint behind, and what came back of it."""
    meta = Meta(engine.run.run_id, 7, 2, GENESIS, done.found["root trained"])
    checkpoints.save(meta, done.params, done.private, {"own_steps": 2})
    checkpoints.wait()
    restored, notes = checkpoints.restore(meta.run_id, engine.like, done.private)
    assert restored is not None and restored.meta == meta and not notes
    done.found["restored"] = engine.root(restored.public), engine.root(restored.private["feedback"])


def set_up_devices(count: int) -> None:
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", count)
    enable_compile_cache(ROOT / ".pytest_cache" / "jax-processes")


if __name__ == "__main__":
    code = main(*map(int, sys.argv[1:4]), Path(sys.argv[4]))  # type: ignore[misc]
    sys.stdout.flush()
    os._exit(code)  # as a node's process ends
