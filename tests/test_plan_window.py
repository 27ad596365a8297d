"""What plan.py says of time and traffic, and what its script prints."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest

from templar_jax.compress.codec import expected_bytes
from templar_jax.config import NetworkConfig
from templar_jax.config_load import load
from templar_jax.model.flops import train_flops_per_token
from templar_jax.plan.gpus import find
from templar_jax.plan.report import figures, lines, make_plan, row
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
