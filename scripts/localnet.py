"""A whole network on this machine: miners and validators as real processes, a live table, and a report at the end.

Each run makes a network of its own under HOME/net-N. Anybody on this machine joins it with
`scripts/mine.py --config HOME/net-N/run.toml` and is shown too.

Ctrl-C (or SIGTERM) stops all processes cleanly and reports; a second one stops them at once.
Exit code: 0 done, or stopped as asked; 1 a process failed, or state roots differ; 2 a setting cannot be; 130 stopped
at once.
"""

import argparse
import asyncio
import shlex
from pathlib import Path

import mine
from rich.console import Console

from templar_jax.config_load import Cli, guarded, parse_cli
from templar_jax.errors import ConfigError


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--miners", type=int, default=3, metavar="N", help="(default %(default)s)")
    parser.add_argument("--validators", type=int, default=2, metavar="M", help="(default %(default)s)")
    parser.add_argument("--windows", type=int, default=12, metavar="W", help="then stop (default %(default)s)")
    stores = "folders, or a real S3 server (extra s3)"
    parser.add_argument("--store", choices=("files", "s3"), default="files", help=f"{stores} (default %(default)s)")
    parser.add_argument("--report", type=Path, metavar="DIR", help="write it there (default: the network's folder)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")


def main(argv: list[str]) -> int:
    cli = parse_cli(argv, __doc__ or "", arguments)
    for name, least in (("miners", 1), ("validators", 0), ("windows", 1)):
        if getattr(cli.args, name) < least:
            raise ConfigError(f"--{name} {getattr(cli.args, name)}: set it to {least} or more")
    if cli.node.hotkey or cli.node.network.bucket:
        raise ConfigError("node.hotkey and node.network.bucket are one node's: leave them out, each gets its own")
    if cli.args.store == "s3":
        from templar_jax.localnet.storage import find_program

        find_program()
    return run(cli, argv)


def run(cli: Cli, argv: list[str]) -> int:
    """Everything after --help and errors of the command line, which should not wait for JAX."""
    from templar_jax.localnet import figures, loop, network
    from templar_jax.localnet.report import write_report
    from templar_jax.localnet.table import open_screen
    from templar_jax.node import home as homes
    from templar_jax.node import open as opening
    from templar_jax.store.disk import make_folder
    from templar_jax.telemetry.summary import check_json, write_json

    args, console = cli.args, Console()
    check_json(args.json)
    if args.report is not None:
        make_folder(args.report)
    network.check_sizes(cli.run, cli.node, args.miners, args.validators)
    root = homes.check_home(cli.node)
    pinned, _ = opening.pin_data(cli.run, cli.node, say)
    home = network.new_home(root)
    devices = network.devices_each(args.miners + args.validators)
    node = network.node_settings(cli.node, home, pinned, devices)
    made = network.Network(pinned, node, home, args.miners, args.validators, args.store == "s3")
    say(f"{home}: {args.miners} miners and {args.validators} validators; Ctrl-C stops them all cleanly")
    watched = asyncio.run(loop.run(made, args.windows, open_screen(console), say))
    found = figures.figures(watched)
    figures.print_summary(console, watched)
    page = write_report(watched, args.report or home / "report", shlex.join(["scripts/localnet.py", *argv]))
    console.print(f"report: {page}", soft_wrap=True, highlight=False)
    if args.json is not None:
        write_json(args.json, found)
    return figures.exit_code(watched)


def say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    mine.end(lambda: guarded(main))
