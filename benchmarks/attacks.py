"""What cheating earns: every adversary of the zoo under both sets of rules, and the page docs/attacks.md.

    python scripts/bench.py attacks --seeds 1 2 3 --jobs 2          all that is missing, then the page
    python scripts/bench.py attacks --only lazy50 noise:5           some of them
    python scripts/bench.py attacks --rescore                       changed rules on recorded evidence: seconds
    python scripts/bench.py attacks --study effort --seeds 1 2 3    groups with all, half and a quarter of the steps

Results stand in OUT/NAME-SEED.json; what is there for the present code and rules is not run again.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

CONFIG = "configs/nano.toml"
HONEST, ABSENT = "honest", "absent"  # twelve honest peers; nine of them, and three that only hold their slots
COUNT = 3  # adversaries of twelve peers
JUDGES = 3  # validators beside an adversary that acts as one


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, default=Path("docs/attacks"), metavar="DIR", help="results (docs/attacks)")
    parser.add_argument(
        "--evidence", type=Path, default=Path(".templar/attacks"), metavar="DIR", help="recorded evidence, large"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], metavar="S")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="simulations side by side, a core each")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME[:COUNT]", help="instead of all")
    parser.add_argument("--windows", type=int, default=40, metavar="N", help="of each simulation (40)")
    parser.add_argument("--study", choices=("attacks", "effort"), default="attacks")
    parser.add_argument("--rescore", action="store_true", help="simulate nothing, apply the rules to what is recorded")
    parser.add_argument("--keep", action="store_true", help="simulations of an earlier version of the code count too")


def run(args: argparse.Namespace) -> dict[str, Any]:
    from benchmarks.study import effort, page, queue
    from benchmarks.study.job import Places
    from templar_jax.node import home, open

    places = Places(args.out, args.evidence)
    wanted = effort.jobs(args.seeds) if args.study == "effort" else jobs(args.seeds, args.only, args.windows)
    todo = list(queue.pending(wanted, places, args.keep or args.rescore))
    if args.rescore:
        todo = [(job, what) for job, what in todo if what == "score"]
    failed: list[str] = []
    if todo:
        home.check_home(args.node)
        open.pin_data(args.run, args.node, print)
        failed = queue.work(todo, args.jobs, (args.run, args.node), places, lambda text: print(text, flush=True))
    for line in failed:
        print(line, file=sys.stderr)
    page.write(args.out)
    return {
        "wanted": len(wanted),
        "done_before": len(wanted) - len(todo),
        "done_now": len(todo) - len(failed),
        "failed": len(failed),
    }


def jobs(seeds: list[int], only: list[str], windows: int = 40) -> list[Any]:
    """Seed by seed, so that an interrupted study has every adversary at least once."""
    from benchmarks.study.job import Job
    from templar_jax.simulate.zoo.table import ROLES

    words = only or [HONEST, ABSENT, *ROLES]
    found = []
    for seed in seeds:
        for name, _, count in (word.partition(":") for word in words):
            number = int(count or COUNT)
            stem = f"{name}-x{number}" if count and number != COUNT else name
            if name == HONEST:
                found.append(Job(stem, seed, windows=windows))
            elif ROLES[name].acts == "validator":
                found.append(Job(stem, seed, ((name, int(count or 1)),), windows=windows, validators=JUDGES))
            else:
                found.append(Job(stem, seed, ((name, number),), windows=windows))
    return list(dict.fromkeys(found))
