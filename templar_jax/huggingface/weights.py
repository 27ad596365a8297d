"""Parameters <-> the sharded safetensors files of a Hugging Face folder, one unit or one shard at a time.

The table's columns `hf` and `hf_transposed` say everything: q and k need no permutation, since the rotary embedding
turns the same pairs (i, i + H / 2) here and there. A padded vocabulary is cut on the way out where that is asked for,
and padded again on the way in.

Letters: L layers, I rows of a unit here, O columns.
"""

import json
import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
from jax.sharding import Mesh

from templar_jax.config import RunConfig
from templar_jax.errors import ConfigError, DataError
from templar_jax.sharding import Param, shardings, table

DTYPES = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
READABLE = ("F32", "BF16", "F16")
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
TINY = np.float32(2.0**-100)  # smaller magnitudes are 0 in a run's parameters
SHARD_BYTES = 4 * 2**30  # of one file, which is also what the host's memory holds at once
VOCAB_ROWS = ("embed", "head")  # parameters with one row (there) for each token
IGNORED = ("rotary_emb.inv_freq",)  # of old files: derived, not learned

Progress = Callable[[int, int], None]
Load = Callable[[str], Any]


@dataclass(frozen=True)
class Tensor:
    """One tensor of a file: a unit of a parameter, in the orientation of torch's Linear."""

    name: str
    param: Param
    index: tuple[int, ...]
    shape: tuple[int, ...]


def tensors(run: RunConfig, vocab: int) -> Iterator[Tensor]:
    """Every tensor of the run's model in the order of the table, with `vocab` rows of embedding and head."""
    for param in table(run):
        shape = param.unit_shape[::-1] if param.hf_transposed else param.unit_shape
        if param.name in VOCAB_ROWS:
            shape = (vocab, *shape[1:])
        for index in np.ndindex(param.shape[: param.stack]):
            yield Tensor(param.hf.format(*index), param, index, shape)


def split(run: RunConfig, vocab: int, itemsize: int, most: int) -> list[list[Tensor]]:
    """The tensors of each file: at most `most` bytes, or a single larger tensor."""
    files: list[list[Tensor]] = []
    filled = most
    for tensor in tensors(run, vocab):
        size = math.prod(tensor.shape) * itemsize
        if filled + size > most:
            files.append([])
            filled = 0
        files[-1].append(tensor)
        filled += size
    return files


def write_weights(
    folder: Path,
    run: RunConfig,
    load: Load,
    *,
    dtype: str = "float32",
    vocab: int | None = None,
    shard_bytes: int = SHARD_BYTES,
    progress: Progress | None = None,
) -> list[str]:
    """Writes model.safetensors, or numbered ones and their index; returns the file names.

    Args:
      load: name of a parameter -> its array, of NumPy or JAX (sharded as it likes); asked for once each, in order.
      dtype: of the files; float32 parameters are rounded to nearest even.
      vocab: rows of embedding and head to write; None: all, padding included.
      progress: called with (tensors written, of how many).
    """
    from safetensors.numpy import save_file

    vocab = run.model.vocab if vocab is None else vocab
    files = split(run, vocab, DTYPES[dtype].itemsize, shard_bytes)
    many = len(files) > 1
    names = [f"model-{n:05d}-of-{len(files):05d}.safetensors" if many else SINGLE for n in range(1, len(files) + 1)]
    total, done, held, array = sum(map(len, files)), 0, "", None
    for name, content in zip(names, files, strict=True):
        shard: dict[str, np.ndarray] = {}
        for tensor in content:
            if tensor.param.name != held:
                held, array = tensor.param.name, load(tensor.param.name)
            shard[tensor.name] = _out(tensor, array, DTYPES[dtype])
            done += 1
            if progress:
                progress(done, total)
        save_file(shard, folder / name, metadata={"format": "pt"})
    if not many:
        return names
    where = {tensor.name: name for name, content in zip(names, files, strict=True) for tensor in content}
    size = sum(math.prod(tensor.shape) for content in files for tensor in content) * DTYPES[dtype].itemsize
    index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(where.items()))}
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return [*names, INDEX]


def _out(tensor: Tensor, array: Any, dtype: np.dtype) -> np.ndarray:
    """One unit as its file holds it."""
    unit = np.asarray(_unit(array, tensor.index) if isinstance(array, jax.Array) else array[tensor.index])
    if tensor.param.hf_transposed:
        unit = unit.T
    return np.ascontiguousarray(unit[: tensor.shape[0]].astype(dtype))


@jax.jit
def _unit(array: jax.Array, index: tuple[int, ...]) -> jax.Array:
    """array[index], compiled once for all layers."""
    for position in index:
        array = jax.lax.dynamic_index_in_dim(array, position, keepdims=False)
    return array


