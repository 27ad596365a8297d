"""Runs a local network from the first process to the last: start, watch, stop. Every wait has an end.

measure (a process) -> chain -> all nodes -> N windows -> SIGTERM to all -> figures
"""

import asyncio
import contextlib
import dataclasses
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from templar_jax.chain.local import LocalChain
from templar_jax.errors import TemplarError
from templar_jax.localnet import measure, network, processes, storage
from templar_jax.localnet.follow import Follow
from templar_jax.localnet.network import Network
from templar_jax.localnet.processes import Child
from templar_jax.localnet.storage import Account
from templar_jax.localnet.table import Now, Screen
from templar_jax.localnet.watched import Watched

SCRIPTS = Path(__file__).resolve().parent.parent.parent / "scripts"
PROGRAMS = {"miner": "mine.py", "validator": "validate.py"}
TICK_SECONDS = 0.25
MEASURE_SECONDS = 1800.0  # a large run compiles for long
STOP_SECONDS = 30.0  # a node saves its state in that time
START_SECONDS, START_WINDOWS = 300.0, 4  # after block 0, whichever is longer: every node takes part by then
AT_ONCE = 130


class NetworkError(TemplarError):
    """The network could not be started."""


async def run(made: Network, windows: int, screen: Screen, say: Callable[[str], None]) -> Watched:
    """Everything after the network's folder exists; the children are gone when it returns or raises.

    Raises:
      NetworkError: a node never took part, or measuring failed; whatever else is wrong, with the next step.
    """
    watched, stop = Watched(made, windows=windows, follow=Follow(made.folder)), asyncio.Event()
    loop = asyncio.get_running_loop()

    def on_signal() -> None:
        if stop.is_set():  # a second one: whatever is still running ends now
            processes.kill([*watched.children, *watched.helpers])
            screen.close()
            os._exit(AT_ONCE)
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, on_signal)
    try:
        speed = await _measure(watched, stop, screen)
        accounts = await _open_store(watched, stop, say) if speed is not None else None
        if speed is not None and accounts is not None:
            chain = _start_all(watched, speed, accounts, say)
            try:
                await _watch(watched, chain, stop, screen)
            finally:
                chain.close()
    finally:
        watched.asked = stop.is_set()
        living = [child for child in watched.children if child.code is None]
        with contextlib.suppress(OSError):  # whoever read the output has gone
            show(watched, screen, f"stopping {len(living)} processes")
        try:
            watched.killed = [child.name for child in await processes.stop(living, STOP_SECONDS)]
        finally:
            processes.kill(watched.helpers)
            for path in watched.litter:
                path.unlink(missing_ok=True)
        _last(watched, screen, living)
        _take_in(watched, screen)
        show(watched, screen, "stopped")
        screen.close()
    return watched


async def _measure(watched: Watched, stop: asyncio.Event, screen: Screen) -> measure.Speed | None:
    """The machine's speed at this run, from a process that fills the compile cache; None if asked to stop."""
    made = watched.network
    network.write_settings(made)
    out = made.home / "speed.json"
    command = [sys.executable, "-m", "templar_jax.localnet.measure", str(made.settings), str(out)]
    child = processes.start("measure", "measure", command, made.logs / "measure.log")
    watched.helpers.append(child)
    loop = asyncio.get_running_loop()
    began = loop.time()
    while child.code is None and not stop.is_set():
        if loop.time() > began + MEASURE_SECONDS:
            raise NetworkError(f"measuring took longer than {MEASURE_SECONDS:.0f} s: see {child.log}")
        at = " ".join(processes.last_words(child, 1))
        show(watched, screen, f"measuring this machine: {at or 'starting'} ({loop.time() - began:.0f} s)")
        await asyncio.sleep(TICK_SECONDS)
    if stop.is_set():
        return None
    if child.code:
        words = " / ".join(processes.last_words(child, 1)) or "it said nothing"
        raise NetworkError(f"measuring ended with {processes.ended(child.code)}: {words} (see {child.log})")
    return measure.read(out)


async def _open_store(watched: Watched, stop: asyncio.Event, say: Callable[[str], None]) -> dict[str, Account] | None:
    """A bucket of an S3 server for each node by name, where the network has one; None if asked to stop."""
    made = watched.network
    if not made.s3:
        return {}
    say("starting an S3 server")
    server = storage.start_server(made.home / "s3", made.logs / "s3.log", [name for name, _ in made.names])
    watched.helpers.append(server.child)
    watched.litter += server.litter
    return server.accounts if await storage.until_ready(server, stop) else None


