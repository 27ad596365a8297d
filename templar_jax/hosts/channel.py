"""The channel on which process 0 tells the others what to compute, and on which each notices that another is gone.

One authenticated TCP connection from every other process to process 0, on the port after the coordinator's. Not a
broadcast on the devices: who waits for minutes inside a collective runs into its time limit, and cannot notice that
process 0 is gone. A connection of a process that dies is closed by its kernel, so its end is seen at once; a host that
falls silent is missed by JAX's heartbeat (join.py).

Messages are pickled tuples, name first. Both ends are the same program of the same owner and prove that they know
the key; no bytes of a peer's are ever unpickled. The cluster's network must be as private as JAX's own collectives,
which are not encrypted either, need it.
"""

import os
import pickle
import queue
import secrets
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client, Connection, answer_challenge, deliver_challenge
from pathlib import Path
from typing import Any, NoReturn

from templar_jax.config import HostsConfig, NodeConfig
from templar_jax.errors import ConfigError

LOST = 75  # exit code of a process that ends because another is gone
GRACE = 10.0  # seconds that a failed call waits for the news that another process is gone, and process 0 for goodbyes
TICK = 0.2  # seconds after which process 0 looks again who has come


def address(hosts: HostsConfig) -> tuple[str, int]:
    """Where process 0 listens."""
    host, port = hosts.coordinator.rsplit(":", 1)
    return host, int(port) + 1


def key_of(config: NodeConfig) -> bytes:
    """The shared secret; process 0 makes the file on first use. ConfigError where it is missing."""
    hosts = config.hosts
    path = Path(hosts.key) if hosts.key else Path(config.home).expanduser().absolute() / "hosts.key"
    if hosts.index == 0 and not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_suffix(f".{os.getpid()}")
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secrets.token_hex(32))
        draft.rename(path)
    try:
        return bytes.fromhex(path.read_text().strip())
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"host {hosts.index} has no usable key in {path}: copy the file that host 0 made there, "
            "or name it by --node.hosts.key"
        ) from error


def lost_line(index: int, hosts: HostsConfig) -> str:
    """What to say when another process is gone."""
    return (
        f"host {index} of {hosts.count} was lost, so this host ({hosts.index}) ends: "
        "start all hosts again, they go on from the last checkpoint"
    )


def end_lost(text: str) -> NoReturn:
    """Ends the process now: its other threads may wait in a collective that never ends."""
    print(f"{Path(sys.argv[0]).name}: {text}", file=sys.stderr, flush=True)
    sys.stdout.flush()
    os._exit(LOST)


@dataclass(frozen=True)
class Hello:
    """What a process must have in common with process 0."""

    run_id: str  # with the data's hash in it
    settings: str  # those that shape executables
    folder: str  # of the node under its home, which all hosts share
    jax: str  # its version

    def differs(self, other: "Hello") -> str:
        """What is not the same, for the user; empty: all is."""
        for what, mine, theirs in (
            ("run or data", self.run_id, other.run_id),
            ("settings", self.settings, other.settings),
            ("home folder", self.folder, other.folder),
            ("version of jax", self.jax, other.jax),
        ):
            if mine != theirs:
                return f"another {what}: {theirs}, host 0 has {mine}"
        return ""


