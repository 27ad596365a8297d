"""What process 0 announces: every call of an engine's function, by name, with its arguments.

All processes then run the same function on their parts of the same global arrays. An array is named by a number that
each process counts for itself, results in their order; what process 0 has let go of, the others let go of with the
next call. Host arguments (tokens, contributions) travel in the message. One call at a time, each finished before the
next: the order of collectives is the same everywhere.
"""

import io
import pickle
import threading
import weakref
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax.sharding import Mesh

from templar_jax.errors import TemplarError
from templar_jax.hosts.channel import Caller, wait_for_news

Functions = Mapping[str, Callable[..., Any]]


class Announcer:
    """Calls functions on process 0 and, by the channel, on all others."""

    def __init__(self, channel: Caller, known: Functions) -> None:
        self._channel, self._known = channel, known
        self._lock = threading.RLock()  # the node's threads call in any order, the devices must not
        self._numbers: dict[int, int] = {}  # by id of a living array
        self._next = 0
        self._dropped: deque[int] = deque()  # finalizers append, in any thread

    def call(self, name: str, *args: Any, reply: bool = False) -> Any:
        """What `name` returns here. reply: the others send what it returned there."""
        with self._lock:
            dropped = [self._dropped.popleft() for _ in range(len(self._dropped))]
            self._channel.announce(name, dropped, reply, dumps(args, self._numbers))
            try:
                out = jax.block_until_ready(self._known[name](*args))
            except TemplarError:
                raise
            except Exception:
                wait_for_news()
                raise
            for leaf in jax.tree.leaves(out):
                if isinstance(leaf, jax.Array):
                    self._register(leaf)
            return out

    def collect(self, name: str, *args: Any) -> list[Any]:
        """What `name` returns in every process, in their order: host objects, no arrays of devices."""
        with self._lock:
            return [self.call(name, *args, reply=True), *self._channel.replies()]

    def _register(self, array: jax.Array) -> None:
        number, self._next = self._next, self._next + 1
        self._numbers[id(array)] = number
        weakref.finalize(array, self._forget, id(array), number).atexit = False

    def _forget(self, identity: int, number: int) -> None:
        if self._numbers.get(identity) == number:
            del self._numbers[identity]
        self._dropped.append(number)


def dumps(args: Any, numbers: Mapping[int, int]) -> memoryview:
    """Arguments as bytes; device arrays as their numbers, the mesh as itself."""

    class Pickler(pickle.Pickler):
        def persistent_id(self, obj: Any) -> Any:
            if isinstance(obj, jax.Array):
                return "array", numbers[id(obj)]
            return ("mesh", 0) if isinstance(obj, Mesh) else None

    out = io.BytesIO()
    Pickler(out, protocol=5).dump(args)
    return out.getbuffer()


def loads(data: bytes, arrays: Mapping[int, jax.Array], mesh: Mesh) -> Any:
    """The arguments in a process that has these arrays and this mesh."""

    class Unpickler(pickle.Unpickler):
        def persistent_load(self, pid: Any) -> Any:
            kind, number = pid
            return arrays[number] if kind == "array" else mesh

    return Unpickler(io.BytesIO(data)).load()
