"""Held-out loss and bits per byte of a checkpoint: of text that no page holds, so that nobody trained on it.

python scripts/evaluate.py                              the newest checkpoint under node.home
python scripts/evaluate.py --checkpoint DIR --all       on all that is held out
"""

import argparse
import math
import sys
from pathlib import Path

from rich.console import Console
from rich.progress import track

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from templar_jax.config_load import Cli, guarded, parse_cli  # noqa: E402
from templar_jax.data.pages import Pages  # noqa: E402
from templar_jax.errors import ConfigError, StoreError  # noqa: E402


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--checkpoint", type=Path, metavar="DIR", help="a checkpoint, folder above, or HF folder (node.home)"
    )
    parser.add_argument("--window", type=int, metavar="N", help="the checkpoint of window N (default: the newest)")
    parser.add_argument("--all", action="store_true", help="all that is held out, not node.eval_sequences of it")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")


def main(argv: list[str]) -> int:
    cli = parse_cli(argv, __doc__ or "", arguments)
    # after --help and errors of the command line, which should not wait for JAX
    import jax

    from templar_jax.config_check import fit_mesh
    from templar_jax.export import import_folder
    from templar_jax.huggingface.config_json import CONFIG
    from templar_jax.node import engine as engines
    from templar_jax.node.open import pin_data, set_up_devices
    from templar_jax.sharding import make_mesh
    from templar_jax.store.checkpoint_read import open_checkpoint
    from templar_jax.telemetry.summary import write_json
    from templar_jax.train.offload import parameters_like

    set_up_devices(cli.node)
    source = cli.args.checkpoint or Path(cli.node.home)
    saved = None if (source / CONFIG).is_file() else open_checkpoint(source, cli.args.window)
    if saved is not None:
        saved.check(cli.run)
    run, pages = pin_data(cli.run, cli.node, lambda text: print(text, flush=True))
    if saved is None:
        print(f"Hugging Face folder {source}")
    else:
        print(f"checkpoint {saved.folder}, window {saved.meta.window}, outer step {saved.meta.outer_step}")
        if saved.meta.run_id != run.run_id:
            print(f"note: it is of run {saved.meta.run_id[:8]}, configuration and data are of run {run.run_id[:8]}")
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
    if cli.args.json:
        figures = {"loss": loss, "bits_per_byte": bits, "sequences": len(tokens_NS)}
        figures["window"] = None if saved is None else saved.meta.window
        try:
            write_json(cli.args.json, figures)
        except OSError as error:
            raise StoreError(f"cannot write {cli.args.json}: {error.strerror}") from error
    return 0


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
