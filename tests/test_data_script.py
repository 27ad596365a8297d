"""scripts/prepare_data.py and preparing in real processes: killed, on a full disk, with bad input."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from corpus import folder_of, texts

from templar_jax.data.manifest import NAME
from templar_jax.data.pages import open_pages
from templar_jax.data.prepare import Progress, prepare
from templar_jax.errors import DataError, StoreError

pytestmark = pytest.mark.processes

ROOT = Path(__file__).resolve().parent.parent
S, P = 64, 256

# Prepares until `done` steps of `phase` are through, says so, and then stands still until it is killed.
STANDS_STILL = """
import sys, time
from pathlib import Path
from templar_jax.data.prepare import prepare

def show(step):
    if (step.phase, step.done >= done) == (phase, True):
        print("here", flush=True)
        time.sleep(600)

if __name__ == "__main__":
    text, out, workers, phase, done = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4], int(sys.argv[5])
    prepare([text], out, sequence=64, page=256, workers=workers, progress=show)
"""


def script(*args: object, timeout: float = 120) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / "scripts" / "prepare_data.py"), *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, cwd=ROOT)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """5 MB in 60 files: five shards."""
    return folder_of(tmp_path_factory.mktemp("text") / "text", texts(60, words=17_000))


@pytest.fixture(scope="module")
def expected(text: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The manifest of a run that nothing interrupted."""
    out = tmp_path_factory.mktemp("expected")
    prepare([text], out, sequence=S, page=P)
    return (out / NAME).read_bytes()


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.parametrize(("workers", "phase", "done"), [(1, "tokenise", 2), (2, "tokenise", 2), (1, "write", 1)])
def test_killed_it_goes_on_where_it_was(
    text: Path, expected: bytes, tmp_path: Path, workers: int, phase: str, done: int
) -> None:
    program, out = tmp_path / "program.py", tmp_path / "out"
    program.write_text(STANDS_STILL)
    command = [sys.executable, str(program), str(text), str(out), str(workers), phase, str(done)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert process.stdout is not None
    assert process.stdout.readline() == b"here\n"
    helpers = children(process.pid)
    assert len(helpers) >= workers - 1
    process.send_signal(signal.SIGKILL)
    process.wait(30)
    process.stdout.close()
    deadline = time.monotonic() + 60
    while any(map(alive, helpers)):  # what it started ends by itself
        assert time.monotonic() < deadline, "a process outlived the one that started it"
        time.sleep(0.05)
    with pytest.raises(DataError, match="no prepared pages"):
        open_pages(out)
    seen: list[Progress] = []
    prepare([text], out, sequence=S, page=P, workers=1, progress=seen.append)
    first = next(step for step in seen if step.phase == "tokenise")
    assert first.done >= 2, "finished shards were lost"
    assert (out / NAME).read_bytes() == expected
    open_pages(out).verify()
    assert not (out / ".work").exists()


def test_work_on_other_sources_is_dropped(text: Path, expected: bytes, tmp_path: Path) -> None:
    stale = tmp_path / "out" / ".work" / ("0" * 32) / "shard-000000"
    stale.mkdir(parents=True)
    (stale / "counts.json").write_text("{}")
    seen: list[Progress] = []
    prepare([text], tmp_path / "out", sequence=S, page=P, progress=seen.append)
    assert any("dropping unfinished work" in step.note for step in seen)
    assert (tmp_path / "out" / NAME).read_bytes() == expected


def test_a_full_disk(text: Path, expected: bytes, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "none", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip("only root can mount a small disk")
    try:
        found = script(text, "--out", disk / "out", "--data.sequence", S, "--data.page", P)
        assert found.returncode == 1
        assert found.stderr.startswith("prepare_data.py: no space left on the disk of ")
        assert found.stderr.count("\n") == 1
        (work,) = (path.name for path in (disk / "out" / ".work").iterdir())
        refused = []
        for kib in range(4096, 65536, 512):  # goes on from what is done, and is stopped at later and later places
            subprocess.run(["mount", "-o", f"remount,size={kib}k", str(disk)], check=True)
            try:
                prepare([text], disk / "out", sequence=S, page=P)
                break
            except StoreError as error:
                refused.append(str(error))
                assert not (disk / "out" / NAME).exists()
        for place in (f".work/{work}", "train"):
            words = f"no space left on the disk of {disk}/out/{place}: free some, or set another folder"
            assert words in refused, refused
        assert (disk / "out" / NAME).read_bytes() == expected
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_the_script_with_sources(text: Path, expected: bytes, tmp_path: Path) -> None:
    out, figures = tmp_path / "out", tmp_path / "figures.json"
    found = script(text, "--out", out, "--data.sequence", S, "--data.page", P, "--workers", 2, "--json", figures)
    assert found.returncode == 0, found.stderr
    assert (out / NAME).read_bytes() == expected
    lines = found.stdout.splitlines()
    assert "5 of 5 shards tokenised" in lines and not any("\x1b" in line for line in lines)
    manifest = open_pages(out).manifest
    values = json.loads(figures.read_text())
    assert values["sequences"] == manifest.n_pages * P and values["tokens"] == manifest.tokens
    assert 0 < values["seconds"] < 120 and values["manifest"] == open_pages(out).manifest_hash
    again = script(text, "--out", out, "--data.sequence", S, "--data.page", P)
    assert again.returncode == 0 and "is already prepared" in again.stdout


def test_the_script_alone_prepares_the_standard_library(tmp_path: Path) -> None:
    found = script("--node.home", tmp_path)
    assert found.returncode == 0, found.stderr
    assert open_pages(tmp_path / "data" / "stdlib-s256-p64").manifest.n_pages > 255


def test_bad_input_is_one_clear_line(text: Path, tmp_path: Path) -> None:
    corrupt = tmp_path / "corrupt.jsonl.gz"
    corrupt.write_bytes(b"\x1f\x8b nothing of the kind")
    out = ["--out", tmp_path / "out"]
    for args, code, words in (
        ([tmp_path / "nowhere", *out], 1, "no such file or folder"),
        ([corrupt, *out], 1, "cannot read"),
        ([text], 2, "--out"),
        ([text, *out, "--tokenizer", tmp_path / "nowhere.json"], 1, "cannot read the tokenizer"),
        ([text, *out, "--data.tokenizer", "0" * 64], 2, "--tokenizer"),
        ([text, *out, "--config", tmp_path / "nowhere.toml"], 2, "cannot read"),
        ([text, *out, "--wokers", "2"], 2, "did you mean --workers"),
    ):
        found = script(*args)
        assert found.returncode == code, found
        assert found.stderr.count("\n") == 1 and words in found.stderr, found
    assert not (tmp_path / "out" / NAME).exists()
