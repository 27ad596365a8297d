"""The manifest of prepared pages: what they hold and the sha256 of each. Its own sha256 names the data of a run."""

import dataclasses
import hashlib
import json
import math
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from templar_jax.data.tokenizer import token_dtype
from templar_jax.errors import DataError

FORMAT = 1
NAME = "manifest.json"


@dataclass(frozen=True)
class Manifest:
    """A pure function of the set of documents, the tokenizer and the options; nothing of the machine is in it."""

    format: int
    tokenizer: str  # "bytes", or the sha256 of a tokenizer.json
    vocab: int  # ids lie below this
    separator: int  # id behind every document
    sequence: int  # tokens of a sequence, S
    page: int  # sequences of a page, P
    n_pages: int  # training pages
    n_heldout_pages: int
    tokens: int  # of the training pages: n_pages * page * sequence
    bytes: int  # UTF-8 bytes that these tokens stand for; separators stand for none
    heldout_tokens: int
    heldout_bytes: int
    documents: int  # distinct ones, in the training part
    heldout_documents: int
    sha256: tuple[str, ...]  # of each training page: its tokens [P, S], row by row, little-endian
    heldout_sha256: tuple[str, ...]
    heldout_counts_sha256: str  # of the file with the byte count of each held-out sequence

    @property
    def dtype(self) -> np.dtype:
        """Of the tokens in a page: little-endian uint16 or uint32."""
        return token_dtype(self.vocab)


def encode_manifest(manifest: Manifest) -> bytes:
    """Canonical JSON."""
    return json.dumps(dataclasses.asdict(manifest), sort_keys=True, separators=(",", ":")).encode()


def manifest_hash(data: bytes) -> str:
    """sha256 of the manifest file's bytes, hex: what `data.manifest` of a run pins."""
    return hashlib.sha256(data).hexdigest()


def parse_manifest(data: bytes, where: Path) -> Manifest:
    """Raises DataError for anything that `encode_manifest` did not write, or whose counts contradict each other."""
    try:
        values: Any = json.loads(data)
        types = typing.get_type_hints(Manifest)
        if values.get("format") != FORMAT:
            found = values.get("format")
            raise DataError(f"{where} has format {found!r}, this version reads {FORMAT}: prepare it again")
        if set(values) != set(types):
            raise ValueError("other fields than expected")
        for name, kind in types.items():
            if kind not in (int, str):
                values[name] = tuple(values[name])
            elif type(values[name]) is not kind or kind is int and values[name] < 0:
                raise ValueError(f"{name} is {values[name]!r}")
        manifest = Manifest(**values)
        if _contradicts(manifest) or encode_manifest(manifest) != data:
            raise ValueError("it contradicts itself")
    except (ValueError, TypeError, AttributeError) as error:
        raise DataError(f"{where} is damaged ({error}): copy it again, or prepare the pages again") from error
    return manifest


def _contradicts(m: Manifest) -> bool:
    sizes = (m.sequence, m.page, m.n_pages, m.vocab)
    return (
        min(sizes) < 1
        or m.separator >= m.vocab
        or (m.n_pages, m.n_heldout_pages) != (len(m.sha256), len(m.heldout_sha256))
        or m.tokens != math.prod(sizes[:3])
        or m.heldout_tokens != m.n_heldout_pages * m.page * m.sequence
    )
