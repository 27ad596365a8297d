"""The children of localnet.py: started tied to it, stopped by their own id, and asked for their last words."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from templar_jax.errors import StoreError
from templar_jax.store.disk import explain, make_folder
from templar_jax.telemetry.text import printable

CHILD = Path(__file__).with_name("child.py")
POLL_SECONDS = 0.1
TAIL_BYTES = 4096  # of a log, in which its last lines stand
# One process must not take all of a GPU's memory from the others.
SHARED_GPU = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}


@dataclass(frozen=True)
class Child:
    """One process that was started here."""

    name: str
    role: str  # "miner", "validator", "measure", "store"
    log: Path  # what it prints
    process: subprocess.Popen

    @property
    def code(self) -> int | None:
        """Exit code, negative for a signal; None while it lives."""
        return self.process.poll()


def start(
    name: str,
    role: str,
    command: Sequence[str],
    log: Path,
    environment: Mapping[str, str] | None = None,
    folder: Path | None = None,
) -> Child:
    """Starts a program in a session of its own, so that Ctrl-C in the terminal reaches only this process.

    Call it in the main thread: the kernel's tie is to the thread that starts.

    Args:
      command: program and arguments; `folder`: where it runs, default here.

    Raises:
      StoreError: the log cannot be written, or the system starts no process.
    """
    make_folder(log.parent)
    tied = [sys.executable, str(CHILD), str(os.getpid()), *command]
    try:
        with log.open("ab") as file:
            process = subprocess.Popen(
                tied,
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env={**SHARED_GPU, **os.environ, **(environment or {})},
                start_new_session=True,
            )
    except OSError as error:
        raise StoreError(explain(error, log)) from error
    return Child(name, role, log, process)


async def stop(children: Iterable[Child], seconds: float) -> list[Child]:
    """SIGTERM to those that live, `seconds` to end in, then SIGKILL. Returns those that had to be killed.

    A cancelled stop kills at once. Only processes of `children` are ever signalled.
    """
    living = [child for child in children if child.code is None]
    for child in living:
        child.process.send_signal(signal.SIGTERM)  # does nothing to a process that has ended meanwhile
    until = time.monotonic() + seconds
    try:
        while any(child.code is None for child in living) and time.monotonic() < until:
            await asyncio.sleep(POLL_SECONDS)
    finally:
        late = [child for child in living if child.code is None]
        kill(late)
    return late


def kill(children: Iterable[Child]) -> None:
    """SIGKILL to those that live, and waits for their end."""
    for child in children:
        if child.code is None:
            child.process.kill()
            child.process.wait()


def ended(code: int) -> str:
    """An exit code in words: "exit 1", "killed by SIGKILL"."""
    if code >= 0:
        return f"exit {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"


def last_words(child: Child, lines: int = 5) -> list[str]:
    """The last lines that it printed."""
    try:
        with child.log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL_BYTES))
            text = file.read().decode(errors="replace")
    except OSError:
        return []
    return [printable(line.rstrip()) for line in text.splitlines() if line.strip()][-lines:]