class Caller:
    """Process 0's end: a connection to every other process."""

    def __init__(self, config: NodeConfig) -> None:
        self.hosts, self._key = config.hosts, key_of(config)
        try:
            self._listener = socket.create_server(address(self.hosts))
        except OSError as error:
            raise ConfigError(
                f"node.hosts.coordinator {self.hosts.coordinator}: the port after it: {error}: "
                "free it or choose another"
            ) from error
        self._admitting = threading.Lock()
        self._others: dict[int, Connection] = {}
        self._replies: dict[int, queue.SimpleQueue[Any]] = {}
        self._sending = threading.Lock()
        self._ending = False
        self.stop: Callable[[], None] = lambda: None  # called when one of the others was asked to stop

    def gather(self, seconds: float) -> None:
        """Waits for all others; from then on the end of any of them ends this process.

        Raises ConfigError: some did not come within `seconds`.
        """
        deadline = time.monotonic() + seconds
        with self._listener:  # closed when all are there
            while missing := self._missing():
                left = deadline - time.monotonic()
                if left <= 0:
                    raise ConfigError(
                        f"host {', '.join(map(str, missing))} of {self.hosts.count} did not come to host 0 at "
                        "{}:{} within {:.0f} s: ".format(*address(self.hosts), seconds)
                        + "see what it says, whether it reaches that port, and start all hosts again"
                    )
                self._listener.settimeout(min(left, TICK))
                try:
                    caller, _ = self._listener.accept()
                except TimeoutError:
                    continue
                caller.setblocking(True)
                threading.Thread(target=self._admit, args=(Connection(caller.detach()),), daemon=True).start()
        for index, connection in sorted(self._others.items()):
            self._replies[index] = queue.SimpleQueue()
            threading.Thread(target=self._watch, args=(index, connection), daemon=True).start()

    def _missing(self) -> list[int]:
        return [index for index in range(1, self.hosts.count) if index not in self._others]

    def _admit(self, connection: Connection) -> None:
        """On a thread of its own: who stays silent here keeps nobody waiting."""
        try:
            deliver_challenge(connection, self._key)
            answer_challenge(connection, self._key)
            index = connection.recv()
        except (AuthenticationError, AssertionError, OSError, EOFError):  # without the key, no host, or gone again
            connection.close()
            return
        with self._admitting:
            if index in self._missing():
                self._others[index] = connection
            else:
                connection.close()

    def meet(self, hello: Hello) -> None:
        """Compares what all must have in common. Raises ConfigError."""
        self.send("hello", hello)
        for index, theirs in zip(sorted(self._others), self.replies(), strict=True):
            if isinstance(theirs, str):
                raise ConfigError(f"host {index}: {theirs}")
            if difference := hello.differs(theirs):
                raise ConfigError(f"host {index} has {difference}: start all with the same settings")

    def _watch(self, index: int, connection: Connection) -> None:
        try:
            while True:
                kind, value = connection.recv()
                if kind == "stop":
                    self.stop()
                else:
                    self._replies[index].put(value)
        except (EOFError, OSError):
            if not self._ending:
                if self._sending.acquire(timeout=1.0):
                    self._send(pickle.dumps(("lost", index)))
                end_lost(lost_line(index, self.hosts))
            self._replies[index].put(None)  # its goodbye

    def send(self, *message: Any) -> None:
        with self._sending:
            self._send(pickle.dumps(message))

    def announce(self, name: str, dropped: list[int], reply: bool, args: memoryview) -> None:
        """A call. Its arguments, which may be gigabytes, are sent as they are."""
        with self._sending:
            self._send(pickle.dumps(("call", name, dropped, reply)), args)

    def _send(self, *parts: bytes | memoryview) -> None:
        for connection in self._others.values():
            try:
                for part in parts:
                    connection.send_bytes(part)
            except OSError:  # its watcher says so
                continue

    def replies(self) -> list[Any]:
        """One from each of the others, in their order. Ends when one of them is gone, as the process does."""
        return [self._replies[index].get() for index in sorted(self._replies)]

    def end(self, code: int) -> None:
        """The others end with this exit code; waits a moment for it, for process 0 holds JAX's coordinator."""
        self._ending = True
        self.send("end", code)
        deadline = time.monotonic() + GRACE
        for goodbye in self._replies.values():
            try:
                while goodbye.get(timeout=max(0.0, deadline - time.monotonic())) is not None:
                    continue
            except queue.Empty:
                return


class Listening:
    """The end of a process that is not process 0."""

    def __init__(self, config: NodeConfig) -> None:
        self.hosts = config.hosts
        try:
            self._connection = Client(address(self.hosts), authkey=key_of(config))
        except (AuthenticationError, OSError, EOFError) as error:
            where = "{}:{}".format(*address(self.hosts))
            raise ConfigError(
                f"host 0 does not take this host in at {where} ({error}): is the key the same?"
            ) from error
        self._connection.send(self.hosts.index)
        self._sending = threading.Lock()

    def receive(self) -> tuple[Any, ...]:
        """The next message, a call's arguments last. Ends the process where process 0, or by it another, is gone."""
        try:
            message = pickle.loads(self._connection.recv_bytes())
            if message[0] == "call":
                message += (self._connection.recv_bytes(),)
        except (EOFError, OSError):
            end_lost(lost_line(0, self.hosts))
        if message[0] == "lost":
            end_lost(lost_line(message[1], self.hosts))
        return message

    def reply(self, value: Any) -> None:
        self._send("reply", value)

    def ask_to_stop(self) -> None:
        self._send("stop", None)

    def _send(self, kind: str, value: Any) -> None:
        with self._sending:
            try:
                self._connection.send((kind, value))
            except OSError:  # the thread that receives says so
                wait_for_news()


def wait_for_news() -> None:
    """Leaves a moment to the thread that knows why a collective failed, and ends the process then."""
    time.sleep(GRACE)
