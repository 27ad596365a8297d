"""What the whole does not allow though each value does. Each row: overrides of tiny, and what the message must name."""

import pytest

from templar_jax.config import RunConfig
from templar_jax.config_check import check_data
from templar_jax.config_load import load
from templar_jax.config_timetable import training_blocks
from templar_jax.errors import ConfigError


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        ({"model.vocab": 300}, ["model.vocab is 300", "64", "use 320"]),
        ({"model.dim": 100}, ["model.dim is 100", "use 128"]),
        ({"model.heads": 3, "model.head_dim": 64}, ["heads 3", "kv_heads 2"]),
        ({"model.head_dim": 48}, ["kv_heads x model.head_dim is 96", "use 128"]),
        ({"model.layers": 0}, ["model.layers is 0", "1 or more"]),
        ({"compress.tile": 128}, ["compress.tile 128", "64"]),
        ({"compress.tile": 48}, ["compress.tile 48", "does not divide"]),
        ({"compress.tile": 8, "compress.k": 65}, ["compress.k 65", "64 values"]),
        ({"inner.warmup": 20_000}, ["inner.warmup", "inner.decay_steps"]),
        ({"outer.nesterov": True}, ["outer.momentum 0.875"]),
        ({"outer.nesterov": True, "outer.momentum": 0.9}, ["outer.momentum 0.875", "not 0.9"]),
        ({"outer.momentum": 1.0}, ["outer.momentum is 1.0", "below 1"]),
        ({"data.tokenizer": "gpt2"}, ["data.tokenizer", "sha256"]),
        ({"data.manifest": "abc"}, ["data.manifest", "sha256"]),
        ({"window.seed_lookback": 0}, ["window.seed_lookback is 0"]),
        ({"window.commit_lead": 28}, ["window.commit_lead 28", "deadline 28"]),
        ({"window.keys": 28}, ["window.keys 28", "29"]),
        ({"window.manifest": 30}, ["window.manifest 30", "31"]),
        ({"window.manifest": 36}, ["window.manifest 36", "window.blocks 36"]),
        ({"window.leaders": 12}, ["window.leaders 12", "for training"]),
        ({"window.evaluate": 1}, ["window.evaluate 1", "block 31", "block 32", "to 2 or more"]),
        ({"node.network.finality": 6}, ["window.seed_lookback 3", "finality"]),
        ({"node.network.finality": 6, "window.seed_lookback": 6}, ["window.manifest 31", "34"]),
        ({"node.compute.micro_batch": 5}, ["inner.batch 16", "micro_batch 5"]),
        ({"node.compute.micro_batch": 4, "node.mesh.fsdp": 8}, ["4 sequences", "fsdp 8"]),
        ({"node.mesh.tensor": 3}, ["model.heads 4", "tensor 3"]),
        ({"node.mesh.tensor": 0}, ["node.mesh.tensor is 0"]),
        ({"audit_bytes_max": 1, "compress.dct": True}, ["audit_bytes_max = 0", "compress.dct"]),
        (
            {"audit_bytes_max": 1, "node.hosts.count": 2, "node.hosts.coordinator": "a:1"},
            ["audit_bytes_max is not 0", "one host"],
        ),
        ({"node.keep_windows": 11}, ["keep_windows 11", "12"]),
        ({"node.sinks": "wandb,tensorbord"}, ["tensorbord", "tensorboard"]),
        ({"node.hotkey": "../miner"}, ["node.hotkey"]),
        ({"node.network.block_seconds": 0}, ["block_seconds"]),
    ],
)
def test_values_that_do_not_fit(overrides, parts):
    with pytest.raises(ConfigError) as caught:
        load("tiny", overrides)
    said = str(caught.value)
    assert "\n" not in said and all(part in said for part in parts), said


@pytest.mark.parametrize(
    "overrides",
    [
        {"outer.nesterov": True, "outer.momentum": 0.875},
        {"compress.tile": 8, "compress.k": 64},
        {"window.manifest": 32, "window.evaluate": 3},
        {"node.compute.micro_batch": 8, "node.mesh.fsdp": 8},
        {"node.network.chain": "finney", "window.seed_lookback": 3},
    ],
)
def test_values_at_the_edge_that_do_fit(overrides):
    load("tiny", overrides)


def test_data_must_serve_all_slots_and_an_evaluation():
    run = RunConfig()
    needed = 17 * run.pages_per_window
    check_data(run, needed)
    with pytest.raises(ConfigError, match="data.slots to at most 15"):
        check_data(run, needed - 1)
    with pytest.raises(ConfigError, match="inner.steps"):
        check_data(run, run.pages_per_window)


def test_training_blocks_by_hand():
    """tiny: the rank 0 manifest is usable at 31 + 1 + 1 of 36, the rank 2 one at 39: 3 blocks of the next."""
    window = RunConfig().window
    assert training_blocks(window, finality=1) == 28 - 2
    assert training_blocks(window, finality=1, rank=2) == 28 - 2 - 3
