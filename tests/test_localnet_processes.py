"""localnet.py as people use it: a whole network from one command, and one of its processes killed."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from faces import make_home, make_pages, one_line
from kills import ROOT

SCRIPT = str(ROOT / "scripts" / "localnet.py")
LONG = 480.0  # seconds; a quiet machine needs 30


def command(home: Path, pages: Path, *more: object) -> list[str]:
    given = ["--config", "nano", "--node.home", home, "--node.data", pages, "--node.network.block_seconds", "0.15"]
    return [sys.executable, SCRIPT, *map(str, given), *map(str, more)]


@contextmanager
def localnet(arguments: list[str], log: Path) -> Iterator[subprocess.Popen]:
    with log.open("w") as file:
        process = subprocess.Popen(arguments, stdout=file, stderr=subprocess.STDOUT, cwd=ROOT)
    try:
        yield process
    finally:
        process.kill()  # its children end with it
        process.wait()


def running(home: Path) -> list[int]:
    """Processes whose command line names a file of `home`."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:  # it has ended meanwhile
            continue
        if any(os.fsencode(home) in word for word in words):
            found.append(int(path.parent.name))
    return found


def pid_of(home: Path, name: str, seconds: float) -> int:
    """Waits for a node's process: it holds its number in its lock."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        for lock in home.glob(f"net-1/*/{name}/lock"):
            if text := lock.read_text():
                return int(text)
        time.sleep(0.05)
    raise AssertionError(f"{name} has not started within {seconds:.0f} s")


def wait_for_line(log: Path, words: str, process: subprocess.Popen, seconds: float = LONG) -> None:
    until = time.monotonic() + seconds
    while words not in log.read_text():
        assert time.monotonic() < until and process.poll() is None, log.read_text()[-3000:]
        time.sleep(0.1)


@pytest.mark.processes
def test_a_network_from_one_command(tmp_path):
    home, pages = make_home(tmp_path / "home"), make_pages(tmp_path / "data")
    report, figures = tmp_path / "report", tmp_path / "figures.json"
    flags = ["--miners", 2, "--validators", 1, "--windows", 4, "--report", report, "--json", figures]
    done = subprocess.run(command(home, pages, *flags), capture_output=True, text=True, timeout=LONG, cwd=ROOT)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr
    assert not running(home)
    found = json.loads(figures.read_text())
    assert found["state_roots_equal"] and found["windows"] == 4 and not found["failed"]
    assert found["loss"]["last_window"] < found["loss"]["first_window"]
    by_name = {row["name"]: row for row in found["per_uid"]}
    assert [row["uid"] for row in found["per_uid"]] == [0, 1, 2] and by_name["validator-0"]["uid"] == 2
    assert sum(by_name[f"miner-{number}"]["accepted"] for number in range(2)) >= 4
    assert abs(sum(by_name[f"miner-{number}"]["weight"] for number in range(2)) - 1) < 1e-9
    assert '"WeightsSet"' in next(home.glob("net-1/*/validator-0/metrics.jsonl")).read_text()
    page = (report / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 4 and "equal in every window" in page
    assert (report / "weights.png").read_bytes()[:4] == b"\x89PNG"
    assert "window " in done.stdout and "summary  state roots: equal" in done.stdout


@pytest.mark.processes
def test_a_killed_child_is_named_and_the_others_go_on_until_all_are_stopped(tmp_path):
    home, pages, log = make_home(tmp_path / "home"), make_pages(tmp_path / "data"), tmp_path / "log"
    figures = tmp_path / "figures.json"
    flags = ["--miners", 2, "--validators", 0, "--windows", 1000, "--json", figures]
    with localnet(command(home, pages, *flags), log) as process:
        wait_for_line(log, "2 accepted", process)
        victim = pid_of(home, "miner-1", 5)
        os.kill(victim, signal.SIGKILL)
        wait_for_line(log, "miner-1: ended by itself, killed by SIGKILL", process)
        wait_for_line(log, "1 accepted (uid 0)", process)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 1
    assert not running(home)
    found = json.loads(figures.read_text())
    assert found["failed"] == ["miner-1"] and found["state_roots_equal"]
    assert {row["name"]: row["ended"] for row in found["per_uid"]} == {
        "miner-0": "exit 0",
        "miner-1": "killed by SIGKILL",
    }


STARTER = """
import sys, time
from pathlib import Path
from templar_jax.localnet.processes import start
child = start("x", "miner", [sys.executable, "-c", "import time; time.sleep(60)"], Path(sys.argv[1]))
print(child.process.pid, flush=True)
time.sleep(60)
"""


def test_children_end_with_a_parent_that_is_killed(tmp_path):
    command = [sys.executable, "-c", STARTER, str(tmp_path / "log")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        until = time.monotonic() + 30
        while b"child.py" in Path(f"/proc/{child}/cmdline").read_bytes() and time.monotonic() < until:
            time.sleep(0.02)  # not tied yet
        parent.kill()
    until = time.monotonic() + 10
    while alive(child) and time.monotonic() < until:
        time.sleep(0.02)
    assert not alive(child)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_bad_input_is_refused_in_one_line(tmp_path):
    for flags, word in ((["--node.hotkey", "x"], "node.hotkey"), (["--config", "70b"], "memory")):
        refused = subprocess.run(
            [sys.executable, SCRIPT, "--config", "nano", "--node.home", str(tmp_path), *flags],
            capture_output=True,
            text=True,
            timeout=60,
            cwd=ROOT,
        )
        assert refused.returncode == 2
        one_line(refused.stderr, word)
