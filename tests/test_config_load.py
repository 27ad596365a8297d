"""Files, overrides and their errors: one line that names the cause and the next step."""

import dataclasses
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from templar_jax.config import RunConfig
from templar_jax.config_load import load, load_node, load_run, parse_cli, settings
from templar_jax.errors import ConfigError

# Changes whenever a default of RunConfig changes. That makes another run of everybody's `tiny`: if it was meant, put
# the printed value here; if it was not, undo the change of the default.
TINY_RUN_ID = "b5fd351fe316795a7822340e2f80505a"


def message(argv: list[str]) -> str:
    with pytest.raises(ConfigError) as caught:
        parse_cli(argv, "test", lambda parser: parser.add_argument("--windows", type=int))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_run_id_is_golden():
    assert RunConfig().run_id == TINY_RUN_ID


def test_overrides_reach_both_configurations(tmp_path):
    file = tmp_path / "my.toml"
    file.write_text(
        'name = "mine"\n[model]\ndim = 256\n[inner]\nlr = 1\n[node]\nsinks = ["wandb"]\n[node.mesh]\nfsdp = 2\n'
    )
    cli = parse_cli(
        [
            f"--config={file}",
            "--windows",
            "3",
            "--model.layers=2",
            "--outer.clip",
            "false",
            "--node.network.netuid",
            "7",
        ],
        "test",
        lambda parser: parser.add_argument("--windows", type=int),
    )
    assert cli.args.windows == 3
    assert (cli.run.name, cli.run.model.dim, cli.run.model.layers, cli.run.outer.clip) == ("mine", 256, 2, False)
    assert cli.run.inner.lr == 1.0 and isinstance(cli.run.inner.lr, float), "1 and 1.0 must give one run_id"
    assert (cli.node.mesh.fsdp, cli.node.network.netuid, cli.node.sinks) == (2, 7, ("wandb",))
    assert load_run(file).run_id == load_run(file, {"node.mesh.fsdp": 1}).run_id
    assert load_node(file, {"node.sinks": ""}).sinks == ()


def test_a_number_too_many_or_a_wrong_type_is_refused():
    assert "whole number" in message(["--model.dim", "12.5"])
    assert "finite" in message(["--inner.lr", "nan"])
    assert "true or false" in message(["--model.tied", "yes"])
    assert "adamw, muon" in message(["--inner.optimizer", "sgd"])
    assert "needs a value" in message(["--model.dim"])
    assert "whole number" in message(["--model.dim", "True"])


@pytest.mark.parametrize(
    ("argv", "suggestion"),
    [
        (["--model.dmi", "3"], "model.dim"),
        (["--mdoel.dim=3"], "model.dim"),
        (["--node.fsdp", "3"], "node.mesh.fsdp"),
        (["--windws", "3"], "--windows"),
        (["--sed", "3"], "--seed"),
        (["--confg", "x.toml"], "--config"),
    ],
)
def test_unknown_names_are_refused_with_the_nearest(argv, suggestion):
    assert f"did you mean {suggestion}?" in message(argv)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("[model]\ndmi = 3\n", ["model.dmi", "did you mean model.dim?"]),
        ("[modle]\n", ["modle", "unknown"]),
        ("[model]\ndim = true\n", ["model.dim is True", "whole number"]),
        ("[model]\ndim = 128.0\n", ["model.dim", "whole number"]),
        ("model = 3\n", ["model", "table"]),
        ("[model\ndim = 3\n", ["not valid TOML", "line 1"]),
        ("[node.network]\nblock_secs = 3\n", ["did you mean node.network.block_seconds?"]),
        ("[window]\ndeadline = 39\n", ["window.keys", "window.deadline 39"]),
    ],
)
def test_files_with_a_mistake(tmp_path, text, parts):
    file = tmp_path / "bad.toml"
    file.write_text(text)
    said = message(["--config", str(file)])
    assert all(part in said for part in parts), said


def test_files_that_cannot_be_read(tmp_path):
    assert "No such file" in message(["--config", str(tmp_path / "none.toml")])
    assert "tiny" in message(["--config", "none"])
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe")
    assert "UTF-8" in message(["--config", str(tmp_path / "bytes.toml")])


def test_help_lists_every_setting(capsys):
    with pytest.raises(SystemExit) as caught:
        parse_cli(["--help"], "What it does.", lambda parser: parser.add_argument("--windows", help="N"))
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert all(f"--{name} " in text for name in settings()) and "What it does." in text and "--windows" in text


@pytest.mark.parametrize(("error", "code"), [("ConfigError", 2), ("DataError", 1)])
def test_guarded_prints_one_line(error, code):
    script = f"from templar_jax.config_load import guarded; from templar_jax.errors import {error} as E\n"
    script += "def main(argv): raise E('cause: next step')\nguarded(main)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (code, "", "-c: cause: next step\n")


@given(st.sampled_from(sorted(settings())), st.text(max_size=8))
def test_any_text_for_any_setting_loads_or_is_refused_in_one_line(name, text):
    try:
        load("tiny", {name: text})
    except ConfigError as error:
        assert len(str(error).splitlines()) == 1


@given(st.data())
def test_any_small_number_for_any_setting_loads_or_is_refused(data):
    numbers = [name for name, setting in settings().items() if setting.type in (int, float)]
    name = data.draw(st.sampled_from(numbers))
    value = data.draw(st.sampled_from([-1, 0, 1, 2, 3, 7, 64, 4096, 10**6]))
    try:
        run, node = load("tiny", {name: value})
    except ConfigError as error:
        assert "\n" not in str(error)
    else:
        assert dataclasses.is_dataclass(run) and dataclasses.is_dataclass(node)
