"""mine.py as people use it: stopped, started again, three side by side, damaged files. Real processes."""

import signal
import sqlite3
import subprocess
import time
from contextlib import closing
from pathlib import Path

import pytest
from faces import Unnamed, applied, make_home, make_pages, nano, noted, one_line, run_mine
from kills import START_SECONDS, Miner, Roots, wait_for

pytestmark = pytest.mark.processes
BLOCK = 0.5  # seconds
LONG = 120.0  # seconds for anything that takes a few windows


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_pages(tmp_path_factory.mktemp("data"))


def test_three_side_by_side_and_a_night_off(tmp_path, pages):
    home = make_home(tmp_path / "home")
    arguments = [*nano(pages), "--node.checkpoint_every", "1"]
    miners = [Unnamed(home, f"miner-{number}", arguments) for number in range(3)]
    roots = Roots()

    def all_accepted(event: dict) -> bool:
        if applied(event):
            roots.add(event)
        return applied(event) and len(event["accepted"]) == 3

    try:
        miners[0].start()
        wait_for(miners[0], applied, START_SECONDS, "first manifest")
        for miner in miners[1:]:  # the same command again, on the same machine
            miner.start()
            wait_for(miner, lambda event: event["event"] == "NodeStarted", START_SECONDS, "start")
        refused = run_mine(*arguments, "--node.home", home, "--node.hotkey", "miner-1")
        assert refused.returncode == 2
        one_line(refused.stderr, 'the hotkey "miner-1"', "--node.hotkey")
        window = wait_for(miners[0], all_accepted, LONG, "window of all three")["window"]
        for miner in miners[1:]:
            wait_for(miner, lambda event: all_accepted(event) and event["window"] >= window, LONG, "same window")
        assert [miner.end() for miner in miners] == [0, 0, 0]
        for miner in miners:
            _read_rest(miner, roots)
            assert "Traceback" not in miner.log.read_text() and "summary  windows" in miner.log.read_text()
            assert next(home.glob(f"*/{miner.name}/loss.png")).read_bytes()[:4] == b"\x89PNG"

        night = time.time()
        while time.time() < night + 20 * 0.25:  # more than a window of 16 blocks passes without anybody
            time.sleep(0.5)
        newest = max(roots.by_window)
        miners[0].start()

        def later(event: dict) -> bool:  # first come the windows that its own checkpoint does not have yet
            if applied(event):
                roots.add(event)
            return applied(event) and event["window"] > newest + 1 and event["accepted"] == [0]

        wait_for(miners[0], later, LONG, "contribution after the night")
        assert miners[0].end(signal.SIGTERM) == 0
        _read_rest(miners[0], roots)
        assert "starting from the own checkpoint" in miners[0].log.read_text()
    finally:
        for miner in miners:
            miner.stop()


def _read_rest(miner: Miner, roots: Roots) -> None:
    """What it wrote before it ended as asked."""
    miner.process = subprocess.Popen(["sleep", "60"])  # `new_events` wants a living process
    try:
        roots.read(miner)
    finally:
        miner.process.kill()
        miner.process.wait()


def test_stopped_in_the_middle_of_training_it_goes_on_with_the_next_step(tmp_path, pages):
    """A long window (40 s), so that there is time to start again."""
    home = make_home(tmp_path / "home")
    run = "window.blocks 80 window.deadline 70 window.keys 73 window.manifest 75 window.evaluate 3".split()
    run += "inner.steps 1000 data.slots 1 inner.batch 2".split()
    flags = [f"--{word}" if "." in word else word for word in run]
    miner = Unnamed(home, "miner-0", [*nano(pages, BLOCK), *flags])
    try:
        miner.start()
        wait_for(miner, lambda event: event["event"] == "StepDone", START_SECONDS, "first step")
        started = time.monotonic()
        assert miner.end() == 0
        assert time.monotonic() - started < 10
        events = _events(home)
        last = [event for event in events if event["event"] == "StepDone"][-1]
        assert last["step"] < 1000 and events[-1]["event"] == "NodeStopped"

        miner.start()
        first = wait_for(
            miner, lambda event: event["event"] == "StepDone" and event["time"] > last["time"], LONG, "step"
        )
        ready = max(event["time"] for event in _events(home) if noted("starting from")(event))
        due = _genesis(home) + BLOCK * (80 * last["window"] + 68)  # D(w) - 2 blocks
        if ready < due - 5:
            assert (first["window"], first["step"]) == (last["window"], last["step"] + 1)
        else:  # a very busy machine: no time was left, so the next window starts from its beginning
            assert first["window"] > last["window"] and first["step"] == 1
        assert miner.end(signal.SIGTERM) == 0
    finally:
        miner.stop()


