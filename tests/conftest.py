"""What every test stands on: eight CPU devices, one compile cache for all workers, and reproducible hypothesis.

Nothing here may touch a JAX backend: the device count is fixed by the first use.
"""

from pathlib import Path

import hypothesis
import jax
import pytest

ROOT = Path(__file__).resolve().parent.parent
DEVICES = 8

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", DEVICES)
# Shared by all xdist workers and kept between runs; its keys hold the versions of jaxlib and XLA's flags.
jax.config.update("jax_compilation_cache_dir", str(ROOT / ".pytest_cache" / "jax"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)

hypothesis.settings.register_profile(
    "suite",
    derandomize=True,  # the same examples on every machine and in every order
    database=None,
    deadline=None,
    max_examples=20,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.register_profile("long", parent=hypothesis.settings.get_profile("suite"), max_examples=500)
hypothesis.settings.load_profile("suite")


@pytest.fixture(scope="session")
def devices() -> list[jax.Device]:
    """The eight CPU devices. A test on a smaller mesh passes `devices[:n]` to `sharding.make_mesh`."""
    found = jax.devices()
    assert len(found) == DEVICES, f"{len(found)} devices: some module used JAX at import, before conftest.py"
    return found


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """tests/data: reference vectors and golden values."""
    return ROOT / "tests" / "data"


@pytest.fixture(autouse=True)
def _home_is_temporary(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test writes to the home folder (the chain's SDK caches runtimes there)."""
    home = tmp_path_factory.getbasetemp() / "home"
    home.mkdir(exist_ok=True)
    monkeypatch.setenv("BITTENSOR_RUNTIME_CACHE_DIR", str(home / "bittensor"))
