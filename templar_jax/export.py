"""Models that leave the house and come in: a Hugging Face folder of the parameters, and parameters of such a folder."""

import itertools
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from templar_jax.compress.root import make_root
from templar_jax.config import ComputeConfig, NodeConfig, RunConfig
from templar_jax.data.pages import TOKENIZER_FILE
from templar_jax.data.tokenizer import BYTES, open_tokenizer
from templar_jax.errors import ConfigError, StoreError
from templar_jax.huggingface import config_json, tokenizer_json, weights
from templar_jax.huggingface.weights import DTYPES, Load, Progress
from templar_jax.model.llama import Llama
from templar_jax.model.placement import make_placement
from templar_jax.sharding import BATCH, shards, table
from templar_jax.store.disk import explain, make_folder

Params = dict[str, jax.Array]
PARTIAL = ".part"  # suffix of a folder that is being written
CHECK_TOKENS = (4, 64)  # sequences and their length in `max_abs_logit_error`, unless the run's are shorter
GENERATION = "generation_config.json"


@dataclass(frozen=True)
class Exported:
    """What `export_folder` wrote."""

    folder: Path
    files: tuple[str, ...]
    separator: int | None  # id between documents; None: the tokenizer is unknown
    vocab: int  # rows of embedding and head


def export_folder(
    out: Path,
    run: RunConfig,
    load: Load,
    *,
    dtype: str = "float32",
    tokenizer: Path | None = None,
    vocab: int | None = None,
    shard_bytes: int = weights.SHARD_BYTES,
    progress: Progress | None = None,
) -> Exported:
    """Writes a folder that transformers' LlamaForCausalLM and AutoTokenizer load. It appears whole or not at all.

    Args:
      load: name of a parameter -> its array (`params.__getitem__`, or `Saved.load` of a checkpoint): one at a time.
      dtype: "float32" (exact) or "bfloat16" (rounded to nearest even, half the size).
      tokenizer: the run's tokenizer.json, unless it is "bytes". None: the folder gets no tokenizer.
      vocab: rows of embedding and head to write; None: all, as the run has them (padded to a multiple of 64).

    Raises:
      ConfigError: `out` is taken, the tokenizer is not the run's, or `vocab` cannot be.
      StoreError: the disk is full or not writable.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out} exists: choose another folder, or remove it")
    if dtype not in DTYPES:
        raise ConfigError(f"weights in {dtype!r}: choose one of {', '.join(DTYPES)}")
    draft = out.with_name(out.name + PARTIAL)
    try:
        shutil.rmtree(draft, ignore_errors=True)
        make_folder(draft)
        spoken = tokenizer_json.write_tokenizer(draft, run, tokenizer)
        rows = _rows(run, vocab, spoken.vocab)
        files = weights.write_weights(
            draft, run, load, dtype=dtype, vocab=rows, shard_bytes=shard_bytes, progress=progress
        )
        values = config_json.to_config(run, dtype, spoken.separator, rows)
        _write_json(draft / config_json.CONFIG, values)
        _write_json(draft / GENERATION, {key: values[key] for key in ("bos_token_id", "eos_token_id")})
        if out.exists():
            out.rmdir()
        os.rename(draft, out)
    except OSError as error:
        raise StoreError(explain(error, out)) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return Exported(out, (config_json.CONFIG, GENERATION, *spoken.files, *files), spoken.separator, rows)


def read_folder(folder: Path, run: RunConfig, mesh: Mesh) -> Iterator[tuple[str, jax.Array]]:
    """(name, parameter) of a Hugging Face folder for `run`, sharded over `mesh`, in the table's order.

    f32, whatever the files hold; magnitudes under 2**-100 become 0, as in every parameter of a run.

    Raises:
      ConfigError: another kind of model, or another shape than the run's (with the settings to change).
      DataError: files that are missing or damaged.
    """
    found = config_json.read_config(folder)
    config_json.check_fits(run, found, folder)
    yield from weights.read_weights(folder, run, mesh, vocab=found.vocab)


def import_folder(folder: Path, run: RunConfig, mesh: Mesh) -> Params:
    """All parameters of a folder. Raises as `read_folder`."""
    return dict(read_folder(folder, run, mesh))


def root_of(folder: Path, run: RunConfig, mesh: Mesh, progress: Progress | None = None) -> bytes:
    """The state root of a folder's model; one group of parameters in memory. Raises as `read_folder`."""
    rest, done = read_folder(folder, run, mesh), itertools.count(1)

    class Stream(dict):
        def __missing__(self, name: str) -> jax.Array:  # a root asks for the parameters in the order of the table
            found, value = next(rest)
            assert found == name, (found, name)
            if progress:
                progress(next(done), len(table(run)))
            return value

    return make_root(run, mesh)(Stream())


