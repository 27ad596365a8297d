"""A node's folders and its lock.

HOME/wallet/NAME                hotkey seeds
HOME/data/...                   prepared pages of the default corpus
HOME/jax/                       compiled executables
HOME/RUN/chain.db               the local network of one run (RUN = first 8 digits of its run_id)
HOME/RUN/NAME/                  one node: lock, bucket/, checkpoints/, seals/, evidence/, metrics.jsonl, loss.png
"""

import fcntl
import os
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from templar_jax.config import NodeConfig, RunConfig
from templar_jax.errors import ConfigError, StoreError
from templar_jax.store.disk import explain, make_folder, write_file
from templar_jax.store.open import file_locator

RUN_DIGITS = 8  # of a run_id in the name of its folder
PROBE_BYTES = 1 << 16  # a disk that is full takes an empty file all the same


@dataclass(frozen=True)
class Home:
    """The folders of one locked node. Keep `lock` open as long as the node lives."""

    root: Path
    name: str
    network: Path
    node: Path
    lock: IO[str]

    @property
    def wallet(self) -> Path:
        return self.root / "wallet" / self.name

    @property
    def metrics(self) -> Path:
        return self.node / "metrics.jsonl"

    @property
    def evidence(self) -> Path:
        return self.node / "evidence"


def check_home(config: NodeConfig) -> Path:
    """The home folder, made and tried before minutes go by: writable, and short enough for a locator on the chain.

    Raises:
      ConfigError: no folder named, or its path is too long; StoreError: it cannot be made or written.
    """
    if not config.home:
        raise ConfigError("node.home is empty: name a folder, e.g. --node.home .templar")
    root = Path(config.home).expanduser().absolute()
    if not config.network.bucket:
        file_locator(root / ("0" * RUN_DIGITS) / (config.hotkey or "validator-0") / "bucket")
    make_folder(root)
    write_file(root / f".probe-{os.getpid()}", [bytes(PROBE_BYTES)])
    (root / f".probe-{os.getpid()}").unlink(missing_ok=True)
    return root


def claim_home(run: RunConfig, config: NodeConfig, root: Path, kind: str = "miner") -> Home:
    """Locks the node's folder. With no hotkey named, takes the first of KIND-0, KIND-1, ... that is free.

    Args:
      root: from `check_home`.

    Raises:
      ConfigError: another process runs with the named hotkey; StoreError: the folder is not writable.
    """
    network = root / run.run_id[:RUN_DIGITS]
    names = [config.hotkey] if config.hotkey else [f"{kind}-{number}" for number in range(256)]
    for name in names:
        folder = network / name
        make_folder(folder)
        lock = _lock(folder / "lock")
        if lock is not None:
            return Home(root, name, network, folder, lock)
    if config.hotkey:
        raise ConfigError(
            f'another process is running with the hotkey "{config.hotkey}" in {root}: stop it, '
            "or give this one another name with --node.hotkey"
        )
    raise ConfigError(f"256 {kind}s are running in {root}: give this one another --node.home")


def _lock(path: Path) -> IO[str] | None:
    """An exclusively locked file, or None if another process holds it."""
    try:
        file = open(path, "a+")  # noqa: SIM115 - stays open as long as the node lives
    except OSError as error:
        raise StoreError(explain(error, path)) from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    file.seek(0)
    file.truncate()
    file.write(str(os.getpid()))
    file.flush()
    return file
