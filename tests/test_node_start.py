"""A run that goes on from a published model: pinned by its state root, read by every node, refused if another."""

import asyncio
import dataclasses
import json
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
from faces import S, make_home, make_pages, nano, one_line, run_mine
from kills import ROOT
from models import WIDE, mesh_of, rough_params, small_run
from node_network import RUN, assert_one_history, events, play, together
from safetensors.numpy import load_file, save_file

from templar_jax.compress.root import make_root
from templar_jax.config import ComputeConfig, NodeConfig, RunConfig
from templar_jax.config_load import load, load_run
from templar_jax.config_write import to_toml
from templar_jax.data.pages import open_pages
from templar_jax.errors import ConfigError
from templar_jax.export import export_folder, fitting_run, import_folder, root_of
from templar_jax.node import engine as engines
from templar_jax.telemetry.events import NodeStopped, Noted
from templar_jax.train.inner import make_inner
from templar_jax.train.offload import on_host, parameters_like

PINNED = "ab" * 32


def going_on(run: RunConfig, folder) -> RunConfig:
    return dataclasses.replace(run, start=root_of(folder, run, mesh_of(1)).hex())


def engine_of(run: RunConfig, mesh, folder, *offload: str):
    return engines.build(run, ComputeConfig(attention="xla", offload=offload), mesh, str(folder))


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """(run without a start, folder): in bfloat16, in several files, with less rows of vocabulary than the run has."""
    run = small_run(dataclasses.replace(WIDE, vocab=512))
    folder = tmp_path_factory.mktemp("published") / "model"
    export_folder(folder, run, rough_params(run).__getitem__, dtype="bfloat16", vocab=430, shard_bytes=2**20)
    return run, folder


def test_a_start_is_part_of_the_runs_name_and_none_changes_nothing():
    run = load_run("nano")
    assert run.run_id == load_run("nano", {"start": ""}).run_id
    names = {run.run_id, *(load_run("nano", {"start": root}).run_id for root in (PINNED, "cd" * 32))}
    assert len(names) == 3
    for values, said in (({"start": "12"}, "no state root in hex"), ({"node.start": "model"}, "starts from its seed")):
        with pytest.raises(ConfigError, match=said):
            load("nano", values)
    assert load("nano", {"start": PINNED})[1].start == "", "who only plans needs no folder"


@pytest.mark.parametrize("mesh", [(1, 1), (8, 1), (2, 4)], ids=str)
def test_the_model_has_the_same_bits_on_any_mesh(published, mesh):
    run, folder = published
    run = going_on(run, folder)
    params = engine_of(run, mesh_of(*mesh), folder).theta_0()
    expected = import_folder(folder, run, mesh_of(1))
    assert list(params) == list(expected)
    for name, value in expected.items():
        np.testing.assert_array_equal(np.asarray(params[name]), np.asarray(value), err_msg=name)
    exact = np.asarray(params["layers/q"])
    np.testing.assert_array_equal(exact, exact.astype(ml_dtypes.bfloat16).astype(np.float32))
    assert make_root(run, mesh_of(*mesh))(params).hex() == run.start


def test_a_model_that_rests_on_the_host_is_read_there(published):
    run, folder = published
    run = going_on(run, folder)
    params = engine_of(run, mesh_of(4), folder, "snapshot").theta_0()
    assert all(map(on_host, params.values()))
    assert {n: x.sharding for n, x in params.items()} == {
        n: x.sharding for n, x in parameters_like(run, mesh_of(4), True).items()
    }
    assert make_root(run, mesh_of(4))(params).hex() == run.start


def test_another_model_is_refused_with_the_next_step(published, tmp_path):
    run, folder = published
    run = going_on(run, folder)

    def refusal(where, run=run) -> str:
        with pytest.raises(ConfigError) as caught:
            engine_of(run, mesh_of(1), where).theta_0()
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "node.start is empty: set it" in refusal("")
    assert "has no config.json: set it" in refusal(tmp_path)
    assert "--model.layers 2" in refusal(
        folder, dataclasses.replace(run, model=dataclasses.replace(run.model, layers=3))
    )
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    assert engine_of(run, mesh_of(1), tmp_path).theta_0()
    file = sorted(tmp_path.glob("model-*.safetensors"))[1]
    content = load_file(file)
    content[max(content)].view(np.uint16).flat[5] ^= 1  # the lowest bit of one weight
    save_file(content, file, metadata={"format": "pt"})
    assert f"{run.start[:16]}, and the one in node.start {tmp_path} has" in refusal(tmp_path)
    assert "get the weights that the run was made with" in refusal(tmp_path)


