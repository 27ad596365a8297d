"""A miner in two processes: computes what one process with as many devices computes."""

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
    port = free_ports()
    command = [sys.executable, str(ROOT / "tests" / "hosts_worker.py"), str(port), "2"]
    logs = [tmp_path / f"log-{index}" for index in range(2)]
    started = []
    try:
        for index, log in enumerate(logs):
            with log.open("w") as out:
                arguments = [*command, str(index), str(tmp_path)]
                started.append(subprocess.Popen(arguments, stdout=out, stderr=subprocess.STDOUT, cwd=ROOT))
        alone = hosts_worker.window(hosts_worker.build(hosts_worker.run_of()), pages, jax.device_get)
        codes = [process.wait(SECONDS) for process in started]
    finally:
        for process in started:
            process.kill()
            process.wait()
    assert codes == [0, 0], "\n".join(log.read_text() for log in logs)
    together, rows = pickle.loads((tmp_path / "found.pickle").read_bytes())
    assert rows == [0, 1]  # of four: each process makes half of every batch
    for name in EXACT:
        assert together[name] == alone[name], name
    # Sums over devices and sequences are added in another order between processes than within one.
    np.testing.assert_allclose(together["nats"], alone["nats"], rtol=1e-6)
    np.testing.assert_allclose(together["losses"], alone["losses"], rtol=1e-5)
    for name, array in alone["trained"].items():
        np.testing.assert_allclose(together["trained"][name], array, atol=2e-5, err_msg=name)
