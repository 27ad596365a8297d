"""Text from a model, token by token: the newest checkpoint of this machine, or a Hugging Face folder.

    python scripts/generate.py --prompt "def main("
    python scripts/generate.py --model DIR --prompt "Once" --tokens 300 --temperature 0.7 --top-p 0.9
    cat prompt.txt | python scripts/generate.py --prompt -

The text goes to stdout, everything else to stderr.
"""

import argparse
import sys
from pathlib import Path

from templar_jax.config import MeshConfig
from templar_jax.config_load import guarded, parse_cli
from templar_jax.errors import ConfigError


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", type=Path, metavar="DIR", help="checkpoint, folder above, or HF folder (node.home)")
    parser.add_argument("--window", type=int, metavar="N", help="the checkpoint of window N (default: the newest)")
    parser.add_argument(
        "--tokenizer", type=Path, metavar="FILE", help="a tokenizer.json (default: bytes, or DIR's own)"
    )
    parser.add_argument("--prompt", default="", metavar="TEXT", help="what the text begins with; - reads stdin")
    parser.add_argument("--tokens", type=int, default=200, metavar="N", help="at most so many (default 200)")
    parser.add_argument("--samples", type=int, default=1, metavar="N", help="texts at once (default 1, which streams)")
    parser.add_argument("--temperature", type=float, default=0.8, metavar="X", help="0: the likeliest (default 0.8)")
    parser.add_argument("--top-k", type=int, default=0, metavar="N", help="of the N likeliest (default 0: no limit)")
    parser.add_argument("--top-p", type=float, default=0.95, metavar="X", help="of the likeliest that reach X (0.95)")
    parser.add_argument("--draw", type=int, default=0, metavar="N", help="seed of the draws (default 0)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")


def main(argv: list[str]) -> int:
    cli = parse_cli(argv, __doc__ or "", arguments)
    args, node = cli.args, cli.node
    if args.tokens < 1 or args.samples < 1:
        raise ConfigError("--tokens and --samples must be 1 or more")
    import jax

    from templar_jax.generate import Generator, Sampling, TextStream, load_model
    from templar_jax.sharding import make_mesh
    from templar_jax.telemetry.summary import write_json
    from templar_jax.train.compiles import enable_compile_cache

    how = Sampling(args.temperature, args.top_k, args.top_p).check()
    jax.config.update("jax_num_cpu_devices", max(1, node.mesh.tensor))
    home = Path(node.home).absolute()
    if home.is_dir():
        enable_compile_cache(home / "jax")
    mesh = make_mesh(MeshConfig(fsdp=1, tensor=node.mesh.tensor))
    model = load_model(args.model or home, cli.run, node.compute, mesh, args.window, args.tokenizer)
    note(f"{model.source}, {node.compute.dtype} on {mesh.size} {mesh.devices.flat[0].platform} device(s)")

    text = sys.stdin.read() if args.prompt == "-" else args.prompt
    prompt = [model.begin, *model.tokenizer.encode(text.encode())[0][:-1].tolist()]
    if len(prompt) + args.tokens > model.run.data.sequence:
        note(f"{len(prompt) + args.tokens} tokens are more than the {model.run.data.sequence} it was trained on")
    generator = Generator(model, how)
    streams = [TextStream(model.tokenizer) for _ in range(args.samples)]
    texts, open_ = [text] * args.samples, [True] * args.samples
    alone = args.samples == 1
    if alone:
        print(text, end="", flush=True)
    for token_B in generator.stream([prompt] * args.samples, args.tokens, args.draw):
        for row, token in enumerate(token_B.tolist()):
            open_[row] = open_[row] and token not in model.stops
            if open_[row]:
                new = streams[row].push(token)
                texts[row] += new
                if alone:
                    print(new, end="", flush=True)
        if not any(open_):
            break
    for row, stream in enumerate(streams):
        texts[row] += stream.rest()
        print(stream.rest() if alone else f"--- {row + 1}\n{texts[row]}")
    speed = generator.speed
    rate = speed.tokens_per_s(args.samples)
    note(
        f"{speed.steps + 1} tokens" + (f" x {args.samples}" if args.samples > 1 else "")
        + (f", {rate:.1f} per second" if rate else "")
        + f"; prompt of {len(prompt)} read in {speed.prompt_s:.3f} s, compiled in {speed.compile_s:.1f} s"
    )  # fmt: skip
    if args.json:
        figures = {"tokens": (speed.steps + 1) * args.samples, "tokens_per_s": rate, "prompt_s": speed.prompt_s}
        write_json(args.json, {**figures, "compile_s": speed.compile_s, "texts": texts})
    return 0


def note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    guarded(main)
