"""A miner in two processes computes what one process with as many devices does, and leaves it a checkpoint.

The two keep everything that they can in pinned host memory, the one nothing: no bit depends on that.
"""

import pickle
import subprocess
import sys
from pathlib import Path

import hosts_worker
import jax
import numpy as np
import pytest
from corpus import small_pages
from hosts_ports import free_ports
from kills import ROOT

from templar_jax.store.checkpoint_orbax import OrbaxCheckpoints

pytestmark = pytest.mark.processes
SECONDS = 200.0  # for everything that two processes do in a test, on a busy machine
EXACT = (
    "root of theta_0",
    "salted root",
    "contributions",
    "root after two outer steps",
    "root of the momentum",
    "root of the error feedback",
    "cursor",
)


def test_two_processes_compute_what_one_does(tmp_path: Path):
    pages = small_pages(tmp_path)
    command = [sys.executable, str(ROOT / "tests" / "hosts_worker.py"), str(free_ports()), "2"]
    logs = [tmp_path / f"log-{index}" for index in range(2)]
    started = []
    try:
        for index, log in enumerate(logs):
            with log.open("w") as out:
                arguments = [*command, str(index), str(tmp_path)]
                started.append(subprocess.Popen(arguments, stdout=out, stderr=subprocess.STDOUT, cwd=ROOT))
        engine = hosts_worker.build(hosts_worker.run_of())
        alone = hosts_worker.window(engine, pages)
        codes = [process.wait(SECONDS) for process in started]
    finally:
        for process in started:
            process.kill()
            process.wait()
    assert codes == [0, 0], "\n".join(log.read_text() for log in logs)
    together = pickle.loads((tmp_path / "found.pickle").read_bytes())
    assert together["rows"] == [0, 1]  # of four: each process makes half of every batch
    for name in EXACT:
        assert together[name] == alone.found[name], name
    # Sums over devices and sequences are added in another order between processes than within one.
    np.testing.assert_allclose(together["nats"], alone.found["nats"], rtol=1e-6)
    np.testing.assert_allclose(together["losses"], alone.found["losses"], rtol=1e-5)

    # The checkpoint of both comes back in both, and on the mesh of one process.
    assert together["restored"] == (together["root trained"], together["root of the error feedback"])
    checkpoints = OrbaxCheckpoints(tmp_path / "checkpoints")
    restored, notes = checkpoints.restore(engine.run.run_id, engine.like, alone.private)
    checkpoints.close()
    assert restored is not None and not notes
    assert engine.root(restored.public) == together["root trained"]
    assert engine.root(restored.private["feedback"]) == together["root of the error feedback"]
    for name, array in alone.params.items():
        np.testing.assert_allclose(restored.public[name], array, atol=2e-5, err_msg=name)
    moments = [jax.tree.leaves(private["opt"]) for private in (restored.private, alone.private)]
    for ours, theirs in zip(*moments, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-6)
