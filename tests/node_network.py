"""A run small enough to simulate whole networks of, with its engine built once a process."""

import dataclasses
from functools import lru_cache
from pathlib import Path

import jax
from corpus import small_pages

from templar_jax.config import ComputeConfig, DataConfig, InnerConfig, MeshConfig, ModelConfig, RunConfig, WindowConfig
from templar_jax.data.pages import Pages
from templar_jax.node import engine as engines
from templar_jax.node.engine import Engine
from templar_jax.sharding import make_mesh

RUN = RunConfig(
    name="mini",
    model=ModelConfig(vocab=320, dim=64, layers=1, heads=1, kv_heads=1, head_dim=64, ffn_dim=64),
    window=WindowConfig(
        blocks=16, seed_lookback=2, deadline=8, commit_lead=1, keys=10, manifest=11, leader_slot=1, leaders=3
    ),
    inner=InnerConfig(steps=2, batch=4),
    data=DataConfig(sequence=32, page=4, slots=12),
    max_contributors=8,
)


@lru_cache(maxsize=1)
def engine_of(run: RunConfig) -> Engine:
    return engines.build(run, ComputeConfig(attention="xla"), make_mesh(MeshConfig(fsdp=1), jax.devices()[:1]))


def open_run(folder: Path) -> tuple[RunConfig, Engine, Pages]:
    pages = small_pages(folder, count=200)
    run = dataclasses.replace(RUN, data=dataclasses.replace(RUN.data, manifest=pages.manifest_hash))
    return run, engine_of(run), pages
