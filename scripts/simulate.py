"""Simulate: many nodes on virtual time in one process, the same events in the same order every time.

The nodes run the real code; chain, store and clock are simulated, and so is the time that computing takes.
Exit code: 0 done; 1 failed, or nodes ended a window with different state roots (with faults: did not come together
again); 2 a setting cannot be.
"""

import argparse
import time
from pathlib import Path

from templar_jax.config_load import Cli, guarded, parse_cli
from templar_jax.errors import ConfigError

ATTACK = "the last COUNT peers (or validators) are adversaries; may be given again; `list` shows them all"
FAULT = "what goes wrong in windows 2 to N-3, for that share of operations or nodes; `list` shows them all"

VALIDATORS = "validators beside them (default 1 where an attack is named, else 0)"


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--peers", type=int, default=4, metavar="P", help="miners (default 4)")
    parser.add_argument("--validators", type=int, metavar="V", help=VALIDATORS)
    parser.add_argument("--windows", type=int, default=5, metavar="N", help="windows of each (default 5)")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of keys, block hashes and chance (default 0)")
    parser.add_argument("--attack", action="append", default=[], metavar="NAME:COUNT", help=ATTACK)
    parser.add_argument("--fault", action="append", default=[], metavar="NAME[:SHARE]", help=FAULT)
    parser.add_argument("--times", type=int, default=1, metavar="T", help="run it T times and compare the event logs")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")


def main(argv: list[str]) -> int:
    cli = parse_cli(argv, __doc__ or "", arguments)
    if cli.args.validators is None:
        cli.args.validators = int(bool(cli.args.attack))
    for name, least in (("peers", 1), ("windows", 1), ("times", 1), ("validators", 0)):
        if getattr(cli.args, name) < least:
            raise ConfigError(f"--{name} {getattr(cli.args, name)}: set it to {least} or more")
    if "list" in cli.args.attack:
        return show_adversaries()
    if "list" in cli.args.fault:
        return show_faults()
    return run(cli)


def show_adversaries() -> int:
    from templar_jax.simulate.zoo.table import lines

    print("\n".join(lines()))
    return 0


def show_faults() -> int:
    from templar_jax.simulate.faults import NODES, OPERATIONS, SHARES

    for table, what in ((OPERATIONS, "of operations"), (NODES, "of nodes")):
        print("\n".join(f"{name:10} {what} ({SHARES[name]:g} by default): {text}" for name, text in table.items()))
    return 0


def run(cli: Cli) -> int:
    """Everything after --help and errors of the command line, which should not wait for JAX."""
    from templar_jax.node import home, open
    from templar_jax.simulate import faults
    from templar_jax.simulate.network import Entry, simulate
    from templar_jax.simulate.report import figures
    from templar_jax.simulate.setting import attacks, check_simulated, machine
    from templar_jax.telemetry.events import ManifestApplied
    from templar_jax.telemetry.summary import check_json, write_json

    args = cli.args
    check_json(args.json)
    check_simulated(cli.run, args.peers + args.validators)
    chosen = attacks(args.attack, args.peers, args.validators)
    wrong = faults.parse(args.fault)
    home.check_home(cli.node)
    pinned, pages = open.pin_data(cli.run, cli.node, lambda text: print(text, flush=True))
    engine = machine(pinned, cli.node)
    started, said = time.monotonic(), -1

    def watch(entry: Entry) -> None:
        nonlocal said
        event = entry.event
        if isinstance(event, ManifestApplied) and event.window > said:
            said = event.window
            took = f"{entry.time / 3600:.1f} virtual hours in {time.monotonic() - started:.0f} s"
            accepted, refused = len(event.accepted), len(event.refused)
            print(f"window {said}: {accepted} accepted, {refused} refused, root {event.root[:12]}, {took}", flush=True)

    results = []
    for _ in range(args.times):
        said = -1
        numbers = dict(peers=args.peers, windows=args.windows, seed=args.seed, validators=args.validators)
        results.append(figures(simulate(pinned, engine, pages, attacks=chosen, faults=wrong, watch=watch, **numbers)))
    result = {**results[0], "logs_identical": len({each["log_sha256"] for each in results}) == 1}
    split = f", healed: {result['healed']}" if result["windows_split"] else ""
    print(
        f"{result['events']} events, log {result['log_sha256'][:16]}, roots equal: {result['state_roots_equal']}{split}"
    )
    if args.times > 1:
        print(f"{args.times} runs, logs identical: {result['logs_identical']}")
    if args.json:
        write_json(args.json, result)
    one_history = result["state_roots_equal"] or (wrong and result["healed"])
    return 0 if one_history and result["logs_identical"] else 1


if __name__ == "__main__":
    guarded(main)
