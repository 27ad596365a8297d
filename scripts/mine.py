"""Mine: train on real text and take part in a network. With no arguments joins (or starts) the local one.

Ctrl-C stops cleanly within seconds (the next start goes on from there); a second one stops at once.
"""

import argparse
import asyncio
import os
import signal
import sys
from pathlib import Path

from rich.console import Console

from templar_jax.config_load import guarded, parse_cli


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--windows", type=int, metavar="N", help="stop after taking part in N windows (default: never)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures of the summary there")


def main(argv: list[str]) -> int:
    cli = parse_cli(argv, __doc__ or "", arguments)
    # after --help and errors of the command line, which should not wait for JAX
    from templar_jax.node import open as opening
    from templar_jax.node.home import claim_home
    from templar_jax.telemetry.events import Noted
    from templar_jax.telemetry.open import open_telemetry
    from templar_jax.telemetry.plot import plot_run
    from templar_jax.telemetry.sinks import read_events
    from templar_jax.telemetry.summary import print_summary, write_json

    opening.set_up_devices(cli.node)
    run, pages = opening.pin_data(cli.run, cli.node, lambda text: print(text, flush=True))
    home = claim_home(run, cli.node)
    restarts = sum(event["event"] == "NodeStarted" for event in read_events(home.metrics))
    chain = opening.open_chain(run, cli.node, home)
    telemetry = open_telemetry(run, cli.node, home.metrics, block=opening.position(chain))
    try:
        machine = opening.open_machine(run, cli.node, pages, lambda text: telemetry.emit(Noted(text)))
        asyncio.run(mine(machine, home, chain, telemetry, restarts, cli.args.windows))
    finally:
        telemetry.close()
    figures = telemetry.meter.figures()
    plot = home.node / "loss.png"
    drawn = plot_run(read_events(home.metrics), plot, f"{run.name} {run.run_id[:8]}, {home.name}")
    files = {"picture": plot, "events": home.metrics} if drawn else {"events": home.metrics}
    print_summary(Console(), figures, files)
    if cli.args.json:
        write_json(cli.args.json, figures)
    return 0


async def mine(machine, home, chain, telemetry, restarts: int, windows: int | None) -> None:
    """Runs the node until it is done, fails, or is told to stop."""
    from templar_jax.node import open as opening
    from templar_jax.node.lifecycle import run_node

    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, on_signal, stop)
    world = opening.open_world(machine, home, chain, telemetry.emit, stop)
    telemetry.emit(opening.started_event(machine, world.hotkey, restarts))
    await run_node(world, machine.run, machine.config, machine.engine, machine.pages, windows)


def on_signal(stop: asyncio.Event) -> None:
    if stop.is_set():
        print("\nstopped at once; the next start goes on from the last checkpoint", file=sys.stderr)
        os._exit(130)
    stop.set()


if __name__ == "__main__":
    guarded(main)
