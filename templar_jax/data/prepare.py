"""Documents to pages: tokenise shards in several processes, merge them, write the manifest last.

OUT/manifest.json       written last: no manifest, no pages
OUT/train/, heldout/    zarr3 arrays
OUT/heldout_bytes.u32   bytes of each held-out sequence
OUT/tokenizer.json      unless bytes
OUT/.work/PLAN/         shards that are done: what a killed run goes on from; removed at the end
"""

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from templar_jax.data.manifest import FORMAT, NAME, Manifest, encode_manifest
from templar_jax.data.merge import write_pages
from templar_jax.data.pages import TOKENIZER_FILE, open_pages
from templar_jax.data.pool import tokenise_all
from templar_jax.data.runs import Counts
from templar_jax.data.sources import Source, find_sources, shards, standard_library
from templar_jax.data.tokenizer import Tokenizer, open_tokenizer
from templar_jax.errors import ConfigError, DataError, StoreError
from templar_jax.store.disk import explain, make_folder, write_file

__all__ = ["Progress", "prepare", "standard_library"]

HELDOUT = 0.05  # share of the tokens
PLAN = "prepared.json"  # what the pages in a folder were made of
INLINE_BYTES = 1 << 25  # less text than this is tokenised in this process: spawning takes longer


class Progress(NamedTuple):
    """What `prepare` is at. With total 0 it is only a remark."""

    phase: str  # "tokenise" (shards), "write" (pages), "note"
    done: int = 0
    total: int = 0
    note: str = ""


Show = Callable[[Progress], None]


def prepare(
    sources: Sequence[Path | str],
    out: Path | str,
    *,
    tokenizer: str | Path = "bytes",
    sequence: int,
    page: int,
    workers: int = 0,
    heldout: float = HELDOUT,
    text_key: str = "text",
    progress: Show | None = None,
) -> Manifest:
    """Prepares pages in `out`; returns at once where they already stand. Killed, it goes on where it was.

    The manifest depends on the set of distinct documents, the tokenizer and `sequence`, `page`, `heldout`: not on names
    and order of files, the number of processes, or interruptions.

    Args:
      sources: files and folders: text in UTF-8, jsonl, parquet; .gz and .zst of the first two.
      out: a folder, created. One process at a time works in it; others wait, then find the pages there.
      tokenizer: "bytes", or the path of a tokenizer.json.
      sequence: tokens of a sequence. page: sequences of a page.
      workers: processes; 0: as many as cores, or none for little text. 1: in this process.
      heldout: share of the tokens in documents that are never trained on, at least one page; 0: none.
      text_key: key (jsonl) or column (parquet) of the text.
      progress: called with each step.

    Raises:
      ConfigError: an option that cannot be. DataError: nothing to read, a file that cannot be read to its end, too
        little text, or `out` holds other pages. StoreError: `out` cannot be written; what is done stays done.
    """
    if sequence < 2 or page < 1 or workers < 0 or not 0 <= heldout < 1:
        raise ConfigError("prepare needs sequence >= 2, page >= 1, workers >= 0 and 0 <= heldout < 1")
    show, folder = progress or (lambda step: None), Path(out)
    opened = open_tokenizer(tokenizer)
    found = find_sources(sources)
    plan = _plan(found, opened, sequence, page, heldout, text_key)
    make_folder(folder)
    with _locked(folder, show):
        if (folder / NAME).exists():
            return _already(folder, plan, show)
        work = folder / ".work"
        for other in work.glob("*") if work.exists() else ():
            if other.name != plan:
                show(Progress("note", note=f"dropping unfinished work on other sources or options in {work}"))
                shutil.rmtree(other, ignore_errors=True)
        counts, runs = _tokenise(found, opened, work / plan, workers, text_key, show)
        manifest = write_pages(
            runs, counts.tokens, opened, folder, sequence, page, heldout, lambda n, of: show(Progress("write", n, of))
        )
        _finish(folder, manifest, plan, opened)
    return manifest


def _tokenise(
    found: list[Source], tokenizer: Tokenizer, work: Path, workers: int, text_key: str, show: Show
) -> tuple[Counts, list[Path]]:
    """Counts and runs of all shards."""
    todo = shards(found)
    if not workers:
        small = sum(part.weight for shard in todo for part in shard) < INLINE_BYTES
        workers = 1 if small else len(os.sched_getaffinity(0))
    counts = tokenise_all(
        todo, text_key, tokenizer, work, workers, lambda done, total: show(Progress("tokenise", done, total))
    )
    if counts.bad:
        show(Progress("note", note=f"passed over {counts.bad} bad records, the first: {counts.first_bad}"))
    if not counts.documents:
        raise DataError(f"no document in {len(found)} files ({counts.bad} bad records): name files with text")
    return counts, sorted(work.glob("shard-*/run-*"))


def _finish(folder: Path, manifest: Manifest, plan: str, tokenizer: Tokenizer) -> None:
    if tokenizer.file is not None:
        write_file(folder / TOKENIZER_FILE, [tokenizer.file.read_bytes()])
    write_file(folder / PLAN, [json.dumps({"plan": plan}).encode()])
    write_file(folder / NAME, [encode_manifest(manifest)])
    shutil.rmtree(folder / ".work", ignore_errors=True)


def _plan(found: list[Source], tokenizer: Tokenizer, sequence: int, page: int, heldout: float, text_key: str) -> str:
    """Names the work: same files, same options."""
    files = [(source.name, source.size, source.mtime_ns) for source in found]
    text = json.dumps([FORMAT, tokenizer.name, sequence, page, heldout, text_key, files])
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _already(folder: Path, plan: str, show: Show) -> Manifest:
    """The manifest that stands there, if it is of the same plan."""
    manifest = open_pages(folder).manifest
    try:
        same = json.loads((folder / PLAN).read_text())["plan"] == plan
    except (OSError, ValueError, KeyError, TypeError):
        same = False
    if not same:
        raise DataError(
            f"{folder} holds pages of other sources or options: name another folder with --out, or remove it"
        )
    shutil.rmtree(folder / ".work", ignore_errors=True)
    show(Progress("note", note=f"{folder} is already prepared"))
    return manifest


@contextmanager
def _locked(folder: Path, show: Show) -> Iterator[None]:
    """One process at a time prepares in a folder; the system lets go of the lock when it dies."""
    try:
        file = open(folder / ".lock", "a")
    except OSError as error:
        raise StoreError(explain(error, folder)) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            show(Progress("note", note=f"another process is preparing {folder}: waiting for it"))
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
