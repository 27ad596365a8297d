"""A checkpoint as a Hugging Face folder (safetensors, config, tokenizer), and a run that goes on from such a folder.

python scripts/export.py --out model                          the newest checkpoint under node.home
python scripts/export.py --checkpoint DIR --out model --dtype bfloat16
python scripts/export.py --import model --config 1b --out run.toml      the settings of 1b, for the model in that folder
python scripts/mine.py --config run.toml                      goes on from it; others set --node.start to their copy
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from templar_jax.config_load import Cli, guarded, parse_cli
from templar_jax.errors import ConfigError

CHECK_BYTES = 16 * 2**30  # of f32 parameters: larger models are not run twice for a check


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--checkpoint", type=Path, metavar="DIR", help="a checkpoint, or a folder above (node.home)")
    parser.add_argument("--window", type=int, metavar="N", help="the checkpoint of window N (default: the newest)")
    parser.add_argument(
        "--import", type=Path, metavar="FOLDER", dest="source", help="a run that goes on from this Hugging Face folder"
    )
    parser.add_argument(
        "--out", type=Path, metavar="PATH", help="folder to write; with --import, a TOML file (default: printed)"
    )
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of the weights' files")
    parser.add_argument("--tokenizer", type=Path, metavar="FILE", help="tokenizer.json (default: beside the pages)")
    parser.add_argument("--vocab", type=int, metavar="N", help="rows of embedding and head (default: padding included)")
    parser.add_argument(
        "--shard-gib", type=float, default=4.0, metavar="X", help="largest file, and memory (default 4)"
    )
    parser.add_argument("--no-check", action="store_true", help="do not compare logits with transformers")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")


def main(argv: list[str]) -> int:
    cli = parse_cli(argv, __doc__ or "", arguments)
    import jax

    jax.config.update("jax_platforms", "cpu")  # nothing to compute, and a miner may be using the accelerator
    from templar_jax.telemetry.summary import write_json

    figures = import_run(cli) if cli.args.source else export_weights(cli)
    if cli.args.json:
        write_json(cli.args.json, figures)
    return 0


def export_weights(cli: Cli) -> dict:
    from templar_jax.config import MeshConfig
    from templar_jax.export import export_folder, max_abs_logit_error, parameter_bytes, tokenizer_beside
    from templar_jax.sharding import make_mesh, shardings, table
    from templar_jax.store.checkpoint_read import open_checkpoint

    args, run = cli.args, cli.run
    if args.out is None:
        raise ConfigError("--out is missing: name the folder to write")
    saved = open_checkpoint(args.checkpoint or Path(cli.node.home), args.window)
    saved.check(run)
    print(f"checkpoint {saved.folder}, window {saved.meta.window}, outer step {saved.meta.outer_step}", flush=True)
    with shown() as progress:
        task = progress.add_task("writing tensors", total=None)
        made = export_folder(
            args.out,
            run,
            saved.load,
            dtype=args.dtype,
            tokenizer=args.tokenizer or tokenizer_beside(cli.node),
            vocab=args.vocab,
            shard_bytes=int(args.shard_gib * 2**30),
            progress=lambda done, total: progress.update(task, completed=done, total=total),
        )
    print(f"{len(made.files)} files in {made.folder}, {made.vocab} rows of vocabulary, {args.dtype}")
    if made.separator is None:
        print("no tokenizer among them: give the one of the pages with --tokenizer tokenizer.json")
    error, how = None, "asked not to"
    if parameter_bytes(run, "float32") > CHECK_BYTES:
        how = f"the parameters take more than {CHECK_BYTES / 2**30:.0f} GiB twice"
    elif not args.no_check:
        mesh = make_mesh(MeshConfig(fsdp=1))
        like = {
            param.name: jax_struct(param.shape, where)
            for param, where in zip(table(run), shardings(run, mesh).values(), strict=True)
        }
        error, how = max_abs_logit_error(made.folder, run, saved.place(like), mesh)
    if error is None:
        print(f"logits were not compared with transformers: {how}")
    else:
        print(f"largest difference of a logit from transformers: {error:.2e} ({how})")
    return {"files": len(made.files), "max_abs_logit_error": error}


def jax_struct(shape: tuple[int, ...], where):
    import jax

    return jax.ShapeDtypeStruct(shape, "float32", sharding=where)


def import_run(cli: Cli) -> dict:
    from templar_jax.config import MeshConfig
    from templar_jax.config_check import check_run
    from templar_jax.config_write import to_toml
    from templar_jax.export import fitting_run, root_of
    from templar_jax.sharding import make_mesh
    from templar_jax.store.disk import write_file

    args, folder = cli.args, cli.args.source.absolute()
    if args.out is not None and args.out.exists():
        raise ConfigError(f"{args.out} exists: choose another file, or remove it")
    fitting, notes = fitting_run(folder, cli.run)
    check_run(fitting)
    with shown() as progress:
        task = progress.add_task("reading parameters", total=None)
        show = lambda done, total: progress.update(task, completed=done, total=total)  # noqa: E731
        root = root_of(folder, fitting, make_mesh(MeshConfig(fsdp=1)), show).hex()
    text = to_toml(replace(fitting, start=root), replace(cli.node, start=str(folder)))
    if args.out is None:
        print(text, end="")
    else:
        write_file(args.out, [text.encode()])
        print(f"{args.out}: a run that goes on from the model in {folder}, state root {root[:16]}")
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    return {"files": int(args.out is not None), "max_abs_logit_error": None, "state_root": root}


def shown() -> Progress:
    """A bar on a terminal, nothing elsewhere."""
    return Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty())


if __name__ == "__main__":
    guarded(main)
