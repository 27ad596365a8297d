"""Text to token ids and back: bytes, or any `tokenizer.json` of the tokenizers library.

A tokenizer's identity is what it does: "bytes", or the sha256 of its file. Every document ends in a separator.

Letters: N tokens of a document, its separator included.
"""

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from templar_jax.errors import DataError

BYTES = "bytes"
# What published tokenizers end a document with, in order of preference.
SEPARATORS = ("<|endoftext|>", "<|end_of_text|>", "<|eos|>", "<eos>", "</s>", "[SEP]")
MAX_TOKEN_BYTES = 65_535  # byte counts travel as uint16


@dataclass(frozen=True)
class Tokenizer:
    """`encode(utf8) -> (ids_N, bytes_N uint16)`; `decode(ids) -> text`, separators left out.

    `bytes_N` counts the UTF-8 bytes that each token stands for; they add up to the document's length. What lies
    between two tokens (a space that a normaliser drops) counts to the later one, a character that several tokens
    share to its first. `encode` raises ValueError for a document in which one token stands for more than 65,535 bytes.
    """

    name: str  # "bytes", or the sha256 of the file in hex
    vocab: int  # ids lie below this, the separator's included
    separator: int  # the id that ends every document
    file: Path | None  # the tokenizer.json; None for bytes
    encode: Callable[[bytes], tuple[np.ndarray, np.ndarray]]
    decode: Callable[[Sequence[int]], str]

    @property
    def dtype(self) -> np.dtype:
        """Little-endian uint16 where every id fits, else uint32."""
        return token_dtype(self.vocab)


def token_dtype(vocab: int) -> np.dtype:
    """The dtype in which ids below `vocab` are stored."""
    return np.dtype("<u2" if vocab <= 1 << 16 else "<u4")


def open_tokenizer(name: str | Path) -> Tokenizer:
    """The tokenizer "bytes", or the one in a tokenizer.json.

    Raises:
      DataError: the file does not exist or is no tokenizer.
    """
    return _bytes_tokenizer() if str(name) == BYTES else _file_tokenizer(Path(name))


def _bytes_tokenizer() -> Tokenizer:
    def encode(utf8: bytes) -> tuple[np.ndarray, np.ndarray]:
        ids_N = np.append(np.frombuffer(utf8, np.uint8).astype("<u2"), np.uint16(256))
        bytes_N = np.ones(len(ids_N), np.uint16)
        bytes_N[-1] = 0
        return ids_N, bytes_N

    def decode(ids: Sequence[int]) -> str:
        return bytes(int(i) for i in ids if 0 <= i < 256).decode("utf-8", errors="replace")

    return Tokenizer(BYTES, 257, 256, None, encode, decode)


def _file_tokenizer(path: Path) -> Tokenizer:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read the tokenizer {path}: {error.strerror}; give a tokenizer.json") from error
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # the processes of prepare are the parallelism
    import tokenizers

    try:
        library = tokenizers.Tokenizer.from_buffer(data)
    except Exception as error:  # the library raises a bare Exception
        raise DataError(f"{path} is no tokenizer.json: {str(error).splitlines()[0]}") from error
    library.no_truncation()
    library.no_padding()
    library.encode_special_tokens = True  # "<|endoftext|>" inside a text is text, never a separator
    ids = library.get_vocab(with_added_tokens=True)
    vocab = max(ids.values(), default=-1) + 1
    separator = next((ids[token] for token in SEPARATORS if token in ids), vocab)
    vocab = max(vocab, separator + 1)

    def encode(utf8: bytes) -> tuple[np.ndarray, np.ndarray]:
        return _encode(library, utf8, separator, token_dtype(vocab))

    def decode(ids: Sequence[int]) -> str:
        return library.decode([int(i) for i in ids if i != separator], skip_special_tokens=False)

    return Tokenizer(hashlib.sha256(data).hexdigest(), vocab, separator, path, encode, decode)


def _encode(library: Any, utf8: bytes, separator: int, dtype: np.dtype) -> tuple[np.ndarray, np.ndarray]:
    """Ids and byte counts; the library gives each token's end in characters."""
    text = utf8.decode("utf-8")
    encoding = library.encode(text, add_special_tokens=False)
    ends_N = np.array([end for _, end in encoding.offsets] + [len(text)], np.int64)
    if len(text) != len(utf8):
        points = np.frombuffer(text.encode("utf-32-le"), "<u4")
        widths = 1 + (points >= 0x80).astype(np.int64) + (points >= 0x800) + (points >= 0x10000)
        ends_N = np.concatenate([[0], np.cumsum(widths)])[ends_N]
    bytes_N = np.diff(np.maximum.accumulate(ends_N), prepend=0)
    if bytes_N.max() > MAX_TOKEN_BYTES:
        raise ValueError(f"one token stands for {bytes_N.max()} bytes")
    return np.array([*encoding.ids, separator], dtype), bytes_N.astype(np.uint16)
