"""The tokenizer's files beside exported weights.

"bytes" becomes a tokenizer.json of the tokenizers library with the same ids: a BPE without merges over the byte-level
alphabet, id = byte, and the separator as the special token 256. One thing differs: the text "<|endoftext|>" itself is
bytes here, and the separator there (as with every published tokenizer).
"""

import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from templar_jax.config import RunConfig
from templar_jax.data.tokenizer import BYTES, open_tokenizer
from templar_jax.errors import ConfigError, DataError

TOKENIZER = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
SEPARATOR = "<|endoftext|>"


@dataclass(frozen=True)
class Written:
    """What was written: file names, the id between documents, and how many ids the tokenizer has (0: unknown)."""

    files: tuple[str, ...]
    separator: int | None
    vocab: int


def byte_characters() -> list[str]:
    """The character that stands for each byte in the byte-level alphabet: printable ones for themselves.

    Radford et al., "Language Models are Unsupervised Multitask Learners" (2019), as the tokenizers library has it.
    """
    own = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(256, 512))
    return [chr(byte if byte in own else next(others)) for byte in range(256)]


def bytes_tokenizer() -> Any:
    """`tokenizers.Tokenizer` with id = byte and the separator 256."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    vocab = {character: byte for byte, character in enumerate(byte_characters())}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(SEPARATOR, normalized=False, special=True)])
    return tokenizer


def is_bytes(file: Path) -> bool:
    """True for a tokenizer.json that `write_tokenizer` wrote for "bytes": its ids are the bytes. DataError: none."""
    try:
        return json.loads(file.read_bytes()) == json.loads(bytes_tokenizer().to_str())
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read {file}: {str(error).splitlines()[0]}; copy it again") from error


def write_tokenizer(folder: Path, run: RunConfig, source: Path | None) -> Written:
    """Writes tokenizer.json and tokenizer_config.json.

    Args:
      source: the run's tokenizer.json; not needed for "bytes". None for another tokenizer: nothing is written.

    Raises:
      ConfigError: `source` is not the run's tokenizer. DataError: it is none.
    """
    if run.data.tokenizer == BYTES:
        bytes_tokenizer().save(str(folder / TOKENIZER))
        known = open_tokenizer(BYTES)
        text = SEPARATOR
    elif source is None:
        return Written((), None, 0)
    else:
        digest = hashlib.sha256(source.read_bytes()).hexdigest() if source.is_file() else ""
        if run.data.tokenizer not in ("", digest):
            raise ConfigError(
                f"{source} is not the run's tokenizer (sha256 {run.data.tokenizer[:16]}): give the file that the "
                "pages were made with, or set data.tokenizer"
            )
        known = open_tokenizer(source)
        shutil.copyfile(source, folder / TOKENIZER)
        text = _token(source, known.separator)
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": run.data.sequence,
        "clean_up_tokenization_spaces": False,
        **({"eos_token": text, "bos_token": text} if text else {}),
    }
    (folder / TOKENIZER_CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return Written((TOKENIZER, TOKENIZER_CONFIG), known.separator, known.vocab)


def _token(source: Path, separator: int) -> str | None:
    """The separator's text, or None: an id that the data room added behind the vocabulary has none."""
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(source)).id_to_token(separator)
