"""mine.py on two hosts (processes of this machine) beside an ordinary miner: equal roots; a host killed, one silent.

`mine.py` starts a worker and watches it; what is killed and stopped here is the worker of host 1.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from faces import applied, make_home, make_pages, nano, noted, one_line, run_mine
from hosts_ports import free_ports
from kills import ROOT, START_SECONDS, Miner, Roots, wait_for

from templar_jax.hosts.watch import LOST

pytestmark = pytest.mark.processes
LONG = 120.0  # seconds for anything that takes a few windows
SILENCE = 10  # seconds of node.hosts.heartbeat_seconds
ENDS = 60.0  # seconds within which a host ends when another is gone


@dataclass
class Other:
    """Host 1."""

    parent: subprocess.Popen
    log: Path

    @property
    def worker(self) -> int:
        """Process id of the one that computes."""
        return int(Path(f"/proc/{self.parent.pid}/task/{self.parent.pid}/children").read_text().split()[0])

    def end(self) -> None:
        if self.parent.poll() is None:
            for number in (signal.SIGINT, signal.SIGINT):  # the second ends it at once
                self.parent.send_signal(number)
                time.sleep(0.2)
            self.parent.wait(ENDS)


@contextmanager
def two_hosts(home: Path, name: str, arguments: list[str]) -> Iterator[tuple[Miner, Other]]:
    hosts = ["--node.hosts.count", "2", "--node.hosts.coordinator", f"127.0.0.1:{free_ports()}"]
    hosts += ["--node.hosts.heartbeat_seconds", str(SILENCE)]
    first = Miner(home, name, [*arguments, *hosts, "--node.hosts.index", "0"])
    command = [sys.executable, str(ROOT / "scripts" / "mine.py"), *arguments, *hosts, "--node.hosts.index", "1"]
    log = home / f"{name}-host-1.log"
    first.start()
    with log.open("a") as out:
        other = Other(
            subprocess.Popen([*command, "--node.home", str(home)], stdout=out, stderr=subprocess.STDOUT, cwd=ROOT), log
        )
    try:
        yield first, other
    finally:
        first.stop()
        other.end()


def test_two_hosts_beside_an_ordinary_miner_and_one_of_them_lost(tmp_path):
    home, pages = make_home(tmp_path / "home"), make_pages(tmp_path)
    arguments = [*nano(pages), "--model.dim", "128", "--node.mesh.cpu_devices", "1", "--node.checkpoint_every", "1"]
    neighbour, roots = Miner(home, "miner-0", arguments), Roots()

    def both(event: dict) -> bool:
        if applied(event):
            roots.add(event)
        return applied(event) and len(event["accepted"]) == 2

    try:
        neighbour.start()
        wait_for(neighbour, applied, START_SECONDS, "first manifest")
        with two_hosts(home, "pair", arguments) as (pair, other):
            for _ in range(2):
                wait_for(pair, both, START_SECONDS + LONG, "window with the contributions of both miners")
            roots.read(neighbour)
            newest = max(roots.by_window)
            other.parent.send_signal(signal.SIGTERM)  # asked on one host, all stop
            assert [end_of(pair), other.parent.wait(ENDS)] == [0, 0]
            assert "summary  windows" in pair.log.read_text() and "host 0 is done" in other.log.read_text()
        with two_hosts(home, "pair", arguments) as (pair, other):
            wait_for(pair, noted("starting from the own checkpoint"), START_SECONDS, "start from the checkpoint")
            wait_for(pair, lambda e: both(e) and e["window"] > newest, LONG, "window of both after the restart")
            os.kill(other.worker, signal.SIGKILL)
            assert [end_of(pair), other.parent.wait(ENDS)] == [LOST, 128 + signal.SIGKILL]
            assert "host 1 of 2 was lost, so this host (0) ends: start all hosts again" in pair.log.read_text()
            assert "host (1 of 2) was killed by SIGKILL" in other.log.read_text()
        roots.read(neighbour)
        other.log.write_text("")
        with two_hosts(home, "pair", arguments) as (pair, other):
            until(lambda: "computing for host 0" in other.log.read_text(), START_SECONDS)
            silent = other.worker
            os.kill(silent, signal.SIGSTOP)  # its connections stay open: only the heartbeat can miss it
            assert end_of(pair) == LOST
            assert f"silent for {SILENCE} s" in pair.log.read_text()
            os.kill(silent, signal.SIGKILL)
            assert other.parent.wait(ENDS) != 0
        assert "Traceback" not in pair.log.read_text()
    finally:
        neighbour.stop()


def end_of(miner: Miner) -> int:
    """Its exit code, once it has ended."""
    assert miner.process is not None
    return miner.process.wait(ENDS)


def until(happened: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, f"not within {seconds:.0f} s"
        time.sleep(0.05)


def test_a_host_without_the_key_or_the_address_is_told_so(tmp_path):
    home = make_home(tmp_path / "home")
    refused = run_mine("--config", "nano", "--node.home", home, "--node.hosts.count", 2)
    assert refused.returncode == 2
    one_line(refused.stderr, "node.hosts.coordinator", "host:port")
