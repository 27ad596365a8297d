"""One simulation of the study, and its result as it is committed."""

import functools
import gzip
import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax

import templar_jax
from benchmarks.study import effort
from benchmarks.study.job import Job, Places
from templar_jax.config import NodeConfig, RunConfig
from templar_jax.data.pages import Pages
from templar_jax.incentive.rules import rules
from templar_jax.node import open
from templar_jax.node.engine import Engine
from templar_jax.simulate import facts, pay, report
from templar_jax.simulate.facts import Facts
from templar_jax.simulate.network import simulate
from templar_jax.simulate.setting import machine

RULES = ("default", "v213")
SPAN = 10  # windows over which results are summed
SIMULATED = ("chain", "compress", "config.py", "data", "model", "node", "sharding.py", "simulate", "store", "train")
AFTERWARDS = ("pay.py", "report.py")  # of simulate/: what is made of a simulation when it is over
DIGITS = 5


def versions(job: Job) -> dict[str, str]:
    """What a result depends on: hashes of the code that simulates (with the adversary's class) and of the rules."""
    root = Path(templar_jax.__file__).parent
    after = [root / "simulate" / name for name in AFTERWARDS]
    simulated = [path for name in SIMULATED for path in _sources(root / name) if path not in after]
    return {
        "simulation": _hash(simulated, root),
        "rules": _hash(_sources(root / "incentive"), root),
        "jax": jax.__version__,
    }


def _sources(path: Path) -> list[Path]:
    return sorted(path.rglob("*.py")) if path.is_dir() else [path]


@functools.cache
def _hash_of(paths: tuple[Path, ...], root: Path) -> str:
    total = hashlib.sha256()
    for path in paths:
        total.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes())
    return total.hexdigest()[:16]


def _hash(paths: list[Path], root: Path) -> str:
    return _hash_of(tuple(paths), root)


def run(job: Job, run_config: RunConfig, node: NodeConfig, places: Places) -> Path:
    """Simulates, keeps facts and evidence, writes the result. Returns where it stands."""
    pinned, pages = open.pin_data(run_config, node, lambda text: None)
    record(job, pinned, machine(pinned, node), pages, places)
    return score(job, places)


def record(job: Job, run_config: RunConfig, engine: Engine, pages: Pages, places: Places) -> None:
    """Simulates, and keeps facts and evidence of the first honest validator."""
    started = time.process_time()
    numbers: Any = dict(peers=job.peers, windows=job.windows, seed=job.seed, validators=job.validators)
    outcome = simulate(run_config, engine, pages, attacks=dict(job.attacks), **numbers)
    known = facts.facts(outcome, facts.heldout_loss(outcome))
    judge = next(name for name, role in known.validators.items() if role == "honest")
    lines = outcome.evidence[judge]
    head = {"simulation": versions(job)["simulation"], "cpu_seconds": round(time.process_time() - started, 1)}
    places.evidence.mkdir(parents=True, exist_ok=True)
    places.lines(job).write_bytes(gzip.compress(b"".join(lines), 6, mtime=0))
    places.facts(job).write_text(json.dumps(head) + "\n" + facts.encode(known))


def recorded(job: Job, places: Places) -> tuple[dict[str, Any], Facts, list[bytes]] | None:
    """(head, facts, lines of evidence) of an earlier simulation, if they are there."""
    if not (places.facts(job).exists() and places.lines(job).exists()):
        return None
    head, known = places.facts(job).read_text().split("\n", 1)
    return json.loads(head), facts.decode(known), gzip.decompress(places.lines(job).read_bytes()).splitlines(True)


def score(job: Job, places: Places) -> Path:
    """Applies the rules to what a simulation recorded, and writes the result."""
    found = recorded(job, places)
    assert found is not None
    head, known, lines = found
    made = {"job": asdict(job), "versions": versions(job) | head, **result(known, lines)}
    if effort.is_of(made["job"]):
        made["effort"] = effort.measured(pay.read(lines), known)
    places.out.mkdir(parents=True, exist_ok=True)
    draft = places.result(job).with_suffix(".part")
    draft.write_text(json.dumps(made, separators=(",", ":")) + "\n")
    draft.replace(places.result(job))
    return places.result(job)


def result(known: Facts, lines: list[bytes]) -> dict[str, Any]:
    """What is committed of a simulation: sums over spans of SPAN windows, by peer and by rules."""
    seen = pay.read(lines)
    by_rules = {name: pay.paid(rules(name), seen, known) for name in RULES}
    gaps = {who: _rounded(of, DIGITS) for who, of in pay.gaps(seen, known).items()}
    return {
        "state_roots_equal": known.state_roots_equal,
        "windows": len(known.windows),
        "empty_windows": known.empty_windows,
        "heldout": known.heldout,
        "log_sha256": known.log_sha256,
        "validators": known.validators,
        "alarms": report.count(kind for _, _, kind, _ in known.alarms),
        "gaps": gaps,
        "peers": [
            {
                "node": peer.node,
                "role": peer.role,
                "uids": len(peer.uids),
                "accepted": peer.accepted,
                "refused": peer.refused,
                "steps": _spans(peer.steps),
                "violations": by_rules["default"].violations[peer.node],
                "findings": by_rules["default"].findings[peer.node],
                "pay": {name: _rounded(_spans(each.weights[peer.node]), DIGITS) for name, each in by_rules.items()},
            }
            for peer in known.peers
        ],
    }


def _spans(values: list) -> list:
    """Sums over spans of SPAN windows; the last may be shorter."""
    return [sum(values[first : first + SPAN]) for first in range(0, len(values), SPAN)]


def _rounded(values: list, digits: int) -> list:
    return [None if value is None else round(value, digits) for value in values]


def load(path: Path) -> Mapping[str, Any]:
    return json.loads(path.read_text())
