"""A node's folders and its lock.

HOME/wallet/NAME                hotkey seeds
HOME/data/...                   prepared pages of the default corpus
HOME/jax/                       compiled executables
HOME/RUN/chain.db               the local network of one run (RUN = first 8 digits of its run_id)
HOME/RUN/NAME/                  one node: lock, bucket/, checkpoints/, seals/, metrics.jsonl, loss.png
"""

import fcntl
import os
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from templar_jax.config import NodeConfig, RunConfig
from templar_jax.errors import ConfigError, StoreError
from templar_jax.store.disk import explain, make_folder


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


def claim_home(run: RunConfig, config: NodeConfig) -> Home:
    """Locks the node's folder. With no hotkey named, takes the first of miner-0, miner-1, ... that is free.

    Raises:
      ConfigError: another process runs with the named hotkey; StoreError: the folder is not writable.
    """
    root = Path(config.home).absolute()
    network = root / run.run_id[:8]
    names = [config.hotkey] if config.hotkey else [f"miner-{number}" for number in range(256)]
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
    raise ConfigError(f"256 miners are running in {root}: give this one another --node.home")


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
