"""Mine: train on real text and take part in a network. With no arguments joins (or starts) the local one.

Ctrl-C (or SIGTERM) stops cleanly within seconds, and the next start goes on from there; a second one stops at once.
With node.hosts.count N the same command runs once on each of N hosts, which are one miner (docs/hosts.md).
Exit code: 0 done, or stopped as asked; 1 failed; 2 a setting cannot be; 75 another host was lost; 130 stopped at once.
"""

import argparse
import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from rich.console import Console

from templar_jax.config_load import Cli, guarded, parse_cli
from templar_jax.errors import ConfigError, TemplarError
from templar_jax.host import huge_pages
from templar_jax.hosts.watch import AT_ONCE, is_worker, watch

if TYPE_CHECKING:
    from templar_jax.node.lifecycle import Duty

Prepare = Callable[..., Awaitable["Duty"]]
EARLY = "stopped before the first window; the next start goes on from here"


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--windows", type=int, metavar="N", help="stop after taking part in N windows (default: never)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures of the summary there")


def main(argv: list[str]) -> int:
    cli = parse_cli(argv, __doc__ or "", arguments)
    if cli.node.hosts.count > 1 and not is_worker():
        return watch(cli.node.hosts)
    if cli.node.hosts.index > 0:
        return launch(cli, lambda: follow(cli))
    return launch(cli, lambda: summarise(cli, *run(cli)))


def launch(cli: Cli, work: Callable[[], int]) -> int:
    """Runs a node's process; its exit code."""
    if cli.args.windows is not None and cli.args.windows < 1:
        raise ConfigError(
            f"--windows {cli.args.windows}: take part in at least 1, or leave it out to go on until stopped"
        )
    print(f"{cli.run.name}: starting; Ctrl-C stops cleanly", flush=True)
    take_signals(interrupt if cli.node.hosts.count == 1 else signal.SIG_DFL)  # hosts that wait for each other just end
    try:
        return work()
    except KeyboardInterrupt:  # before there was a node: nothing is half done that a next start would not finish
        print(f"\n{EARLY}")
        leave(0)


def run(cli: Cli, kind: str = "miner", prepare: Prepare | None = None) -> tuple[Any, Any, Any]:
    """Everything of a node's process after its command line, which should not wait for JAX.

    Args:
      kind: of node; names its folder.
      prepare: of (world, home, chain), what a node that is no miner does in each window.

    Returns: the run, the node's home, and its telemetry, closed.
    """
    from templar_jax.data.show import shown
    from templar_jax.hosts import join
    from templar_jax.hosts.open import ending, meet
    from templar_jax.node import home as homes
    from templar_jax.node import open as opening
    from templar_jax.telemetry.open import open_telemetry
    from templar_jax.telemetry.sinks import read_events
    from templar_jax.telemetry.summary import check_json

    if prepare and cli.node.hosts.count > 1:
        raise ConfigError("a validator runs in one process: leave node.hosts out")
    root = homes.check_home(cli.node)
    check_json(cli.args.json)
    opening.set_up_devices(cli.node)
    channel = join.lead(cli.node)
    take_signals(interrupt)
    with ending(channel) if channel else contextlib.nullcontext():
        with shown(Console()) as show:
            pinned, pages = opening.pin_data(cli.run, cli.node, lambda text: print(text, flush=True), show)
        home = homes.claim_home(pinned, cli.node, root, kind)
        if channel:
            meet(channel, pinned, cli.node, home)
        restarts = sum(event["event"] == "NodeStarted" for event in read_events(home.metrics))
        chain = opening.open_chain(pinned, cli.node, home)
        telemetry = open_telemetry(pinned, cli.node, home.metrics, block=opening.position(chain))
        try:
            serving = serve(
                pinned, cli.node, pages, home, chain, telemetry, restarts, cli.args.windows, prepare, channel
            )
            asyncio.run(serving)
        finally:
            telemetry.close()
    return pinned, home, telemetry


def follow(cli: Cli) -> int:
    """A process of several that is not process 0."""
    from templar_jax.hosts import join
    from templar_jax.hosts.open import follow_host
    from templar_jax.node import home as homes
    from templar_jax.node import open as opening

    root = homes.check_home(cli.node)
    opening.set_up_devices(cli.node)
    return follow_host(join.listen(cli.node), cli.run, cli.node, root, lambda text: print(text, flush=True), leave)


def summarise(cli: Cli, run, home, telemetry) -> int:
    from templar_jax.telemetry.summary import write_end

    write_end(Console(), telemetry.meter, home.node / "loss.png", home.metrics, run, home.name, cli.args.json)
    return 0


async def serve(
    run, config, pages, home, chain, telemetry, restarts: int, windows: int | None, prepare: Prepare | None, channel
) -> None:
    """Opens the ports, compiles, and runs the node until it is done, fails, or is told to stop.

    channel: to the other hosts; None: there are none.
    """
    from templar_jax.hosts.open import engine_for
    from templar_jax.node import open as opening
    from templar_jax.node.lifecycle import MINER, run_node
    from templar_jax.telemetry.events import Noted

    stop, emit, loop = asyncio.Event(), telemetry.emit, asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, on_signal, stop, emit)
    world = opening.open_world(config, home, chain, emit, stop)
    await opening.probe(world.bucket)

    def spread(engine):
        return engine_for(channel, config, engine, pages, world.checkpoints) if channel else engine

    if channel:
        channel.stop = lambda: loop.call_soon_threadsafe(stop.set)
    note = lambda text: emit(Noted(text, "compile"))  # noqa: E731
    compiling = asyncio.ensure_future(
        asyncio.to_thread(opening.open_machine, run, config, pages, note, prepare is None, spread)
    )
    stopping = asyncio.ensure_future(stop.wait())
    await asyncio.wait([compiling, stopping], return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if not compiling.done():  # a compiler cannot be interrupted, but it has nothing that is worth waiting for
        telemetry.close()
        print(EARLY)
        if channel:
            channel.end(0)
        leave(0)
    machine = compiling.result()
    emit(opening.started_event(machine, home.name, world.hotkey, restarts))
    duty = await prepare(world, home, chain) if prepare else MINER
    try:
        await run_node(world, run, config, machine.engine, pages, windows, duty)
    finally:  # after an error too: a checkpoint that is being written is worth a moment
        with contextlib.suppress(TemplarError):
            await asyncio.to_thread(world.checkpoints.wait)


def take_signals(handler) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, handler)


def interrupt(number: int, frame: object) -> None:
    del number, frame
    raise KeyboardInterrupt


def on_signal(stop: asyncio.Event, emit) -> None:
    from templar_jax.telemetry.events import Noted

    if stop.is_set():
        print("stopped at once; the next start goes on from the last checkpoint", file=sys.stderr, flush=True)
        leave(AT_ONCE)
    stop.set()
    emit(Noted("stopping: saving the state (once more to stop at once)"))


def leave(code: int) -> NoReturn:
    """Ends the process now, whatever its threads are at, with the terminal as it was."""
    Console().show_cursor(True)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def end(guarded_main: Callable[[], NoReturn]) -> None:
    """Runs a script and ends its process."""
    try:
        guarded_main()
    except SystemExit as done:  # everything is closed; libraries' threads have nothing to say that was not said
        leave(done.code if isinstance(done.code, int) else 1)


if __name__ == "__main__":
    huge_pages()
    end(lambda: guarded(main))
