"""scripts/evaluate.py on a checkpoint of theta_0, and on what is not one."""

import dataclasses
import importlib.util
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from corpus import folder_of, texts

from templar_jax.config import ComputeConfig, MeshConfig, RunConfig
from templar_jax.config_load import load_run
from templar_jax.data.pages import open_pages
from templar_jax.data.prepare import prepare
from templar_jax.export import logits
from templar_jax.sharding import make_mesh
from templar_jax.store.checkpoint_orbax import OrbaxCheckpoints
from templar_jax.store.manifest import GENESIS
from templar_jax.store.snapshot import Meta
from templar_jax.train.evaluate import make_evaluate
from templar_jax.train.state import init_params

pytestmark = pytest.mark.processes

ROOT = Path(__file__).resolve().parent.parent
HARNESS = importlib.util.find_spec("lm_eval") is not None
SMALL = {"data.slots": 1, "inner.steps": 2, "data.page": 8}  # few pages are enough


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, devices) -> Path:
    """A home with pages and one checkpoint of theta_0 of the nano run."""
    home = tmp_path_factory.mktemp("home")
    run = load_run("nano", SMALL)
    text = folder_of(home / "text", texts(150))
    prepare([text], home / "pages", sequence=run.data.sequence, page=run.data.page, heldout=0.2)
    data = dataclasses.replace(run.data, manifest=open_pages(home / "pages").manifest_hash)
    run = dataclasses.replace(run, data=data)
    params = init_params(run, make_mesh(MeshConfig(fsdp=1), devices[:1]))
    checkpoints = OrbaxCheckpoints(home / "checkpoints")
    checkpoints.save(Meta(run.run_id, 7, 3, GENESIS, bytes(32)), params, None, {})
    checkpoints.close()
    return home


def script(home: Path, *args: object) -> subprocess.CompletedProcess:
    flags = [word for name, value in SMALL.items() for word in (f"--{name}", str(value))]
    command = [sys.executable, str(ROOT / "scripts" / "evaluate.py"), "--config", "nano", "--node.data"]
    command += [str(home / "pages"), "--node.home", str(home), "--node.mesh.cpu_devices", "2", *flags, *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, cwd=ROOT)


def expected(run: RunConfig, home: Path, count: int, device) -> tuple[float, float]:
    """Loss and bits per byte, from the arrays themselves on one device."""
    mesh = make_mesh(MeshConfig(fsdp=1), [device])
    tokens_NS, n_bytes = open_pages(home / "pages").read_heldout(count)
    nats = float(np.asarray(make_evaluate(run, ComputeConfig(), mesh)(init_params(run, mesh), tokens_NS)).sum())
    return nats / (count * (run.data.sequence - 1)), nats / math.log(2) / n_bytes


def test_loss_and_bits_per_byte(home: Path, devices, tmp_path: Path) -> None:
    run = load_run("nano", SMALL)
    found = script(home, "--node.eval_sequences", 19, "--json", tmp_path / "f.json")
    assert found.returncode == 0, found.stderr
    assert "window 7" in found.stdout and "note:" not in found.stdout
    figures = json.loads((tmp_path / "f.json").read_text())
    loss, bits = expected(run, home, 16, devices[0])  # whole batches of 8
    assert figures["sequences"] == 16 and figures["window"] == 7
    assert figures["loss"] == pytest.approx(loss, rel=1e-5) and figures["bits_per_byte"] == pytest.approx(
        bits, rel=1e-5
    )
    assert 5.5 < loss < 6.5 and 7.5 < bits < 10  # ln 320 = 5.77: it has learnt nothing yet


def test_what_is_no_checkpoint_is_one_clear_line(home: Path) -> None:
    for args, code, words in (
        (("--window", 8), 1, "no checkpoint of window 8"),
        (("--model.dim", 128), 2, "give the --config that it was trained with"),
        (("--node.eval_sequences", 5), 2, "less than one batch of 8"),
    ):
        found = script(home, *args)
        assert found.returncode == code, found
        assert found.stderr.count("\n") == 1 and words in found.stderr, found.stderr


@pytest.mark.skipif(HARNESS, reason="lm_eval is installed")
def test_an_absent_harness_is_one_line_that_installs_it(home: Path) -> None:
    found = script(home, "--harness", "hellaswag")
    assert found.returncode == 2 and found.stderr.count("\n") == 1
    assert "lm-evaluation-harness cannot be imported" in found.stderr and "pip install 'lm_eval[hf]'" in found.stderr


TASK = """task: local_bytes
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{text}}}}"
metric_list: [{{metric: bits_per_byte}}]
"""


@pytest.mark.parity
@pytest.mark.skipif(not HARNESS, reason="lm_eval is not installed (pip install 'lm_eval[hf]')")
def test_the_harness_finds_our_bits_per_byte(home: Path, devices, tmp_path: Path, monkeypatch) -> None:
    documents = ["def main(argv):\n    return 0\n", "größer als 窗口", "import os"]  # each shorter than a sequence
    (tmp_path / "documents.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    (tmp_path / "task.yaml").write_text(TASK.format(file=tmp_path / "documents.jsonl"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    args = ("--include", tmp_path, "--json", tmp_path / "f.json")
    found = script(home, "--harness", "local_bytes", *args)
    assert found.returncode == 0 and "bits_per_byte" in found.stdout, found.stderr
    figures = json.loads((tmp_path / "f.json").read_text())
    run, mesh = load_run("nano", SMALL), make_mesh(MeshConfig(fsdp=1), devices[:1])
    forward, params, nats = logits(run, mesh), init_params(run, mesh), 0.0
    for text in documents:
        tokens_1S = np.array([[256, *text.encode()]], np.int32)
        logits_SV = forward(params, tokens_1S)[0, :-1].astype(np.float64)
        likely_S = logits_SV - np.log(np.exp(logits_SV).sum(-1, keepdims=True))[:, :1]
        nats -= np.take_along_axis(likely_S, tokens_1S[0, 1:, None], 1).sum()
    expected = nats / math.log(2) / sum(len(text.encode()) for text in documents)
    assert figures["window"] == 7
    assert figures["harness"]["local_bytes"]["bits_per_byte,none"] == pytest.approx(expected, rel=1e-5)
    unknown = script(home, "--harness", "no_such_task", *args)
    assert unknown.returncode == 2 and "the harness has no task no_such_task" in unknown.stderr
