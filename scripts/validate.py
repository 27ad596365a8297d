"""Validate: lead the windows, score what the miners send, and set weights for it. Takes part in the local network.

On the local network the hotkey gets its stake from a faucet. With --replay DIR nothing is run: the weights of a
recorded history are computed again from the evidence alone, and compared bit for bit.

Ctrl-C (or SIGTERM) stops cleanly within seconds, and the next start goes on from there; a second one stops at once.
Exit code: 0 done, or stopped as asked; 1 failed, or a replay differs; 2 a setting cannot be; 130 stopped at once.
"""

import argparse
import math
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import mine
from rich.console import Console

from templar_jax.config_load import Cli, guarded, parse_cli
from templar_jax.errors import ConfigError, StoreError

if TYPE_CHECKING:
    from templar_jax.incentive.replay import Replayed
    from templar_jax.node.lifecycle import Duty

STAKE = 1000.0
RULES = ("default", "v213")


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--windows", type=int, metavar="N", help="stop after N windows (default: never)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures of each window there")
    parser.add_argument("--rules", choices=RULES, default=RULES[0], help="how pay is computed (default: %(default)s)")
    parser.add_argument(
        "--stake", type=float, default=STAKE, metavar="S", help="on the local network (default: %(default)g)"
    )
    parser.add_argument("--replay", type=Path, metavar="DIR", help="a validator's folder, or its evidence/")


def main(argv: list[str]) -> int:
    cli = parse_cli(argv, __doc__ or "", arguments)
    if cli.args.replay is not None:
        return again(cli.args.replay, cli.args.json)
    if not (math.isfinite(cli.args.stake) and cli.args.stake > 0):
        raise ConfigError(f"--stake {cli.args.stake}: a validator needs more than 0")
    prepare = partial(duty_of, cli.args.rules, cli.args.stake)
    return mine.launch(cli, lambda: summarise(cli, *mine.run(cli, "validator", prepare)))


async def duty_of(name: str, stake: float, world, home, chain) -> "Duty":
    """The validator's part in each window, with the stake it needs to lead."""
    from templar_jax.incentive.rules import rules
    from templar_jax.node.records import DiskRecords
    from templar_jax.node.validator import validator

    await chain.set_stake(world.hotkey, stake)
    return validator(DiskRecords(home.evidence), rules("v213" if name == "v213" else "default"))


def summarise(cli: Cli, run, home, telemetry) -> int:
    """Prints the newest window's table; writes the figures of all of this home's windows."""
    from templar_jax.telemetry.scores import figures, print_scores
    from templar_jax.telemetry.sinks import read_events

    del run, telemetry
    print_scores(Console(), read_events(home.metrics))
    print(f"evidence: {home.evidence}")
    write(cli.args.json, figures(read_events(home.metrics)))
    return 0


def write(path: Path | None, found: dict) -> None:
    from templar_jax.store.disk import explain
    from templar_jax.telemetry.summary import write_json

    try:
        if path is not None:
            write_json(path, found)
    except OSError as error:
        raise StoreError(explain(error, path or Path())) from error


def again(folder: Path, json_file: Path | None) -> int:
    """Recomputes a recorded history; 1 if any window's weights differ from the recorded ones in any bit."""
    from templar_jax.node.records import DiskRecords
    from templar_jax.node.validator import read_records

    inside = folder / "evidence"
    replayed = read_records(DiskRecords(inside if inside.is_dir() else folder))
    print(f"{len(replayed)} windows, {replayed[0].evidence.window} to {replayed[-1].evidence.window}")
    differing = [one.outcome.window for one in replayed if not one.equal]
    write(json_file, {"windows": replay_figures(replayed), "differing": differing})
    if differing:
        print(f"DIFFERENT in {len(differing)} windows, the first is {differing[0]}", file=sys.stderr)
        return 1
    print("equal: every weight, to the last bit")
    return 0


def replay_figures(replayed: "list[Replayed]") -> list[dict]:
    """The figures of each window, by uid where the history knows one."""
    uids, windows = {}, []
    for one in replayed:
        uids |= {peer.peer: peer.uid for peer in one.evidence.peers}
        scores = {uids[peer]: score for peer, score in one.scores.items() if peer in uids}
        windows.append(
            {
                "window": one.evidence.window,
                "beta": one.evidence.beta,
                "scores": {uid: score.pay for uid, score in scores.items()},
                "effort": {uid: dict(score.parts).get("effort") for uid, score in scores.items()},
                "weights": {uids[peer]: share for peer, share in one.weights.items() if peer in uids},
                "violations": {peer.uid: peer.violations for peer in one.evidence.peers if peer.violations},
                "link": one.outcome.link,
                "equal": one.equal,
            }
        )
    return windows


if __name__ == "__main__":
    mine.end(lambda: guarded(main))
