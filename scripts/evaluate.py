"""Held-out loss and bits per byte of a checkpoint: of text that no page holds, so that nobody trained on it.

python scripts/evaluate.py                              the newest checkpoint under node.home
python scripts/evaluate.py --checkpoint DIR --all       on all that is held out
python scripts/evaluate.py --harness hellaswag,arc_easy     by lm-evaluation-harness, where it is installed
"""

import argparse
import math
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import track

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from templar_jax.config_load import Cli, guarded, parse_cli  # noqa: E402
from templar_jax.data.pages import Pages  # noqa: E402
from templar_jax.errors import ConfigError, StoreError  # noqa: E402

if TYPE_CHECKING:
    from templar_jax.store.checkpoint_read import Saved


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--checkpoint", type=Path, metavar="DIR", help="a checkpoint, folder above, or HF folder (node.home)"
    )
    parser.add_argument("--window", type=int, metavar="N", help="the checkpoint of window N (default: the newest)")
    parser.add_argument("--all", action="store_true", help="all that is held out, not node.eval_sequences of it")
    parser.add_argument("--harness", metavar="TASKS", help="by lm-evaluation-harness on these tasks, A,B,...")
    parser.add_argument("--include", type=Path, metavar="DIR", help="folder of further tasks for --harness")
    parser.add_argument("--limit", type=int, default=0, metavar="N", help="documents of each task (default 0: all)")
    parser.add_argument("--tokenizer", type=Path, metavar="FILE", help="for --harness (default: beside the pages)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")


def main(argv: list[str]) -> int:
    cli = parse_cli(argv, __doc__ or "", arguments)
    # after --help and errors of the command line, which should not wait for JAX
    from templar_jax.telemetry.summary import write_json

    figures = harness(cli) if cli.args.harness else heldout(cli)
    if cli.args.json:
        try:
            write_json(cli.args.json, figures)
        except OSError as error:
            raise StoreError(f"cannot write {cli.args.json}: {error.strerror}") from error
    return 0


def heldout(cli: Cli) -> dict:
    """The figures of held-out text."""
    import jax

    from templar_jax.config_check import fit_mesh
    from templar_jax.export import import_folder
    from templar_jax.node import engine as engines
    from templar_jax.node.open import pin_data, set_up_devices
    from templar_jax.sharding import make_mesh
    from templar_jax.train.offload import parameters_like

    set_up_devices(cli.node)
    source, saved = open_source(cli)
    run, pages = pin_data(cli.run, cli.node, lambda text: print(text, flush=True))
    if saved is not None and saved.meta.run_id != run.run_id:
        print(f"note: it is of run {saved.meta.run_id[:8]}, this configuration and data are of run {run.run_id[:8]}")
    size = run.inner.batch
    tokens_NS, n_bytes = pages.read_heldout(sequences(cli, pages, size))

    mesh = make_mesh(fit_mesh(run, cli.node, jax.local_device_count()))
    engine = engines.build(run, cli.node.compute, mesh)
    params = import_folder(source, run, mesh) if saved is None else saved.place(parameters_like(run, mesh, False))
    console = Console(stderr=True)
    starts = track(range(0, len(tokens_NS), size), "evaluating", console=console, disable=not console.is_terminal)
    nats = sum(engines.heldout_nats(engine, params, tokens_NS[first : first + size]) for first in starts)

    loss, bits = nats / (len(tokens_NS) * (run.data.sequence - 1)), nats / math.log(2) / n_bytes
    print(f"{len(tokens_NS)} sequences: loss {loss:.4f} nats per token, {bits:.4f} bits per byte")
    return {"loss": loss, "bits_per_byte": bits, "sequences": len(tokens_NS), "window": window_of(saved)}


def harness(cli: Cli) -> dict:
    """The figures of lm-evaluation-harness. A checkpoint is exported for it to a folder that is then removed."""
    import jax

    from templar_jax.export import export_folder, tokenizer_beside
    from templar_jax.harness import check_harness, run_harness

    jax.config.update("jax_platforms", "cpu")  # nothing to compute here: the accelerator is the harness's
    args, dtype = cli.args, cli.node.compute.dtype
    check_harness()
    source, saved = open_source(cli)
    with tempfile.TemporaryDirectory(prefix="templar-") as folder:
        if saved is not None:
            source = Path(folder) / "model"
            tokenizer = args.tokenizer or tokenizer_beside(cli.node)
            made = export_folder(source, cli.run, saved.load, dtype=dtype, tokenizer=tokenizer)
            if made.separator is None:
                raise ConfigError("the run's tokenizer is a file: give it with --tokenizer tokenizer.json")
        tasks, batch = args.harness.split(","), cli.run.inner.batch
        found = run_harness(source, tasks, dtype=dtype, batch=batch, include=args.include, limit=args.limit)
    print(found.table)
    return {"harness": found.results, "window": window_of(saved)}


def open_source(cli: Cli) -> "tuple[Path, Saved | None]":
    """What is evaluated: a Hugging Face folder, or a checkpoint that fits the run."""
    from templar_jax.huggingface.config_json import CONFIG
    from templar_jax.store.checkpoint_read import open_checkpoint

    source = cli.args.checkpoint or Path(cli.node.home)
    if (source / CONFIG).is_file():
        print(f"Hugging Face folder {source}", flush=True)
        return source, None
    saved = open_checkpoint(source, cli.args.window)
    saved.check(cli.run)
    where = f"window {saved.meta.window}, outer step {saved.meta.outer_step}"
    print(f"checkpoint {saved.folder}, {where}", flush=True)
    return saved.folder, saved


def window_of(saved: "Saved | None") -> int | None:
    return None if saved is None else saved.meta.window


def sequences(cli: Cli, pages: Pages, size: int) -> int:
    """How many held-out sequences to take: whole batches, as a node does."""
    there = pages.manifest.n_heldout_pages * pages.manifest.page
    wanted = there if cli.args.all else cli.node.eval_sequences
    if wanted < size:
        raise ConfigError(
            f"{wanted} held-out sequences are less than one batch of {size}: raise node.eval_sequences (the pages hold "
            f"{there}), or lower inner.batch"
        )
    return wanted // size * size


if __name__ == "__main__":
    guarded(main)
