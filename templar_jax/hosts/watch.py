"""The parent of a process that is one of several hosts: it outlives whatever ends that one, and says what happened.

Where a host falls silent, JAX aborts the processes of all others from C++: no exception, no cleanup. This small process
has no JAX in it. It passes the user's signals on, waits, and turns the exit code into one clear line.
"""

import os
import signal
import subprocess
import sys
import threading
from types import FrameType

from templar_jax.config import HostsConfig
from templar_jax.hosts.channel import LOST

WORKER = "TEMPLAR_HOSTS_WORKER"  # in the worker's environment: the pipe whose end is the parent's
AT_ONCE = 130  # exit code after a second signal
SIGNALS = signal.SIGINT, signal.SIGTERM


def is_worker() -> bool:
    """True in the process that `watch` started. From then on it stops cleanly when its parent is gone."""
    pipe = os.environ.pop(WORKER, "")
    if not pipe:
        return False
    threading.Thread(target=_outlived, args=(int(pipe),), daemon=True).start()
    return True


def _outlived(pipe: int) -> None:
    os.read(pipe, 1)  # nobody writes: it returns when the parent's end is closed
    os.kill(os.getpid(), signal.SIGTERM)


def watch(hosts: HostsConfig) -> int:
    """Runs this very command again as the worker; its exit code, LOST where another host took it along."""
    mine, parents = os.pipe()
    worker = subprocess.Popen(
        [sys.executable, *sys.orig_argv[1:]],
        env={**os.environ, WORKER: str(mine)},
        pass_fds=[mine],
        process_group=0,  # a Ctrl-C on the terminal reaches it by way of this process, once
    )
    os.close(mine)
    asked: list[int] = []

    def forward(number: int, frame: FrameType | None) -> None:
        asked.append(number)
        if len(asked) == 1:
            worker.send_signal(number)
        else:
            worker.kill()

    for number in SIGNALS:
        signal.signal(number, forward)
    code = worker.wait()
    os.close(parents)
    text, code = verdict(hosts, code, asked)
    if text:
        print(f"{os.path.basename(sys.argv[0])}: {text}", file=sys.stderr, flush=True)
    return code


def verdict(hosts: HostsConfig, code: int, asked: list[int]) -> tuple[str, int]:
    """(what to tell the user, or nothing where the worker told it; this process's exit code).

    Args:
      code: of the worker; -N: ended by signal N. asked: signals that the user sent.
    """
    this = f"this host ({hosts.index} of {hosts.count})"
    again = "start all hosts again, they go on from the last checkpoint"
    if len(asked) > 1:
        return f"{this} was stopped at once; {again}", AT_ONCE
    if asked and code == -asked[0]:
        return f"{this} was stopped before the first window", 0
    if code == -signal.SIGABRT:
        return (
            f"another host was lost, so JAX ended {this} (a host that is silent for {hosts.heartbeat_seconds} s is "
            f"lost; the lines above name it): look at that host, then {again}"
        ), LOST
    if code == -signal.SIGKILL:
        return f"{this} was killed by SIGKILL, perhaps for want of memory: {again}", 128 + signal.SIGKILL
    if code < 0:
        return f"{this} was ended by {signal.Signals(-code).name}: {again}", 128 - code
    return "", code
