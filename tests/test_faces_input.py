"""Bad input to mine.py: one clear line, a non-zero exit, and nothing lost. Real processes, before any compiling."""

import os
import shutil
from pathlib import Path

import pytest
from faces import make_home, make_pages, nano, one_line, run_mine

pytestmark = pytest.mark.processes


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_pages(tmp_path_factory.mktemp("data"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--windows", "0"], ["--windows 0"]),
        (["--windows", "-1"], ["--windows -1"]),
        (["--windos", "3"], ["did you mean --windows"]),
        (["--inner.stepz", "3"], ["did you mean inner.steps"]),
        (["--inner.lr", "much"], ["finite number"]),
        (["--node.hotkey", "../x"], ["file name"]),
        (["--config", "missing.toml"], ["missing.toml"]),
    ],
)
def test_a_setting_that_cannot_be(arguments, words):
    done = run_mine(*arguments)
    assert done.returncode == 2
    one_line(done.stderr, *words)


def test_a_config_with_a_typo_names_the_nearest(tmp_path):
    (tmp_path / "typo.toml").write_text("[modle]\ndim = 3\n")
    done = run_mine("--config", tmp_path / "typo.toml")
    assert done.returncode == 2
    one_line(done.stderr, "typo.toml", "did you mean model.dim")


@pytest.mark.parametrize(
    ("home", "words"),
    [
        ("", ["node.home is empty"]),
        ("{tmp}/file", ["a file is in the way"]),
        ("/proc/nothing", ["/proc/nothing"]),
        ("{tmp}/" + "long" * 32, ["the chain takes 128", "shorter folder"]),
        ("{tmp}/spa ce", []),  # an odd name is none of our business
    ],
)
def test_homes(home, words, tmp_path, pages):
    (tmp_path / "file").touch()
    done = run_mine("--config", "nano", "--node.home", home.format(tmp=tmp_path), "--node.data", pages / "absent")
    assert done.returncode == (1 if words[:1] in ([], ["a file is in the way"], ["/proc/nothing"]) else 2)
    one_line(done.stderr, *(words or ["no prepared pages"]))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_home_without_permission(tmp_path):
    tmp_path.chmod(0o500)
    done = run_mine("--config", "nano", "--node.home", tmp_path / "home")
    assert done.returncode == 1
    one_line(done.stderr, "not writable")


def test_what_lies_at_home_or_elsewhere_is_not_what_it_should_be(tmp_path, pages):
    home = make_home(tmp_path / "home")
    start = [*nano(pages), "--node.home", home]
    other = run_mine(*start, "--data.sequence", 128)
    assert other.returncode == 2
    one_line(other.stderr, "sequence 64", "the run has 128")

    (tmp_path / "blocked").touch()
    bucket = run_mine(*start, "--node.network.bucket", f"file://{tmp_path}/blocked/bucket")
    assert bucket.returncode == 1
    one_line(bucket.stderr, "blocked/bucket", "a file is in the way")

    wallet = home / "wallet" / "miner-0"
    good = wallet.read_text()
    wallet.write_text("zz")
    done = run_mine(*start)
    assert done.returncode == 1
    one_line(done.stderr, "is no hotkey", "restore it")
    assert wallet.read_text() == "zz", "never replaced by itself"
    wallet.write_text(good)

    chain = next(home.glob("*/chain.db"))
    shutil.copy(chain, tmp_path / "saved.db")
    chain.write_bytes(b"not a database" * 400)
    done = run_mine(*start)
    assert done.returncode == 1
    one_line(done.stderr, "chain.db", "not a readable local chain")


def test_json_that_cannot_be_written_is_said_before_the_work(tmp_path, pages):
    done = run_mine(*nano(pages), "--node.home", tmp_path / "home", "--json", tmp_path)
    assert done.returncode == 1
    one_line(done.stderr, "--json")
    assert not list((tmp_path / "home").glob("*/miner-0"))
