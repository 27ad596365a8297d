"""What plan.py says of time and traffic, and what its script prints."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest

from templar_jax.compress.codec import expected_bytes
from templar_jax.config import MeshConfig, NetworkConfig
from templar_jax.config_load import load
from templar_jax.model.flops import parameters, train_flops_per_token
from templar_jax.plan.fabric import fabric_bytes
from templar_jax.plan.gpus import find
from templar_jax.plan.memory import plan_mesh
from templar_jax.plan.report import figures, lines, make_plan, row
from templar_jax.plan.sketch import CLUSTERS, sketch
from templar_jax.plan.window import Assumed, plan_window
from templar_jax.store.seal import sealed_bytes

H100 = find("h100-80")
SCRIPT = Path(__file__).parent.parent / "scripts" / "plan.py"


def window_of(name="8b", gpu=H100, devices=8, run_changes=None, node_changes=None, **assumed):
    run, node = load(name)
    run, node = dataclasses.replace(run, **(run_changes or {})), dataclasses.replace(node, **(node_changes or {}))
    return run, plan_window(run, node, gpu, devices, Assumed(**assumed))


def test_a_step_is_its_flops_over_the_stated_rate():
    run, window = window_of(mfu=0.5)
    tokens = run.inner.batch * run.data.sequence
    assert window.flops_per_step == tokens * train_flops_per_token(run.model, run.data.sequence)
    assert window.step == pytest.approx(window.flops_per_step / (8 * 989e12 * 0.5))
    # 8.03 B parameters less 0.53 B that are only looked up: six FLOPs a parameter and token, attention beside it
    assert 1.0 < window.flops_per_step / (6 * 7.5e9 * tokens) < 1.1


def test_the_payload_is_what_the_codec_expects_and_takes_its_time_on_the_link():
    run, window = window_of(link=100e6, peers=5)
    assert window.payload == sealed_bytes(expected_bytes(run))
    assert window.upload == pytest.approx(8 * window.payload / 100e6)
    assert window.download == pytest.approx(4 * window.upload)
    _, alone = window_of(peers=1)
    _, crowd = window_of(peers=1000)
    assert alone.download == 0 and crowd.download == pytest.approx(19 * crowd.upload)  # max_contributors 20


def test_steps_fit_between_the_start_and_the_commitment():
    run, window = window_of("70b")
    assert window.steps == window.room < window.wanted == run.inner.steps
    end = (run.window.deadline - run.window.commit_lead) * 12.0 - window.finish
    assert window.start + window.room * window.step <= end < window.start + (window.room + 1) * window.step
    assert window.utilisation == pytest.approx(window.room * window.step / 1500)
    _, fast = window_of("70b", devices=512)
    assert fast.steps == fast.wanted and fast.room > fast.wanted


@pytest.mark.parametrize(
    "worse", [{"link": 50e6}, {"mfu": 0.2}, {"decode": 1e7}, {"encode": 1e6}, {"crypto": 1e7}], ids=str
)
def test_whatever_is_slower_leaves_less_room(worse):
    assert window_of("70b", **worse)[1].room < window_of("70b")[1].room


def test_a_link_too_slow_for_the_window_leaves_no_step():
    _, window = window_of("70b", link=1e6)
    assert window.room == window.steps == 0 and window.utilisation == 0


def test_finality_that_reaches_into_the_next_window_delays_the_start():
    network = NetworkConfig(block_seconds=12.0, finality=10)
    run, late = window_of("1b", node_changes={"network": network})
    assert late.start == pytest.approx((run.window.manifest + 11 - run.window.blocks) * 12 + late.apply)


def test_figures_have_the_names_that_the_design_gives_them():
    run, node = load("1b")
    plan = make_plan(run, node, H100, 8, host_ram=2**30)
    found = figures(plan)
    for name in ("gib_per_gpu", "fits", "tflops_per_step", "payload_mib", "seconds_comm", "utilisation"):
        assert found[name] is not None
    assert found["fits"] is False and "host memory does not suffice" in "\n".join(lines(plan))
    fits = make_plan(run, node, H100, 8)
    assert figures(fits)["fits"] is True and lines(fits)[-2] == "fits"
    assert row(fits).count("|") == 12
    json.dumps(figures(fits), allow_nan=False)


@pytest.mark.processes
def test_the_script_plans_and_refuses(tmp_path):
    flags = [
        "--config",
        "70b",
        "--no-compile",
        "--node.compute.offload",
        "moments",
        "--json",
        str(tmp_path / "plan.json"),
    ]
    done = subprocess.run([sys.executable, str(SCRIPT), *flags], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "does not fit" in done.stdout and "what would fit: --node.compute.offload" in done.stdout
    assert json.loads((tmp_path / "plan.json").read_text())["fits"] is False
    bad = subprocess.run([sys.executable, str(SCRIPT), "--gpu", "h10"], capture_output=True, text=True, timeout=120)
    assert bad.returncode == 2 and bad.stderr.count("\n") == 1


def fabric_of(hosts, expert=8, micro=64, tensor=1):
    run, node = load("moe-1t")
    compute = dataclasses.replace(node.compute, micro_batch=micro)
    mesh = MeshConfig(fsdp=hosts * 8 // expert // tensor, expert=expert, tensor=tensor)
    node = dataclasses.replace(node, compute=compute, mesh=mesh)
    return run, fabric_bytes(run, node, plan_mesh(run, node, hosts * 8), 8)


def test_what_crosses_between_hosts_is_counted_from_where_it_lies():
    run, found = fabric_of(2)
    weights = parameters(run.model)
    passes = run.inner.batch // 64
    assert sum(fabric_of(1)[1].values()) == 0
    assert found["weights"] == pytest.approx(passes * 2 * 2 * weights / 2, rel=1e-6)  # twice, bfloat16, half is there
    assert found["gradients"] == found["weights"] and found["tokens"] == 0  # once, f32
    _, four = fabric_of(4)
    assert four["weights"] == pytest.approx(found["weights"] * 1.5, rel=1e-6)
    assert fabric_of(2, micro=128)[1]["weights"] * 2 == found["weights"]
    assert fabric_of(2, tensor=2, expert=4)[1] == found, "tensor lies within a host"


def test_tokens_cross_where_experts_span_hosts_and_their_weights_do_not():
    run, found = fabric_of(4, expert=32, micro=32)
    m, passes = run.model, run.inner.batch // 32
    routed = m.layers * m.experts * 3 * m.dim * m.expert_ffn_dim
    others = parameters(m) - routed
    assert found["weights"] == pytest.approx(passes * 2 * 2 * others * 0.75, rel=1e-6)
    tokens = 32 * run.data.sequence * m.dim * 2 * 0.75  # of the axis, in bfloat16, from the other three hosts
    assert found["tokens"] == pytest.approx(passes * m.layers * (3 + 2 * 2) * tokens)  # scattered in float32
    _, half = fabric_of(8, expert=32, micro=64)  # two groups of hosts with all experts each
    there = passes / 2 * 4 * (others * 7 / 8 + routed * (1 / 4 - 1 / 8))
    assert half["weights"] == pytest.approx(there, rel=1e-6)


def test_a_trillion_parameters_fit_32_hosts_and_wait_for_the_fabric():
    run, node = load("moe-1t")
    plan = make_plan(run, node, H100, 8, Assumed(link=10e9), hosts=32)
    assert plan.fits and (plan.devices, plan.hosts) == (256, 32)
    w = plan.window
    assert w.between == pytest.approx(8 * sum(plan.fabric.values()) / (3200e9 * 0.8))
    assert w.between > 3 * (w.step - w.between)
    assert "in 32 hosts, mesh fsdp 32 x expert 8" in "\n".join(lines(plan)) and "s between hosts" in "\n".join(
        lines(plan)
    )
    alone = make_plan(run, node, H100, 8, Assumed(link=10e9))
    assert plan.host_bytes * 32 == pytest.approx(alone.host_bytes)
    slow = make_plan(run, node, H100, 8, Assumed(link=1e9), hosts=32)
    assert slow.window.steps == 0, "twenty contributions take longer than the window"
    small = make_plan(run, node, H100, 8, hosts=16)
    assert not small.fits and "--hosts 32" in small.knob
    text = sketch(run, node)
    assert sum(line.startswith("| ") for line in text) == 1 + len(CLUSTERS)


def test_a_host_more_opens_contributions_faster():
    run, node = load("moe-1t")
    one, two = (plan_window(run, node, H100, 256, Assumed(), hosts) for hosts in (1, 2))
    assert two.apply < one.apply and two.finish < one.finish and two.payload == one.payload
