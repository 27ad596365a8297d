"""One miner on several hosts: process 0 runs the node with an engine that spans them all, the others follow.

All hosts share the home folder (a shared file system): each writes its own shards of a checkpoint there.
"""

import secrets
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import jax

from templar_jax.config import NodeConfig, RunConfig
from templar_jax.data.pages import Pages
from templar_jax.errors import TemplarError
from templar_jax.hosts.calls import Announcer
from templar_jax.hosts.channel import Caller, Hello, Listening
from templar_jax.hosts.follow import follow
from templar_jax.hosts.spread import Share, functions, spread
from templar_jax.node import open as opening
from templar_jax.node.engine import Engine
from templar_jax.node.home import Home

TOKEN = "hosts"  # file in the node's folder: who reads the same there shares it


@contextmanager
def ending(channel: Caller) -> Iterator[None]:
    """Whatever ends the node on process 0 ends the other processes too."""
    code = 1
    try:
        yield
        code = 0
    except KeyboardInterrupt:
        code = 0
        raise
    finally:
        channel.end(code)


def hello_of(run: RunConfig, config: NodeConfig, root: Path, node: str) -> Hello:
    """What this process has; node: the node's folder under the home `root`."""
    try:
        token = (root / node / TOKEN).read_text()
    except OSError as error:
        token = f"nothing there ({error.strerror})"
    settings = repr((config.mesh, config.compute, config.hosts.count))
    return Hello(run.run_id, settings, f"{node}: {token}", jax.__version__)


def meet(channel: Caller, run: RunConfig, config: NodeConfig, home: Home) -> None:
    """Process 0: all others have the same run, data, settings and home. Raises ConfigError."""
    (home.node / TOKEN).write_text(secrets.token_hex(16))
    channel.meet(hello_of(run, config, home.root, str(home.node.relative_to(home.root))))


def engine_for(channel: Caller, config: NodeConfig, engine: Engine, pages: Pages, checkpoints: Any) -> Engine:
    """Process 0: the engine that runs on all processes. The checkpoints are from now on theirs together, too."""
    share = Share(engine, pages, 0, config.hosts.count)
    announcer = Announcer(channel, {**functions(share), **checkpoints.parts})

    def everywhere(part: str, *args: Any) -> Any:
        out = announcer.call(part, *args)
        announcer.collect("ready")  # the others have read what process 0 may remove next
        return out

    checkpoints.everywhere = everywhere
    return spread(share, announcer)


def follow_host(
    channel: Listening, run: RunConfig, config: NodeConfig, root: Path, note: Callable[[str], None], leave: Any
) -> int:
    """Another process than 0: computes what it is told, until process 0 ends or another is lost. Its exit code.

    Args:
      root: the home. leave: ends the process with an exit code, at once.
    """
    _stop_through(channel, leave)
    kind, hello = channel.receive()
    if kind == "end":  # host 0 failed, or was stopped, before it compared anything
        return _ended(hello, note)
    node = hello.folder.partition(":")[0]
    try:
        pinned, pages = opening.pin_data(run, config, note)
        mine = hello_of(pinned, config, root, node)
        engine = opening.build_engine(pinned, config)
        checkpoints = opening.open_checkpoints(config, root / node)
    except TemplarError as error:
        channel.reply(str(error))
        raise
    channel.reply(mine)
    share = Share(engine, pages, config.hosts.index, config.hosts.count)
    note(f"host {config.hosts.index} of {config.hosts.count}: computing for host 0, which says what happens")
    return _ended(follow(channel, {**functions(share), **checkpoints.parts}, engine.mesh), note)


def _ended(code: int, note: Callable[[str], None]) -> int:
    note("host 0 is done" if code == 0 else "host 0 failed, and says why; this host ends with it")
    return code


def _stop_through(channel: Listening, leave: Callable[[int], NoReturn]) -> None:
    """A signal asks process 0 to stop the node; a second one ends this process."""
    asked: list[int] = []

    def stop(number: int, frame: Any) -> None:
        asked.append(number)
        if len(asked) > 1:
            leave(128 + number)
        threading.Thread(target=channel.ask_to_stop).start()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