def test_a_run_that_fits_a_folder_takes_its_model_and_tokenizer(published, tmp_path):
    run, folder = published
    other = load_run("nano", {"model.z_loss": 0.5, "inner.lr": 1e-4, "data.sequence": 512})
    fitting, notes = fitting_run(folder, dataclasses.replace(other, start=PINNED))
    assert fitting.model == dataclasses.replace(run.model, vocab=448, z_loss=0.5)
    assert (fitting.start, fitting.inner, fitting.data.tokenizer) == ("", other.inner, "bytes")
    assert len(notes) == 1 and "data.sequence 512 is longer than the 256 tokens" in notes[0]
    (tmp_path / "run.toml").write_text(to_toml(fitting, NodeConfig()))
    assert load(tmp_path / "run.toml") == (fitting, NodeConfig())
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    assert any("no tokenizer.json" in note for note in fitting_run(tmp_path, other)[1])
    values = json.loads((folder / "tokenizer.json").read_text())
    values["added_tokens"][0]["content"] = "<eos>"
    (tmp_path / "tokenizer.json").write_text(json.dumps(values))
    fitting, notes = fitting_run(tmp_path, other)
    assert len(fitting.data.tokenizer) == 64 and any("prepare_data.py --tokenizer" in note for note in notes)


def trained(run: RunConfig, tokens_NS: np.ndarray, steps: int = 24):
    """Parameters after a few inner steps on one device."""
    inner = make_inner(run, ComputeConfig(attention="xla"), mesh_of(1))
    params, opt = rough_params(run), inner.init()
    for step in range(steps):
        rows = np.arange(step * run.inner.batch, (step + 1) * run.inner.batch) % len(tokens_NS)
        params, opt, _ = inner.step(params, opt, tokens_NS[rows], step)
    return params


def test_miners_a_validator_and_who_comes_late_go_on_from_it(tmp_path):
    from corpus import small_pages

    pages = small_pages(tmp_path, count=200)
    run = dataclasses.replace(RUN, data=dataclasses.replace(RUN.data, manifest=pages.manifest_hash))
    tokens_NS, _ = pages.read_heldout(64)
    quick = dataclasses.replace(run, inner=dataclasses.replace(run.inner, lr=3e-3, warmup=0))
    export_folder(tmp_path / "model", run, trained(quick, tokens_NS).__getitem__)
    run = going_on(run, tmp_path / "model")
    engine = engine_of(run, mesh_of(1), tmp_path / "model")
    nats = engines.heldout_nats(engine, engine.theta_0(), tokens_NS) / tokens_NS[:, 1:].size
    assert nats < 5.0, "it has learnt something: ln 320 is 5.8"

    async def scenario(network) -> None:
        early = asyncio.ensure_future(network.validator("validator-0", 4))
        miners = asyncio.ensure_future(together(network, 2, 4))
        await asyncio.sleep(2.5 * run.window.blocks * 12)
        late = asyncio.ensure_future(network.node("late", 1))  # nobody has published a checkpoint: from theta_0
        await asyncio.gather(early, miners, late)

    network = play((run, engine, pages), scenario)
    assert_one_history(network)
    starts = {entry.node: entry.event.text for entry in network.log if isinstance(entry.event, Noted)}
    assert {"peer-00", "peer-01", "validator-0", "late"} <= starts.keys()
    assert all("starting from theta_0" in text for text in starts.values()), starts
    assert len(events(network, NodeStopped)) >= 3


@pytest.mark.processes
def test_mine_goes_on_from_the_loss_that_evaluate_finds(tmp_path):
    pages = make_pages(tmp_path)
    arguments = nano(pages)
    run = load_run("nano")
    tokens_NS = open_pages(pages).read(range(8)).reshape(-1, S)
    quick = dataclasses.replace(run, inner=dataclasses.replace(run.inner, warmup=0))
    export_folder(tmp_path / "model", run, trained(quick, tokens_NS).__getitem__, dtype="bfloat16")

    def script(name: str, *args: object) -> subprocess.CompletedProcess:
        command = [sys.executable, str(ROOT / "scripts" / name), *map(str, args)]
        return subprocess.run(command, capture_output=True, text=True, timeout=240, cwd=ROOT)

    made = script("export.py", *arguments, "--import", tmp_path / "model", "--out", tmp_path / "run.toml")
    assert made.returncode == 0, made.stderr
    config = ["--config", tmp_path / "run.toml", "--node.home", make_home(tmp_path / "home")]
    mined = run_mine(*config, "--windows", 2, "--json", tmp_path / "mined.json", timeout=240)
    assert mined.returncode == 0, mined.stderr
    found = script("evaluate.py", *config, "--checkpoint", tmp_path / "model", "--json", tmp_path / "found.json")
    assert found.returncode == 0 and "Hugging Face folder" in found.stdout, found.stderr
    figures, before = (json.loads((tmp_path / name).read_text()) for name in ("mined.json", "found.json"))
    assert before["bits_per_byte"] < 6.5, "it has learnt something: of theta_0 it is 8.3"
    assert figures["heldout_bits_per_byte_first"] == pytest.approx(before["bits_per_byte"], rel=1e-5)
    assert figures["heldout_bits_per_byte_last"] < before["bits_per_byte"] - 0.05
    absent = run_mine(*config, "--node.start", tmp_path / "gone", "--windows", 1)
    assert absent.returncode == 2
    one_line(absent.stderr, "has no config.json", "set it to the model's Hugging Face folder")
