"""The compile cache outlives the process, the listener sees it, and huge pages are asked for."""

import os
import subprocess
import sys

import jax
import pytest

from templar_jax.train.compiles import counting

PROGRAM = """
import sys
from pathlib import Path
from templar_jax.host import huge_pages
huge_pages()
import jax
from templar_jax.train.compiles import counting, enable_compile_cache
jax.config.update("jax_platforms", "cpu")
enable_compile_cache(Path(sys.argv[1]) / "new" / "cache")
with counting() as compiles:
    jax.jit(lambda x: x * 2 + 1)(jax.numpy.arange(5.0))
import os
print(compiles.count, compiles.hits, os.environ.get("GLIBC_TUNABLES"))
"""


def test_compile_cache_serves_the_next_process(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    env = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
    out = [
        subprocess.run(
            [sys.executable, program, tmp_path], env=env, capture_output=True, text=True, timeout=120, check=True
        ).stdout.split()
        for _ in range(2)
    ]
    (made, no_hits, tunables), (loaded, hits, _) = out
    assert made == loaded == hits != "0" and no_hits == "0"
    if sys.platform == "linux":
        assert tunables == "glibc.malloc.hugetlb=1"


def test_the_listener_counts_only_while_attached():
    double = jax.jit(lambda x: x * 2)
    with counting() as compiles:
        double(1.0)
        double(2.0)
    assert compiles.count == 1 and compiles.seconds > 0
    with counting() as none:
        double(3.0)
    double(jax.numpy.ones(7))
    assert none.count == 0 and compiles.count == 1


def test_the_listener_goes_when_the_block_raises():
    with pytest.raises(ValueError), counting() as compiles:
        raise ValueError
    jax.jit(lambda x: x - 1)(1.0)
    assert compiles.count == 0
