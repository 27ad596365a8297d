"""What a configuration needs on given GPUs, without having them: memory, FLOPs, traffic, time; and whether it fits.

    python scripts/plan.py --config 70b --gpus 8 --gpu h100-80
    python scripts/plan.py --config moe-1t --hosts 32 --fabric 3200 --link 10000     a miner of 32 hosts, 8 GPUs each
    python scripts/plan.py --table > docs/plan.md         all shipped configurations

State is exact. XLA's temporaries come from its own compiler where the CUDA plugin is installed (pip install --no-deps
jax-cuda12-plugin jax-cuda12-pjrt, of jaxlib's version; no GPU needed), else from an estimate; the plan says which.
"""

import argparse
from pathlib import Path

from templar_jax.config import NodeConfig, RunConfig
from templar_jax.config_load import guarded, load, parse_cli, settings, shipped
from templar_jax.errors import ConfigError


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--gpu", default="h100-80", metavar="NAME", help="a100-80, h100-80 (default), h200-141, b200-180"
    )
    parser.add_argument("--gpus", type=int, default=8, metavar="N", help="of a host (default 8)")
    parser.add_argument("--hosts", type=int, default=1, metavar="N", help="of this miner (default 1)")
    parser.add_argument(
        "--fabric",
        type=float,
        default=3200,
        metavar="GBPS",
        help="Gb/s of a host to the others (default 3200: 8 x 400)",
    )
    parser.add_argument("--host-ram", type=float, metavar="GIB", help="memory of a host (default: not judged)")
    parser.add_argument("--link", type=float, default=1000, metavar="MBPS", help="Mb/s up and down (default 1000)")
    parser.add_argument("--peers", type=int, default=20, metavar="N", help="contributors of a window (default 20)")
    parser.add_argument("--mfu", type=float, default=0.40, metavar="X", help="share of the peak FLOP/s (default 0.40)")
    parser.add_argument("--no-compile", action="store_true", help="estimate, even where XLA could be asked")
    parser.add_argument("--table", action="store_true", help="every shipped configuration, as Markdown")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")


def main(argv: list[str]) -> int:
    cli = parse_cli(argv, __doc__ or "", arguments)
    args = cli.args
    for name in ("gpus", "hosts", "fabric", "link", "peers", "mfu"):
        if getattr(args, name) <= 0:
            raise ConfigError(f"--{name} is {getattr(args, name)}: set it above 0")
    import jax

    jax.config.update("jax_platforms", "cpu")
    from templar_jax.plan import sketch
    from templar_jax.plan.page import page
    from templar_jax.plan.report import figures, lines
    from templar_jax.telemetry.summary import write_json

    if args.table:
        plans = [planned(*load(name), args) for name in shipped() if name != sketch.NAME]
        plans.sort(key=lambda plan: plan.memory.arguments["gradients"])
        print("\n".join([*page(plans, args.gpus, args.gpu), "", *sketch.sketch(*load(sketch.NAME))]).rstrip())
        result = {plan.run.name: figures(plan) for plan in plans}
    else:
        plan = planned(cli.run, cli.node, args)
        print("\n".join(lines(plan)))
        result = figures(plan)
    if args.json:
        write_json(args.json, result)
    return 0


def planned(run: RunConfig, node: NodeConfig, args: argparse.Namespace):
    from templar_jax.plan.compiled import compile_elsewhere
    from templar_jax.plan.gpus import find
    from templar_jax.plan.report import make_plan
    from templar_jax.plan.window import Assumed

    compiled, why_not = None, "asked not to compile"
    if not args.no_compile:
        compiled, why_not = compile_elsewhere(as_flags(run, node), args.gpu, args.gpus, args.hosts)
    assumed = Assumed(args.mfu, args.link * 1e6, args.fabric * 1e9, peers=args.peers)
    host_ram = None if args.host_ram is None else int(args.host_ram * 2**30)
    return make_plan(run, node, find(args.gpu), args.gpus, assumed, host_ram, compiled, why_not, args.hosts)


def as_flags(run: RunConfig, node: NodeConfig) -> list[str]:
    """The whole configuration as flags, for another process."""
    flags = []
    for name in settings():
        value = node if name.startswith("node.") else run
        for part in name.removeprefix("node.").split("."):
            value = getattr(value, part)
        text = ",".join(value) if isinstance(value, tuple) else str(value)
        flags.append(f"--{name}={text.lower() if isinstance(value, bool) else text}")
    return flags


if __name__ == "__main__":
    guarded(main)
