"""What travels between peers of a mixture: the same bits on every mesh, an expert's matrix as a unit of its own."""

import dataclasses

import jax
import numpy as np
import pytest
from compress_numpy import contributions, placed, rough, run_of, same_bits
from models import MIXTURE, mesh_of, rough_params, tokens
from test_compress_codec import any_packed, equal

from templar_jax.compress import aggregate, codec
from templar_jax.compress.feedback import make_compressor
from templar_jax.compress.root import make_root
from templar_jax.compress.tiles import groups, tilings
from templar_jax.config import ComputeConfig
from templar_jax.errors import RefusedError
from templar_jax.sharding import spec, table, units
from templar_jax.train.evaluate_peer import make_evaluate_peer
from templar_jax.train.outer import make_outer
from templar_jax.train.state import init_params

RUN = run_of(dataclasses.replace(MIXTURE, vocab=320), outer={"momentum": 0.9})
MESHES = [(2, 1, 4), (2, 2, 2)]
ALONE = (1, 1, 1)


def test_the_table_has_a_unit_for_every_expert():
    names = [unit.name for unit in units(RUN) if unit.param.name == "layers/expert_up"]
    assert names == [f"layers/expert_up.{layer}.{expert}" for layer in range(2) for expert in range(4)]
    hugging_face = {unit.param.hf.format(*unit.index) for unit in units(RUN)}
    assert len(hugging_face) == len(list(units(RUN)))


@pytest.mark.parametrize("mesh", MESHES)
def test_every_device_holds_its_part(mesh):
    laid = {param.name: spec(param, mesh_of(*mesh)) for param in table(RUN)}
    tensor = "tensor" if mesh[1] > 1 else None
    assert laid["layers/expert_gate"] == jax.P(None, "expert", "fsdp", tensor)
    assert laid["layers/q"] == jax.P(None, ("fsdp", "expert"), tensor)
    assert laid["layers/router"] == jax.P(None, ("fsdp", "expert"), None)
    on_one = sum(np.prod(param.shape) for param in table(RUN))
    (largest,) = groups(RUN, mesh_of(*mesh), most=2**30)
    assert largest == tuple(param.name for param in table(RUN)) and on_one > 2**20
    assert len(groups(RUN, mesh_of(*mesh), most=int(on_one) // 4)) == 1, "a device holds about an eighth"


def test_experts_have_a_budget_of_their_own():
    run = dataclasses.replace(RUN, compress=dataclasses.replace(RUN.compress, expert_k=11))
    cut = tilings(run)
    assert {cut[name].k for name in ("layers/expert_gate", "layers/expert_down")} == {11}
    assert cut["layers/q"].k == cut["layers/gate"].k == cut["layers/router"].k == RUN.compress.k
    packed = any_packed(run, 0)
    data = codec.encode(run, packed)
    assert equal(codec.decode(run, data), packed) and len(data) < codec.plaintext_bounds(RUN)[0]
    with pytest.raises(RefusedError):
        codec.decode(RUN, data)


def window(mesh):
    """Everything that one window does to a mixture: theta_0, compression, outer step, root."""
    mesh = mesh_of(*mesh)
    start = init_params(RUN, mesh)
    compressor, outer, root = make_compressor(RUN, mesh), make_outer(RUN, mesh), make_root(RUN, mesh)
    feedback, packed = compressor.update(compressor.init(), start, placed(RUN, mesh, rough(RUN, 5)))
    sent = contributions(RUN, (3, 1))
    params, momentum = outer.apply(start, outer.init(), sent)
    return codec.encode(RUN, packed), root(start), root(params), jax.device_get((feedback, params, momentum))


def test_a_window_has_the_same_bits_on_eight_devices():
    (sent, root_0, root_1, arrays), alone = window((2, 1, 4)), window(ALONE)
    assert sent == alone[0] and root_0 == alone[1] and root_1 == alone[2]
    for tree, want in zip(arrays, alone[3], strict=True):
        same_bits(tree, want)


def test_one_experts_bits_move_the_root():
    mesh = mesh_of(2, 1, 4)
    params, root = init_params(RUN, mesh), make_root(RUN, mesh)
    before = root(params)
    up = np.array(params["layers/expert_up"])
    up[:, [0, 3]] = up[:, [3, 0]]  # two experts exchanged
    assert root({**params, **placed(RUN, mesh, {"layers/expert_up": up})}) != before


def test_experts_are_clipped_each_by_itself():
    tiling = tilings(RUN)["layers/expert_up"]
    sent = contributions(RUN, (3, 1, 7))
    factors = aggregate.clip_factors(RUN, sent)[7]["layers/expert_up"]
    assert factors.shape == (tiling.param.units,) == (8,) and (factors < 1).all() and len(set(factors)) == 8


def test_a_peer_is_evaluated_alike_on_any_mesh_and_taken_back():
    sent, compute = contributions(RUN, (3,))[3], ComputeConfig(attention="xla")
    factors = aggregate.clip_factors(RUN, {3: sent})[3]
    found = []
    for devices in (mesh_of(*ALONE), mesh_of(2, 1, 4)):
        params = rough_params(RUN, devices)
        before = jax.device_get(params)
        evaluation = make_evaluate_peer(RUN, compute, devices)
        ids, others = tokens(RUN, 8, 32, seed=1), tokens(RUN, 8, 32, seed=2)
        params, losses = evaluation.peer(params, sent, factors, 1.0, ids, others)
        same_bits(params, before)
        found.append(losses)
    for one, many in zip(*found, strict=True):
        np.testing.assert_allclose(one, many, rtol=1e-5)
    assert abs(found[0].assigned_after - found[0].assigned_before).max() > 1e-3
