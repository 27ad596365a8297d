"""Bench: how fast the parts are on this machine, beside a plain torch implementation of the same work.

    python scripts/bench.py step --json step.json
    python scripts/bench.py step --config tiny

Contenders take turns within one process, so a ratio holds on a busy machine where a time alone would not.
"""

import argparse
import importlib
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from templar_jax.config_load import guarded, parse_cli  # noqa: E402
from templar_jax.host import huge_pages  # noqa: E402

# Each benchmarks/<name>.py has `run(args) -> {figure: value}`, where args.run and args.node are the configuration;
# optional: `arguments(parser)`, and `CONFIG`, the configuration that it takes by default.
BENCHMARKS = sorted(
    path.stem for path in (ROOT / "benchmarks").glob("*.py") if "\ndef run(" in path.read_text(encoding="utf-8")
)


def main(argv: list[str]) -> int:
    name = next((word for word in argv[:1] if word in BENCHMARKS), None)
    module = importlib.import_module(f"benchmarks.{name}") if name else None

    def arguments(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("name", choices=BENCHMARKS, help="which benchmark")
        parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
        parser.set_defaults(config=getattr(module, "CONFIG", parser.get_default("config")))
        if hasattr(module, "arguments"):
            module.arguments(parser)  # type: ignore[union-attr]

    cli = parse_cli(argv, __doc__ or "", arguments)
    assert module is not None  # the parser has refused any other name
    figures = module.run(argparse.Namespace(**vars(cli.args), run=cli.run, node=cli.node))
    for key, value in figures.items():
        print(f"{key:32} {value:.4g}" if isinstance(value, float) else f"{key:32} {value}")
    if cli.args.json:
        cli.args.json.write_text(json.dumps(figures, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    huge_pages()
    guarded(main)
