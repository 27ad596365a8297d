"""SIGKILLs a miner again and again beside one that is never killed, on a local network of real processes.

    python tests/kills.py --kills 20 --seed 1 --json kills.json

After every kill the miner is started again and must (1) reach the state root of its neighbour in some window after
the kill and (2) have a contribution of a later window accepted. Moments are drawn from the phases of a window and a
random delay within them. The suite runs three of them (test_node_kills.py).
"""

import argparse
import json
import random
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PHASES = ("train", "compress", "seal", "commit", "reveal", "wait", "lead", "apply", "checkpoint")
START_SECONDS = 120.0  # a start compiles, or reads the compile cache
RECOVER_SECONDS = 120.0
ARGUMENTS = ["--config", "nano", "--node.checkpoint_every", "2", "--node.mesh.cpu_devices", "1"]


@dataclass(frozen=True)
class Kill:
    """One kill and what came of it. Seconds are from the kill."""

    phase: str
    delay: float
    window: int
    equal_root_after: float
    accepted_after: float
    restored: str  # what the node said that it started from


class Miner:
    """One `mine.py` process and the events that it writes."""

    def __init__(self, home: Path, name: str, arguments: list[str]) -> None:
        self.home, self.name = home, name
        self._command = [sys.executable, str(ROOT / "scripts/mine.py"), *arguments]
        self._command += ["--node.home", str(home), "--node.hotkey", name]
        self.log = home / f"{name}.log"
        self.process: subprocess.Popen | None = None
        self._read = 0
        self._waiting: deque[dict] = deque()

    def start(self) -> None:
        self.home.mkdir(parents=True, exist_ok=True)
        with self.log.open("a") as log:
            self.process = subprocess.Popen(self._command, stdout=log, stderr=subprocess.STDOUT, cwd=ROOT)

    def kill(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.kill()

    def new_events(self) -> Iterator[dict]:
        """Every event once, also where a caller stops in the middle of them; a half-written last line waits."""
        self._waiting.extend(self._written())
        while self._waiting:
            yield self._waiting.popleft()

    def _written(self) -> Iterator[dict]:
        assert self.process is not None
        if self.process.poll() not in (None, -signal.SIGKILL):
            raise AssertionError(f"{self.name} ended by itself:\n{self.log.read_text()[-3000:]}")
        metrics = next(self.home.glob(f"*/{self.name}/metrics.jsonl"), None)  # under the folder of the run
        if metrics is None:
            return
        with metrics.open("rb") as file:
            file.seek(self._read)
            data = file.read()
        whole = data[: data.rfind(b"\n") + 1]
        self._read += len(whole)
        for line in whole.splitlines():
            if line.strip():
                try:
                    yield json.loads(line)
                except ValueError:  # a line that a kill cut in half
                    continue


def wait_for(miner: Miner, wanted: Callable[[dict], bool], seconds: float, what: str) -> dict:
    """The first new event that is `wanted`; AssertionError when none comes in time."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        for event in miner.new_events():
            if wanted(event):
                return event
        time.sleep(0.02)
    raise AssertionError(f"{miner.name}: no {what} within {seconds:.0f} s:\n{miner.log.read_text()[-3000:]}")


class Roots:
    """State root of the network after each window, as one node applied it; two nodes must never differ."""

    def __init__(self) -> None:
        self.by_window: dict[int, str] = {}

    def add(self, event: dict) -> None:
        """Takes a ManifestApplied in."""
        known = self.by_window.setdefault(event["window"], event["root"])
        assert known == event["root"], f"window {event['window']}: roots {known} and {event['root']} differ"

    def read(self, miner: Miner) -> None:
        for event in miner.new_events():
            if event["event"] == "ManifestApplied":
                self.add(event)


@contextmanager
def miners(home: Path, names: list[str], arguments: list[str]) -> Iterator[list[Miner]]:
    """Started one after the other (the first makes the network), all stopped at the end."""
    started = [Miner(home, name, arguments) for name in names]
    try:
        for miner in started:
            miner.start()
            wait_for(miner, lambda event: event["event"] == "ManifestApplied", START_SECONDS, "first manifest")
        yield started
    finally:
        for miner in started:
            miner.stop()


def kill_once(victim: Miner, neighbour: Miner, roots: Roots, phase: str, delay: float) -> Kill:
    """Kills `victim` `delay` seconds into its next `phase`, starts it again, and sees it recover."""

    def in_phase(event: dict) -> bool:
        if event["event"] == "ManifestApplied":
            roots.add(event)
        return event["event"] == "PhaseStarted" and event["phase"] == phase

    for event in victim.new_events():  # phases that are over
        in_phase(event)
    window = wait_for(victim, in_phase, RECOVER_SECONDS, f"phase {phase}")["window"]
    time.sleep(delay)
    victim.kill()
    killed = time.monotonic()
    for event in victim.new_events():  # what it wrote before it died
        if event["event"] == "ManifestApplied":
            roots.add(event)
    victim.start()
    restored, equal_after, uid = "", 0.0, None

    def recovered(event: dict) -> bool:
        nonlocal restored, equal_after, uid
        roots.read(neighbour)
        if event["event"] == "Noted" and event["text"].startswith("starting from"):
            restored = event["text"]
        if event["event"] == "Registered":
            uid = event["uid"]
        if event["event"] == "ManifestApplied":
            compared = event["window"] in roots.by_window
            roots.add(event)
            if compared and not equal_after and event["window"] >= window:
                equal_after = time.monotonic() - killed
            return event["window"] > window and uid in event["accepted"]
        return False

    wait_for(victim, recovered, RECOVER_SECONDS, f"accepted contribution after a kill in {phase}")
    return Kill(phase, round(delay, 3), window, round(equal_after, 1), round(time.monotonic() - killed, 1), restored)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--home", type=Path, default=Path(".templar-kills"))
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    draw = random.Random(args.seed)
    kills: list[Kill] = []
    with miners(args.home, ["victim", "neighbour"], ARGUMENTS) as pair:
        victim, neighbour = pair
        roots = Roots()
        for number in range(args.kills):
            kill = kill_once(victim, neighbour, roots, PHASES[number % len(PHASES)], draw.uniform(0, 0.3))
            kills.append(kill)
            print(f"{number + 1:3d}  {kill}", flush=True)
    print(f"{len(kills)} kills, {len(roots.by_window)} windows, one history of roots")
    if args.json:
        args.json.write_text(json.dumps([vars(kill) for kill in kills], indent=1))


if __name__ == "__main__":
    main()