def _start_all(
    watched: Watched, speed: measure.Speed, accounts: Mapping[str, Account], say: Callable[[str], None]
) -> LocalChain:
    """Every node, on a chain of its own whose blocks are long enough for them. Returns the chain."""
    made, cores = watched.network, network.cores()
    nodes = made.miners + made.validators
    wanted = made.node.network.block_seconds
    seconds = measure.fit_block(made.run, speed, made.miners, made.validators, cores, wanted)
    if seconds > wanted:
        say(f"a block lasts {seconds:g} s instead of {wanted:g}: what {nodes} nodes need on {cores} cores")
    minutes = watched.windows * made.run.window.blocks * seconds / 60
    say(f"{watched.windows} windows of {made.run.window.blocks} blocks take {minutes:.1f} minutes")
    config = dataclasses.replace(made.node.network, block_seconds=seconds)
    made = dataclasses.replace(made, node=dataclasses.replace(made.node, network=config))
    watched.network, watched.block_seconds = made, seconds
    network.write_settings(made)
    chain = network.make_chain(made, measure.start_seconds(speed, nodes, cores))
    for name, role in made.names:
        command = [sys.executable, str(SCRIPTS / PROGRAMS[role])]
        command += ["--config", str(made.settings), "--node.hotkey", name]
        account = accounts.get(name)
        if account is not None:
            command += ["--node.network.bucket", account.locator]
        environment = account.environment if account is not None else {}
        watched.children.append(processes.start(name, role, command, made.logs / f"{name}.log", environment))
        watched.story.node(name)
    return chain


async def _watch(watched: Watched, chain: LocalChain, stop: asyncio.Event, screen: Screen) -> None:
    """Until the last window is closed and scored, all are dead, or it is time to give up."""
    watched.genesis = await chain.eta(0)
    registering = asyncio.ensure_future(network.register(watched.network, chain))
    try:
        while True:
            if registering.done():
                registering.result()
            await _look(watched, chain, screen)
            show(watched, screen)
            head = await chain.head()
            if watched.first is None:
                _begin(watched, head)
            if stop.is_set() or not any(child.code is None for child in watched.children) or _done(watched, head):
                return
            await asyncio.sleep(TICK_SECONDS)
    finally:
        registering.cancel()
        await asyncio.gather(registering, return_exceptions=True)
        await _look(watched, chain, screen)
        await _history(watched, chain)


def _take_in(watched: Watched, screen: Screen) -> None:
    """What the nodes wrote since the last time."""
    for name, event in watched.follow.new():
        watched.story.see(name, event)
        if event["event"] in ("Warned", "Alarm"):
            _say(watched, screen, name, watched.story.node(name).said[-1][1])


async def _look(watched: Watched, chain: LocalChain, screen: Screen) -> None:
    """Takes in what is new: events, the metagraph, and who is gone."""
    _take_in(watched, screen)
    watched.metagraph = await chain.metagraph()
    stores = [child for child in watched.helpers if child.role == "store"]
    for child in [*watched.children, *stores]:
        if child.code is not None and child.name not in watched.dead:
            watched.dead[child.name] = child.code
            _say(watched, screen, child.name, f"ended by itself, {processes.ended(child.code)}; its last lines:")
            for line in processes.last_words(child):
                _say(watched, screen, child.name, f"  {line}")


def _last(watched: Watched, screen: Screen, stopped: Sequence[Child]) -> None:
    """What came to light while the children ended as asked."""
    for child in stopped:
        if child.name in watched.killed:
            _say(watched, screen, child.name, f"did not end within {STOP_SECONDS:.0f} s and was killed")
        elif (code := child.code or 0) not in (0, -signal.SIGTERM):  # the latter: asked before it could listen
            watched.dead[child.name] = code
            _say(watched, screen, child.name, f"{processes.ended(code)} when asked to stop; its last lines:")
            for line in processes.last_words(child):
                _say(watched, screen, child.name, f"  {line}")


def _say(watched: Watched, screen: Screen, who: str, text: str) -> None:
    watched.notes.append((who, text))
    screen.say(who, text)


def _begin(watched: Watched, head: int) -> None:
    """Settles with which window the counting begins: the first in which all nodes take part.

    Raises:
      NetworkError: a node is not ready after START_WINDOWS and START_SECONDS.
    """
    alive = [watched.story.node(child.name) for child in watched.children if child.code is None]
    late = [node.name for node in alive if node.joined is None]
    if alive and not late:
        watched.first = max(node.joined for node in alive if node.joined is not None)
        return
    limit = max(START_SECONDS, START_WINDOWS * watched.network.run.window.blocks * watched.block_seconds)
    if alive and head * watched.block_seconds > limit:
        raise NetworkError(f"{', '.join(late)} took part in no window within {limit:.0f} s: see {watched.network.logs}")


def _done(watched: Watched, head: int) -> bool:
    """Everybody has applied the last window, and scored it; or the time for that is over, and who is late said why."""
    blocks, last = watched.network.run.window.blocks, watched.last
    if last is None:
        return False
    alive = [watched.story.node(child.name) for child in watched.children if child.code is None]
    applied = all(max(node.verdicts, default=-1) >= last for node in alive)
    scored = all(max(node.scored, default=-1) >= last for node in alive if node.validates)
    return (applied and scored) or head >= (last + 2) * blocks


async def _history(watched: Watched, chain: LocalChain) -> None:
    """The metagraph after each epoch."""
    tempo, head = chain.rules.tempo, await chain.head()
    watched.history = [await chain.metagraph(block) for block in range(tempo, head + 1, tempo)]


def show(watched: Watched, screen: Screen, phase: str = "") -> None:
    made = watched.network
    title = f"{made.run.name} {made.run.run_id[:8]} · {made.miners} miners, {made.validators} validators"
    if watched.block_seconds:
        title += f" · {watched.block_seconds:g} s a block"
    block = watched.metagraph.block if watched.metagraph else 0
    screen.show(
        watched.story,
        Now(title, block, made.run.window.blocks, watched.first, watched.windows, watched.rows(), phase),
    )
