"""Three of the kills of `kills.py`: SIGKILL while training, between seal and reveal, while a checkpoint is written."""

import random
from pathlib import Path

import kills
import pytest


@pytest.mark.processes
def test_a_killed_miner_comes_back_to_the_signed_root_and_contributes(tmp_path: Path, capsys: pytest.CaptureFixture):
    draw = random.Random(7)
    with kills.miners(tmp_path, ["victim", "neighbour"], kills.ARGUMENTS) as (victim, neighbour):
        roots = kills.Roots()
        done = [
            kills.kill_once(victim, neighbour, roots, phase, draw.uniform(0, 0.2))
            for phase in ("train", "commit", "checkpoint")
        ]
    assert [kill.phase for kill in done] == ["train", "commit", "checkpoint"]
    assert all(kill.restored for kill in done)
    assert len(roots.by_window) >= 6  # windows that both nodes applied, with equal roots