def read_weights(
    folder: Path, run: RunConfig, mesh: Mesh, *, vocab: int | None = None
) -> Iterator[tuple[str, jax.Array]]:
    """(name, parameter) of the run from a folder's files: f32, sharded over `mesh`, in the order of the table.

    Read one at a time, no more than one shard in host memory. Rows of tokens that the files do not have (ids from
    `vocab` on) get the mean of the others: their logit is then the mean logit, so that together they take at most
    (rows added) / vocab of the probability (Jensen), where rows of zeros could take nearly all of it.

    Raises:
      DataError: a file or tensor is missing, damaged, or not finite.
      ConfigError: tensors that this model does not have, or of another shape or dtype.
    """
    vocab = run.model.vocab if vocab is None else vocab
    wanted = {tensor.name: tensor for tensor in tensors(run, vocab)}
    at = shardings(run, mesh)
    with ExitStack() as stack:
        slices = _open_slices(folder, stack)
        _check(folder, run, wanted, slices)
        for param in table(run):
            read = _reader(folder, param, vocab, slices)
            yield param.name, jax.block_until_ready(jax.make_array_from_callback(param.shape, at[param.name], read))


def _open_slices(folder: Path, stack: ExitStack) -> dict[str, Any]:
    """{tensor: lazy slice} of all files of the folder. DataError."""
    from safetensors import SafetensorError, safe_open

    path = folder / INDEX
    try:
        names = sorted(set(json.loads(path.read_bytes())["weight_map"].values())) if path.exists() else [SINGLE]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} is damaged: copy it again") from error
    slices: dict[str, Any] = {}
    for name in names:
        if Path(name).name != name:
            raise DataError(f"{path} names a file outside its folder: {name}")
        try:
            file = stack.enter_context(safe_open(folder / name, "numpy"))
            slices.update({key: file.get_slice(key) for key in file.keys()})  # noqa: SIM118 - no mapping
        except FileNotFoundError as error:
            raise DataError(f"{folder / name} is missing: copy it there (only safetensors are read)") from error
        except (OSError, SafetensorError) as error:
            raise DataError(f"{folder / name} is damaged ({str(error).splitlines()[0]}): copy it again") from error
    return slices


def _check(folder: Path, run: RunConfig, wanted: dict[str, Tensor], slices: dict[str, Any]) -> None:
    missing = [name for name in wanted if name not in slices]
    if missing:
        raise DataError(f"{folder} lacks {len(missing)} tensors, the first is {missing[0]}: copy the folder again")
    tied = ("lm_head.weight",) if run.model.tied else ()  # some files hold the shared matrix twice
    other = [name for name in slices if name not in wanted and name not in tied and not name.endswith(IGNORED)]
    if other:
        raise ConfigError(
            f"{folder} has {len(other)} tensors that a Llama does not have, the first is {sorted(other)[0]}: "
            "choose a plain LlamaForCausalLM"
        )
    for name, tensor in wanted.items():
        shape, dtype = tuple(slices[name].get_shape()), slices[name].get_dtype()
        if shape != tensor.shape:
            raise ConfigError(
                f"{name} in {folder} is {shape}, config.json says {tensor.shape}: they do not belong together"
            )
        if dtype not in READABLE:
            raise ConfigError(f"{name} in {folder} is {dtype}: take the weights in {', '.join(READABLE)}")


def _reader(folder: Path, param: Param, vocab: int, slices: dict[str, Any]) -> Callable[[Any], np.ndarray]:
    """`read(index) -> f32`: a shard of the stacked parameter. DataError: not finite."""
    pads = param.name in VOCAB_ROWS and vocab < param.unit_shape[-1 if param.hf_transposed else 0]
    mean = _mean_row(slices[param.hf], vocab) if pads else None

    def unit(layer: tuple[int, ...], spans: list[slice]) -> np.ndarray:
        """spans of one unit, as numbers that the run may have."""
        name = param.hf.format(*layer)
        rows, *columns = spans[::-1] if param.hf_transposed else spans
        there = slices[name].get_shape()[0]
        found = slice(min(rows.start, there), min(rows.stop, there))
        value = slices[name][(found, *columns)].astype(np.float32)
        if not np.isfinite(value).all():
            raise DataError(f"{name} in {folder} is not finite: take other weights")
        if mean is not None:
            added = rows.stop - rows.start - len(value)
            value = np.concatenate([value, np.broadcast_to(mean[columns[0]], (added, value.shape[1]))])
        value = np.where(np.abs(value) < TINY, np.float32(0), value)
        return value.T if param.hf_transposed else value

    def read(index: tuple[slice, ...]) -> np.ndarray:
        whole = [slice(*span.indices(extent)) for span, extent in zip(index, param.shape, strict=True)]
        out = np.empty([span.stop - span.start for span in whole], np.float32)
        stacked, spans = whole[: param.stack], whole[param.stack :]
        for position in np.ndindex(out.shape[: param.stack]):
            out[position] = unit(tuple(span.start + at for span, at in zip(stacked, position, strict=True)), spans)
        return out

    return read


def _mean_row(rows: Any, vocab: int, at_once: int = 8192) -> np.ndarray:
    """f32 mean over the rows of a tensor, summed in f64."""
    total = sum(
        rows[start : min(start + at_once, vocab)].astype(np.float64).sum(0) for start in range(0, vocab, at_once)
    )
    return (np.asarray(total) / vocab).astype(np.float32)
