"""Every module of the package imports alone, and none of them touches a JAX backend while doing so."""

import pkgutil
import subprocess
import sys

import templar_jax

CODE = """
import importlib, sys
import jax
from jax._src import xla_bridge
for name in sys.argv[1:]:
    importlib.import_module(name)
    assert not xla_bridge.backends_are_initialized(), f"importing {name} started a JAX backend"
"""


def modules() -> list[str]:
    return sorted(m.name for m in pkgutil.walk_packages(templar_jax.__path__, "templar_jax."))


def test_importing_any_module_starts_no_jax_backend():
    done = subprocess.run([sys.executable, "-c", CODE, *modules()], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]


def test_eight_devices(devices):
    assert {device.platform for device in devices} == {"cpu"}
