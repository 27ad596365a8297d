"""What compiled programs must look like on a mesh of eight, whatever they compute.

What is given up is used again, weights are gathered layer by layer, lanes of the root leave unsummed.
"""

import dataclasses
import math
import re

import jax
import numpy as np
import pytest
from models import MIXTURE, WIDE, mesh_of, small_run, tokens

from templar_jax.compress import root
from templar_jax.config import ComputeConfig
from templar_jax.model.placement import make_placement
from templar_jax.plan.memory import optimizer_bytes, parameter_bytes, sent_bytes
from templar_jax.plan.programs import _placed, gradients_shapes, lowered
from templar_jax.sharding import shardings, table
from templar_jax.train.accumulate import accumulated
from templar_jax.train.outer import Group

RUN = dataclasses.replace(small_run(WIDE), max_contributors=3)
NAMES = tuple(param.name for param in table(RUN))
COMPUTE = ComputeConfig(attention="xla")


@pytest.fixture(scope="module")
def mesh():
    return mesh_of(8)


@pytest.fixture(scope="module")
def programs(mesh):
    run = dataclasses.replace(RUN, data=dataclasses.replace(RUN.data, sequence=64))
    low = lowered(run, COMPUTE, mesh)
    return {phase: low[phase].compile() for phase in ("update", "compress")}


@pytest.mark.parametrize("phase", ["update", "compress"])
def test_what_is_given_up_is_used_again(programs, mesh, phase):
    given = {
        "update": parameter_bytes(RUN, mesh) + optimizer_bytes(RUN, mesh),
        "compress": parameter_bytes(RUN, mesh),
    }
    assert "input_output_alias" in programs[phase].as_text().splitlines()[0]
    assert programs[phase].memory_analysis().alias_size_in_bytes == given[phase]


def test_the_outer_step_in_place_uses_its_parameters_again(mesh):
    group, at = Group(RUN, mesh, NAMES), shardings(RUN, mesh)
    params = [jax.ShapeDtypeStruct(p.shape, np.float32, sharding=at[p.name]) for p in table(RUN)]
    low = group.step_in_place_jit.lower(params, [], _placed(RUN, group), group.constants(), np.uint32(0))
    assert low.compile().memory_analysis().alias_size_in_bytes == parameter_bytes(RUN, mesh)


def test_what_is_sent_leaves_in_its_shards(programs, mesh):
    """An eighth of the matrices' values leaves each device: nothing is collected on one."""
    stats = programs["compress"].memory_analysis()
    sent = stats.output_size_in_bytes - stats.alias_size_in_bytes
    assert sent == pytest.approx(sent_bytes(RUN, mesh, NAMES), rel=0.02)  # beside the addresses of the arrays
    assert sent < sent_bytes(RUN, mesh_of(1), NAMES) / 5.5  # norms lie on every device


def test_lanes_of_the_root_leave_as_sums_of_shards(mesh):
    at = shardings(RUN, mesh)
    params = [jax.ShapeDtypeStruct(p.shape, np.float32, sharding=at[p.name]) for p in table(RUN)]
    out = jax.eval_shape(root._make_sums(RUN, mesh, NAMES), params, np.zeros(4, np.uint32))
    for param, lanes in zip(table(RUN), out, strict=True):
        shards = 8 if param.init_std is not None and any(at[param.name].spec) else 1
        assert math.prod(lanes.shape) == shards * param.units * root.LANES, param.name


def test_weights_are_gathered_one_layer_at_a_time(mesh):
    """Every all-gather of the scanned program yields at most one layer's matrix, embedding and head aside."""
    place = dataclasses.replace(make_placement(RUN, COMPUTE, mesh), unroll=1)
    params, _, _ = gradients_shapes(RUN, COMPUTE, mesh)
    program = jax.jit(lambda p, t: accumulated(RUN, place, 8, p, t), out_shardings=(None, shardings(RUN, mesh)))
    text = program.lower(params, tokens(RUN)).compile().as_text()
    body, found = "", {}
    for line in text.splitlines():
        if line.endswith("{") and not line.startswith(" "):
            body = line.split()[0]
        for dims in re.findall(r"= f32\[([\d,]+)\]\S* all-gather\(", line):
            found.setdefault(body, []).append(math.prod(map(int, dims.split(","))))
    layer = max(math.prod(p.unit_shape) for p in table(RUN) if p.stack)
    outside = RUN.model.vocab * RUN.model.dim
    loops = {name: sizes for name, sizes in found.items() if name != "ENTRY"}
    assert sum(len(sizes) for sizes in loops.values()) >= 7  # at least each of a layer's matrices, in a loop's body
    assert all(size <= layer for sizes in loops.values() for size in sizes)
    assert all(size <= outside for size in found.get("ENTRY", []))


def test_gradients_of_experts_leave_as_the_part_that_a_device_keeps():
    """Summed over the devices with other tokens by a reduce-scatter; an all-reduce moves twice as much."""
    run, mesh = small_run(MIXTURE), mesh_of(2, expert=4)
    params, _, _ = gradients_shapes(run, COMPUTE, mesh)
    program = jax.jit(lambda p, t: accumulated(run, make_placement(run, COMPUTE, mesh), 8, p, t))
    text = program.lower(params, tokens(run)).compile().as_text()
    m, held = run.model, run.model.experts // 4
    whole = {(held, m.dim, m.expert_ffn_dim), (held, m.expert_ffn_dim, m.dim)}
    kept = {(held, m.dim // 2, m.expert_ffn_dim), (held, m.expert_ffn_dim, m.dim // 2)}
    made = {kind: re.findall(rf"= f32\[([\d,]+)\]\S* {kind}\(", text) for kind in ("all-reduce", "reduce-scatter")}
    shapes = {kind: [tuple(map(int, dims.split(","))) for dims in found] for kind, found in made.items()}
    assert not whole & set(shapes["all-reduce"])
    assert sum(shape in kept for shape in shapes["reduce-scatter"]) >= 3, shapes  # gate, up, down
