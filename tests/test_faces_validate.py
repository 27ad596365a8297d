"""validate.py as people use it: beside a miner, killed, started again, and its history recomputed. Real processes."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from faces import make_home, make_pages, nano, one_line
from kills import ROOT, START_SECONDS, Miner, Roots, wait_for

from templar_jax.incentive.config import IncentiveConfig
from templar_jax.incentive.rules import rules
from templar_jax.node.records import DiskRecords
from templar_jax.node.validator import remember

SCRIPT = str(ROOT / "scripts" / "validate.py")
LONG = 120.0  # seconds for anything that takes a few windows


def validate(*arguments: object, timeout: float = 60) -> subprocess.CompletedProcess:
    command = [sys.executable, SCRIPT, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, cwd=ROOT)


class Validator(Miner):
    def __init__(self, home: Path, name: str, arguments: list[str]) -> None:
        super().__init__(home, name, arguments)
        self._command[1] = SCRIPT


def scored(event: dict) -> bool:
    return event["event"] == "Scored" and event["evaluated"] == 1


@pytest.mark.processes
def test_beside_a_miner_killed_and_replayed(tmp_path):
    home, pages = make_home(tmp_path / "home"), make_pages(tmp_path / "data")
    arguments = [*nano(pages, 0.5), "--node.checkpoint_every", "1"]
    validator, miner = Validator(home, "validator-0", arguments), Miner(home, "miner-0", arguments)
    roots = Roots()
    try:
        validator.start()
        wait_for(validator, lambda event: event["event"] == "NodeStarted", START_SECONDS, "start")
        miner.start()
        first = wait_for(validator, scored, START_SECONDS, "scored window")["window"]
        wait_for(validator, lambda event: event["event"] == "WeightsSet", LONG, "weights")
        validator.kill()
        miner.stop()
        for one in (validator, miner):
            log = one.log.read_text()
            assert "Traceback" not in log and "report this" not in log, log[-3000:]
    finally:
        miner.stop()
        validator.stop()
    for node in ("validator-0", "miner-0"):
        for line in next(home.glob(f"*/{node}/metrics.jsonl")).read_text().splitlines():
            if (event := json.loads(line))["event"] == "ManifestApplied":
                roots.add(event)
    folder = next(home.glob("*/validator-0"))
    figures = tmp_path / "replay.json"
    replayed = validate("--replay", folder, "--json", figures)
    assert replayed.returncode == 0 and "equal" in replayed.stdout, replayed.stderr
    windows = json.loads(figures.read_text())["windows"]
    assert first in [window["window"] for window in windows] and windows[-1]["weights"]
    kept = remember(DiskRecords(folder / "evidence"), rules("default"), IncentiveConfig())  # as its next start would
    assert kept.link == windows[-1]["link"] and kept.state.window == windows[-1]["window"]

    line = sorted((folder / "evidence").glob("*.jsonl"))[-1]
    line.write_bytes(re.sub(rb'"beta":[0-9.]+', b'"beta":0.5', line.read_bytes(), count=1))
    changed = validate("--replay", folder)
    assert changed.returncode == 1 and "DIFFERENT in 1 windows" in changed.stderr


def test_bad_input_is_refused_in_one_line(tmp_path):
    nothing = validate("--replay", tmp_path)
    assert nothing.returncode == 1
    one_line(nothing.stderr, "no records")
    poor = validate("--stake", "0")
    assert poor.returncode == 2
    one_line(poor.stderr, "--stake")
