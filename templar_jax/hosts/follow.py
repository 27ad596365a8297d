"""What a process that is not process 0 does: what it is told, until the end."""

import os
import queue
import threading
import time
from typing import Any

import jax
from jax.sharding import Mesh

from templar_jax.hosts.calls import Functions, loads
from templar_jax.hosts.channel import GRACE, Listening, wait_for_news


def follow(channel: Listening, known: Functions, mesh: Mesh) -> int:
    """Runs every announced call; the exit code that process 0 names at the end.

    A thread reads the channel, so that the end of process 0 is seen also while this one waits in a collective.
    """
    calls: queue.SimpleQueue[tuple[Any, ...]] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(channel, calls), daemon=True).start()
    arrays: dict[int, jax.Array] = {}
    count = 0
    while True:
        kind, *rest = calls.get()
        if kind == "end":
            return rest[0]
        name, dropped, reply, data = rest
        for number in dropped:
            del arrays[number]
        args = loads(data, arrays, mesh)
        try:
            out = jax.block_until_ready(known[name](*args))
        except Exception:  # process 0 has it too, or is gone: the reading thread knows
            wait_for_news()
            raise
        for leaf in jax.tree.leaves(out):
            if isinstance(leaf, jax.Array):
                arrays[count] = leaf
                count += 1
        if reply:
            channel.reply(out)
        del args, data, out  # what process 0 lets go of must not live on here


def _read(channel: Listening, calls: "queue.SimpleQueue[tuple[Any, ...]]") -> None:
    while True:
        message = channel.receive()
        calls.put(message)
        if message[0] == "end":
            time.sleep(GRACE / 2)  # the call before it may wait for process 0, which no longer takes part
            os._exit(message[1])
