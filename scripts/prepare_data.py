"""Turn text, jsonl or parquet into pages that a run trains on. With no sources: the Python standard library's own.

    python scripts/prepare_data.py corpus/ more.jsonl.zst --out pages
    python scripts/mine.py --node.data pages

Folders are read with everything in them; .gz and .zst are read as they are. Killed, it goes on where it was when it is
started again. What comes out depends on the texts alone, not on their files, the machine or the number of processes.
"""

import argparse
import json
import sys
import time
from pathlib import Path

from rich.console import Console

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from templar_jax.config_load import Cli, guarded, parse_cli  # noqa: E402
from templar_jax.data.manifest import Manifest  # noqa: E402
from templar_jax.data.pages import open_pages  # noqa: E402
from templar_jax.data.prepare import HELDOUT, prepare, standard_library  # noqa: E402
from templar_jax.data.show import shown  # noqa: E402
from templar_jax.data.tokenizer import open_tokenizer  # noqa: E402
from templar_jax.errors import ConfigError, StoreError  # noqa: E402


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("sources", nargs="*", type=Path, metavar="PATH", help="files and folders to read")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="folder for the pages (default for no PATH: under node.home)"
    )
    parser.add_argument("--tokenizer", metavar="FILE", help="a tokenizer.json (default: what data.tokenizer says)")
    parser.add_argument("--text-key", default="text", metavar="NAME", help="key or column of the text (default text)")
    parser.add_argument(
        "--heldout", type=float, default=HELDOUT, metavar="SHARE", help=f"never trained on (default {HELDOUT})"
    )
    parser.add_argument("--workers", type=int, default=0, metavar="N", help="processes (default: as is of use)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")


def main(argv: list[str]) -> int:
    cli = parse_cli(argv, __doc__ or "", arguments)
    args, data = cli.args, cli.run.data
    out = args.out or _default_out(cli)
    started = time.monotonic()
    with shown(Console()) as show:
        manifest = prepare(
            args.sources or standard_library(),
            out,
            tokenizer=_tokenizer(cli),
            sequence=data.sequence,
            page=data.page,
            workers=args.workers,
            heldout=args.heldout,
            text_key=args.text_key,
            progress=show,
        )
    seconds = time.monotonic() - started
    say(out, manifest, seconds)
    if args.json:
        figures = {
            "sequences": manifest.n_pages * manifest.page,
            "tokens": manifest.tokens,
            "seconds": seconds,
            "bytes": manifest.bytes,
            "pages": manifest.n_pages,
            "heldout_pages": manifest.n_heldout_pages,
            "documents": manifest.documents + manifest.heldout_documents,
            "manifest": open_pages(out).manifest_hash,
        }
        try:
            args.json.write_text(json.dumps(figures, indent=2) + "\n")
        except OSError as error:
            raise StoreError(f"cannot write {args.json}: {error.strerror}; the pages are complete") from error
    return 0


def say(out: Path, manifest: Manifest, seconds: float) -> None:
    """What was made, and how to train on it."""
    print(f"{manifest.n_pages} pages of {manifest.page} sequences, {manifest.tokens:,} tokens in {seconds:.1f} s")
    print(f"{manifest.n_heldout_pages} pages held out: {manifest.heldout_documents} documents that no one trains on")
    tokenizer = "" if manifest.tokenizer == "bytes" else f" --data.tokenizer {manifest.tokenizer}"
    print(f"manifest {open_pages(out).manifest_hash}\ntrain on them with: --node.data {out}{tokenizer}")


def _default_out(cli: Cli) -> Path:
    if cli.args.sources:
        raise ConfigError("name the folder for the pages with --out")
    data = cli.run.data
    return Path(cli.node.home) / "data" / f"stdlib-s{data.sequence}-p{data.page}"  # where mine.py looks


def _tokenizer(cli: Cli) -> str:
    """The tokenizer to use, which must be the one that the configuration names, if it names one."""
    wanted = cli.run.data.tokenizer
    if cli.args.tokenizer is None:
        if wanted != "bytes":
            raise ConfigError(f"data.tokenizer is {wanted[:16]}...: name that tokenizer.json with --tokenizer")
        return "bytes"
    name = open_tokenizer(cli.args.tokenizer).name
    if wanted not in ("bytes", name):
        raise ConfigError(f"{cli.args.tokenizer} has sha256 {name[:16]}..., data.tokenizer is {wanted[:16]}...")
    return cli.args.tokenizer


if __name__ == "__main__":
    guarded(main)