def _genesis(home: Path) -> float:
    with closing(sqlite3.connect(next(home.glob("*/chain.db")))) as db:
        return db.execute("SELECT genesis FROM rules").fetchone()[0]


def _events(home: Path) -> list[dict]:
    from templar_jax.telemetry.sinks import read_events

    return list(read_events(next(home.glob("*/miner-0/metrics.jsonl"))))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_while_it_compiles(number, tmp_path, pages):
    home = tmp_path / "home"  # with a compile cache of its own: there is something to compile
    miner = Unnamed(home, "miner-0", nano(pages))
    miner.start()
    wait_for(miner, noted("compiling: "), LONG, "compiling")
    started = time.monotonic()
    assert miner.end(number) == 0
    assert time.monotonic() - started < 5
    text = miner.log.read_text()
    assert "stopped before the first window" in text and "Traceback" not in text


def test_a_truncated_checkpoint_and_a_corrupt_page(tmp_path, pages):
    home = make_home(tmp_path / "home")
    own_pages = tmp_path / "pages"
    subprocess.run(["cp", "-r", pages, own_pages], check=True)
    miner = Unnamed(home, "miner-0", [*nano(own_pages), "--node.checkpoint_every", "1"])
    roots = Roots()
    try:
        miner.start()
        for _ in range(2):
            roots.add(wait_for(miner, applied, START_SECONDS, "manifest"))
        assert miner.end() == 0
        _read_rest(miner, roots)
        newest = sorted(next(home.glob("*/miner-0/checkpoints")).glob("0*"))[-1]
        biggest = max((path for path in newest.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
        biggest.write_bytes(biggest.read_bytes()[: biggest.stat().st_size // 2])

        miner.start()
        warned = wait_for(miner, noted("damaged"), START_SECONDS, "warning")
        assert newest.name in warned["text"] and "passed over" in warned["text"]
        wait_for(miner, noted("starting from the own checkpoint"), LONG, "fall back")

        def contributed(event: dict) -> bool:
            if applied(event):
                roots.add(event)  # also of the windows that it applied before: equal, or this fails
            return applied(event) and event["window"] > max(known) and bool(event["accepted"])

        known = list(roots.by_window)
        wait_for(miner, contributed, LONG, "contribution")
        assert miner.end() == 0

        for chunk in (own_pages / "train" / "c").glob("*/0/0"):
            data = bytearray(chunk.read_bytes())
            data[len(data) // 2] ^= 0xFF
            chunk.write_bytes(data)
        miner.start()
        assert miner.process is not None and miner.process.wait(LONG) == 1
        said = miner.log.read_text().splitlines()[-1]
        one_line(said, "training page", "copy", "prepare it again")
        assert "Traceback" not in miner.log.read_text()
    finally:
        miner.stop()


def _fill(path: Path) -> None:
    """Writes until the disk has no room for a byte more."""
    size = 1 << 20
    with path.open("wb", buffering=0) as file:
        while size:
            try:
                if file.write(bytes(size)) < size:
                    size //= 2
            except OSError:
                size //= 2


def test_a_disk_that_fills_up_in_the_middle(tmp_path, pages):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    miner = Unnamed(make_home(disk / "home"), "miner-0", nano(pages))
    miner.log = tmp_path / "log"
    roots, before = Roots(), {}
    try:
        miner.start()
        for _ in range(2):
            before = wait_for(miner, applied, START_SECONDS, "manifest")
            roots.add(before)
        _fill(disk / "fill")
        assert miner.process is not None and miner.process.wait(LONG) == 1
        said = [line for line in miner.log.read_text().splitlines() if line.startswith("mine.py:")]
        assert len(said) == 1 and ("no space left" in said[0] or "disk full" in said[0]), said
        assert "Traceback" not in miner.log.read_text()

        _fill(disk / "more")  # what the end of a process gave back
        full = run_mine(*nano(pages), "--node.home", disk / "home")
        assert full.returncode == 1
        one_line(full.stderr, "no space left")

        (disk / "fill").unlink()
        (disk / "more").unlink()
        miner.start()

        def goes_on(event: dict) -> bool:
            if applied(event):
                roots.add(event)  # what it applies again has the roots that it had
            return applied(event) and event["outer_step"] > before["outer_step"] + 1 and event["accepted"] == [0]

        wait_for(miner, goes_on, LONG, "contribution")
        assert miner.end() == 0
    finally:
        miner.stop()
        subprocess.run(["umount", "-l", disk], check=False)
