"""The study end to end: real simulations, what is committed of them, and nothing done twice."""

import dataclasses
import json
from pathlib import Path

import jax
import pytest
from faces import make_pages
from node_network import RUN, open_run

from benchmarks import attacks
from benchmarks.study import effort, queue
from benchmarks.study import run as runs
from benchmarks.study.job import Job, Places
from benchmarks.study.verdict import adversaries_of, honest_of
from templar_jax.config import MeshConfig
from templar_jax.config_load import load
from templar_jax.data.pages import open_pages
from templar_jax.incentive.rules import rules
from templar_jax.node import engine as engines
from templar_jax.sharding import make_mesh
from templar_jax.simulate import facts, pay, report
from templar_jax.simulate.network import simulate
from templar_jax.simulate.zoo.table import ROLES


@pytest.fixture(scope="module")
def studied(tmp_path_factory: pytest.TempPathFactory):
    """One small job, run once: (job, places, its result)."""
    folder = tmp_path_factory.mktemp("study")
    run, engine, pages = open_run(folder)
    job = Job("noise", 1, (("noise", 1),), peers=4, windows=3)
    places = Places(folder / "out", folder / "evidence")
    runs.record(job, run, engine, pages, places)
    return job, places, json.loads(runs.score(job, places).read_text())


def test_a_result_is_small_and_whole(studied):
    job, places, result = studied
    assert places.result(job).stat().st_size < 5_000
    assert result["state_roots_equal"] and result["windows"] == job.windows and 1.0 < result["heldout"] < 8.0
    (other,), workers = adversaries_of(result), honest_of(result)
    assert len(workers) == 3 and all(peer["steps"] == [RUN.inner.steps * job.windows] for peer in workers)
    assert other["role"] == "noise" and other["steps"] == [0] and other["accepted"] == job.windows
    assert all(peer["pay"][name][0] > 0.0 for peer in workers for name in ("default",))
    assert sum(peer["pay"]["default"][0] for peer in result["peers"]) == pytest.approx(job.windows)


def test_nothing_is_run_twice(studied, monkeypatch: pytest.MonkeyPatch):
    job, places, _ = studied
    assert queue.state(job, places, keep=False) == "done"
    assert list(queue.pending([job, dataclasses.replace(job, seed=2)], places, False)) == [
        (dataclasses.replace(job, seed=2), "run")
    ]
    now = runs.versions(job)
    monkeypatch.setattr(runs, "versions", lambda job: {**now, "rules": "changed"})
    assert queue.state(job, places, keep=False) == "score"
    monkeypatch.setattr(runs, "versions", lambda job: {**now, "simulation": "changed"})
    assert queue.state(job, places, keep=False) == "run"
    assert queue.state(job, places, keep=True) == "done"


def test_scoring_again_gives_the_same_result(studied):
    job, places, result = studied
    places.result(job).unlink()
    assert queue.state(job, places, keep=False) == "score"
    assert json.loads(runs.score(job, places).read_text()) == result


def test_every_adversary_is_studied_once_a_seed():
    jobs = attacks.jobs([1, 2], [])
    assert len(jobs) == len(set(jobs)) == 2 * (len(ROLES) + 1)
    assert {job.seed for job in jobs[: len(ROLES) + 1]} == {1}  # an interrupted study has everything once
    (one,) = attacks.jobs([3], ["noise:5"])
    assert one.stem == "noise-x5-3" and one.attacks == (("noise", 5),)


def test_joining_later_removes_who_was_not_there(studied):
    job, places, _ = studied
    found = runs.recorded(job, places)
    assert found is not None
    known, seen = found[1], pay.read(found[2])
    later = effort.joining_later(seen, known, 2)
    residents = {hotkey for hotkey, node in known.owners.items() if node in ("peer-00", "peer-01", "peer-02")}
    assert {peer.peer.hotkey for peer in later[0].peers} <= residents
    assert {peer.peer for peer in later[2].peers} == {peer.peer for peer in seen[2].peers}
    late = next(hotkey for hotkey, node in known.owners.items() if node == "peer-03")
    assert not [p for one in later for p in one.pairs if p.second.hotkey == late and p.second_window < later[2].window]
    weights = pay.paid(rules("default"), later, known).weights
    assert weights["peer-03"][:2] == [0.0, 0.0] and sum(weights["peer-00"]) > 0.0


ATTACKS = {"last-aggregate": 1, "lazy20": 1, "never-opens": 1}


def test_three_attacks_of_twelve_windows(tmp_path: Path):
    """Nano, as a user simulates it: three of nine cheat, each in its own way."""
    run, node = load("nano")
    pages = open_pages(make_pages(tmp_path))
    run = dataclasses.replace(run, data=dataclasses.replace(run.data, manifest=pages.manifest_hash))
    engine = engines.build(run, node.compute, make_mesh(MeshConfig(fsdp=1), jax.devices()[:1]))
    outcome = simulate(run, engine, pages, peers=9, windows=12, seed=1, validators=1, attacks=ATTACKS)
    known = facts.facts(outcome, facts.heldout_loss(outcome))
    assert known.state_roots_equal and not known.empty_windows and not known.alarms
    seen = pay.read(outcome.evidence["validator-0"])
    by_rules = pay.paid(rules("default"), seen, known)
    late = {peer.node: pay.mean(by_rules.weights[peer.node][6:]) for peer in known.peers}
    usual = pay.median(late[peer.node] for peer in known.peers if peer.role == "honest")
    assert max(late[peer.node] for peer in known.peers if peer.role == "never-opens") == 0.0
    assert max(late[peer.node] for peer in known.peers if peer.role == "last-aggregate") < 0.5 * usual
    assert sum(not by_rules.violations[peer.node] for peer in known.peers if peer.role == "honest") == 6
    found = report.figures(outcome)
    assert 0.9 < found["honest_weight_share"] < 1.0 and len(found["per_uid"]) == 9 and found["loss"]["heldout"]
    assert sum(one["compute_share"] for one in found["per_uid"]) == pytest.approx(1.0)
    shares = [pay.mean(by_rules.weights[peer.node]) for peer in known.peers]
    assert [one["weight_share"] for one in found["per_uid"]] == shares
    lazy = [peer.node for peer in known.peers if peer.role == "lazy20"]
    assert pay.mean([late[node] for node in lazy]) < usual
