"""simulate.py: what it refuses, and the figures of a story that is small enough to count by hand."""

import subprocess
import sys
from pathlib import Path

import pytest

from templar_jax.config import RunConfig, WindowConfig
from templar_jax.errors import ConfigError
from templar_jax.simulate.network import Entry, Outcome
from templar_jax.simulate.report import figures
from templar_jax.simulate.setting import attacks, check_simulated
from templar_jax.telemetry.events import Alarm, ManifestApplied, Registered, StepDone

ROOT = Path(__file__).resolve().parent.parent


def story(second_root: str) -> Outcome:
    step = StepDone(1, 1, 1, 4.0, 1.0, 1.0, 0.1)
    log = [
        Entry(1.0, "a", Registered(0)),
        Entry(1.0, "b", Registered(1)),
        Entry(2.0, "a", step),
        Entry(2.0, "b", StepDone(1, 1, 1, 6.0, 1.0, 1.0, 0.1)),
        Entry(3.0, "a", ManifestApplied(1, 1, (0,), ((1, "no-key"),), "aa")),
        Entry(3.0, "b", ManifestApplied(1, 1, (0,), ((1, "no-key"),), second_root)),
        Entry(4.0, "a", Alarm(1, "two-manifests", 1, "blocks 1 and 2")),
    ]
    return Outcome(tuple(log), (), {"a": "honest", "b": "noise"}, {"5A": "a", "5B": "b"})


def test_figures_count_each_window_once():
    found = figures(story("aa"))
    assert found["state_roots_equal"] and found["windows"] == 1 and found["alarms"] == 1 and found["events"] == 7
    assert found["loss"] == {"first_window": 5.0, "last_window": 5.0, "heldout": None}
    kept = ("node", "uid", "role", "accepted", "refused_reasons", "compute_share")
    assert [tuple(one[name] for name in kept) for one in found["per_uid"]] == [
        ("a", 0, "honest", 1, {}, 0.5),
        ("b", 1, "noise", 0, {"no-key": 1}, 0.5),
    ]
    assert found["honest_weight_share"] is None  # without a validator nobody is paid


def test_two_roots_of_one_window_are_told():
    assert not figures(story("bb"))["state_roots_equal"]
    assert not figures(Outcome((), ()))["state_roots_equal"]  # nothing happened: nothing was equal


def test_attacks_are_read_and_refused_in_one_line():
    assert attacks(["honest:2", "honest", "noise"], 4) == {"honest": 3, "noise": 1}
    for words, line in ((["honst:1"], "did you mean honest"), (["honest:x"], "NAME:COUNT"), (["honest:5"], "--peers")):
        with pytest.raises(ConfigError, match=line):
            attacks(words, 4)


def test_settings_that_cannot_be_simulated_are_refused():
    with pytest.raises(ConfigError, match="manifest"):
        check_simulated(RunConfig(window=WindowConfig(blocks=40, deadline=28, keys=29, manifest=29)), 2)
    with pytest.raises(ConfigError, match="data.slots"):
        check_simulated(RunConfig(), 17)


@pytest.mark.parametrize("flags", [["--peers", "0"], ["--attack", "nobody:1"], ["--peers", "900"]])
def test_the_script_ends_with_one_line_and_code_2(flags: list[str], tmp_path: Path):
    command = [sys.executable, str(ROOT / "scripts/simulate.py"), *flags, "--node.home", str(tmp_path / "home")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and len(done.stderr.strip().splitlines()) == 1, done.stderr