def fitting_run(folder: Path, run: RunConfig) -> tuple[RunConfig, list[str]]:
    """`run` with the model and tokenizer of a Hugging Face folder, and what its maker should know about the data.

    Raises ConfigError and DataError as `read_folder`.
    """
    found = config_json.read_config(folder)
    free = {name: getattr(run.model, name) for name in config_json.FREE}
    notes, file, tokenizer = [], folder / tokenizer_json.TOKENIZER, run.data.tokenizer
    if not file.exists():
        notes.append(f"no {file.name} in {folder}: data.tokenizer stays {tokenizer!r}; pages need the model's own")
    elif tokenizer_json.is_bytes(file):
        tokenizer = BYTES
    else:
        tokenizer = open_tokenizer(file).name
        notes.append(f"prepare pages with scripts/prepare_data.py --tokenizer {file}, and name them with --node.data")
    if run.data.sequence > found.sequence:
        notes.append(f"data.sequence {run.data.sequence} is longer than the {found.sequence} tokens it was trained on")
    data = replace(run.data, tokenizer=tokenizer)
    return replace(run, model=replace(found.model, **free), data=data, start=""), notes


def tokenizer_beside(node: NodeConfig) -> Path | None:
    """tokenizer.json beside the node's pages, where there is one."""
    path = Path(node.data) / TOKENIZER_FILE
    return path if node.data and path.exists() else None


def max_abs_logit_error(
    folder: Path, run: RunConfig, params: Params, mesh: Mesh, seed: int = 0
) -> tuple[float | None, str]:
    """(largest difference between transformers' logits and ours in f32, how it was measured or why it was not).

    `folder` is an export of `params`. Our side computes with the parameters as the folder's dtype rounds them, so that
    what is measured is the model and the files, not the rounding that was asked for.
    """
    try:
        import torch  # pyright: ignore[reportMissingImports]
        from transformers import AutoModelForCausalLM  # pyright: ignore[reportMissingImports]
        from transformers.utils.logging import disable_progress_bar  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        return None, f"{error.name} is not installed (pip install 'templar-jax[parity]')"
    disable_progress_bar()
    theirs = AutoModelForCausalLM.from_pretrained(str(folder)).float().eval()
    stored = DTYPES[json.loads((folder / config_json.CONFIG).read_bytes())["dtype"]]
    rounded = {name: value.astype(stored).astype(np.float32) for name, value in params.items()}
    vocab = theirs.config.vocab_size
    shape = (CHECK_TOKENS[0], min(CHECK_TOKENS[1], run.data.sequence))
    tokens_BS = np.random.default_rng(seed).integers(0, vocab, shape, dtype=np.int32)
    ours_BSV = logits(run, mesh)(rounded, tokens_BS)[..., :vocab]
    with torch.no_grad():
        theirs_BSV = theirs(torch.from_numpy(tokens_BS.astype(np.int64))).logits.numpy()
    error = float(np.abs(theirs_BSV - ours_BSV).max())
    return error, f"{shape[0]} sequences of {shape[1]} random tokens in float32, torch {torch.__version__}"


def logits(run: RunConfig, mesh: Mesh) -> Callable[[Params, np.ndarray], np.ndarray]:
    """`logits(params, tokens_BS) -> f32 [B, S, V]` on the host, in float32 with full matmul precision."""
    place = make_placement(run, ComputeConfig(attention="xla"), mesh)

    @jax.jit
    def forward(params: Params, tokens_BS: jax.Array) -> jax.Array:
        return Llama(params, run.model, place)(tokens_BS)

    def call(params: Params, tokens_BS: np.ndarray) -> np.ndarray:
        count = tokens_BS.shape[0]
        padded = np.pad(tokens_BS, ((0, -count % shards(mesh, BATCH)), (0, 0)))
        with jax.default_matmul_precision("highest"):
            return np.asarray(forward(params, padded))[:count]

    return call


def parameter_bytes(run: RunConfig, dtype: str) -> int:
    """Bytes of all parameters in `dtype`."""
    return sum(math.prod(t.shape) for t in weights.tensors(run, run.model.vocab)) * DTYPES[dtype].itemsize


def _rows(run: RunConfig, vocab: int | None, ids: int) -> int:
    rows = run.model.vocab if vocab is None else vocab
    if not max(ids, 1) <= rows <= run.model.vocab:
        raise ConfigError(
            f"{rows} rows of embedding and head: the tokenizer has {ids} ids and the model {run.model.vocab} rows, "
            "choose a number between"
        )
    return rows


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
