"""What is compiled is compiled before the first window: a node that waits for a compiler misses deadlines."""

import dataclasses

import jax
from node_network import RUN, open_run

from templar_jax.config import ComputeConfig, MeshConfig
from templar_jax.config_check import OFFLOADS
from templar_jax.node import engine as engines
from templar_jax.sharding import make_mesh
from templar_jax.simulate.network import simulate
from templar_jax.train.compiles import counting
from templar_jax.train.offload import on_host


def test_no_window_compiles_and_offloading_changes_no_root(tmp_path):
    _, _, pages = open_run(tmp_path)
    assert played(pages, ()) == played(pages, OFFLOADS)


def played(pages, offload) -> list[bytes]:
    """The roots of three windows of two peers."""
    data = dataclasses.replace(RUN.data, manifest=pages.manifest_hash)
    run = dataclasses.replace(RUN, name="compiles", data=data)  # an engine of its own: nothing of it is compiled yet
    compute = ComputeConfig(attention="xla", offload=offload)
    engine = engines.build(run, compute, make_mesh(MeshConfig(fsdp=2), jax.devices()[:2]))
    with counting() as warming:
        engines.warm(engine, eval_sequences=run.inner.batch)
        engines.heldout_nats(engine, engine.theta_0(), pages.read_heldout(run.inner.batch)[0])
    with counting() as compiles:
        outcome = simulate(run, engine, pages, peers=2, windows=3, seed=5)
    assert warming.count > 0
    assert all(node is not None and node.state.outer_step == 3 for node in outcome.nodes)
    assert compiles.count == 0, f"{compiles.count} programs were compiled after warm-up: add them to engine.warm"
    assert all(
        on_host(x) == bool(offload)
        for node in outcome.nodes
        for x in (node.state.params | node.local.feedback).values()
    )
    return [node.state.root for node in outcome.nodes]
