"""Tokenizers: ids, separators, and which bytes each token stands for."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from corpus import texts
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from templar_jax.data.tokenizer import Tokenizer, open_tokenizer
from templar_jax.errors import DataError


def byte_level(path: Path, special: list[str], vocab: int = 400) -> Path:
    """A byte-level BPE trained on the small corpus."""
    library = tokenizers.Tokenizer(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    library.train_from_iterator(texts(50), trainer)
    library.enable_truncation(7)
    library.save(str(path))
    return path


@pytest.fixture(scope="module")
def bpe(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return open_tokenizer(byte_level(tmp_path_factory.mktemp("bpe") / "tokenizer.json", ["<s>", "<|endoftext|>"]))


@given(st.text())
def test_bytes(text: str) -> None:
    tokenizer = open_tokenizer("bytes")
    ids, sizes = tokenizer.encode(text.encode())
    assert ids.tolist() == [*text.encode(), 256]
    assert sizes.tolist() == [1] * len(text.encode()) + [0]
    assert tokenizer.decode(ids.tolist()) == text
    assert (tokenizer.name, tokenizer.vocab, tokenizer.dtype) == ("bytes", 257, np.dtype("<u2"))


@given(st.text())
def test_byte_counts_of_a_file_tokenizer_add_up(bpe: Tokenizer, text: str) -> None:
    ids, sizes = bpe.encode(text.encode())
    assert sizes.sum(dtype=int) == len(text.encode())
    assert ids[-1] == bpe.separator and ids.max() < bpe.vocab and ids.dtype == bpe.dtype
    assert bpe.decode(ids.tolist()) == text


def test_byte_counts_are_those_of_each_token(bpe: Tokenizer) -> None:
    assert bpe.file is not None
    library = tokenizers.Tokenizer.from_file(str(bpe.file))
    text = "window of the block,  two  spaces\n\tdef return"
    ids, sizes = bpe.encode(text.encode())
    # One letter of a byte-level token is one byte.
    assert sizes.tolist() == [len(library.id_to_token(i)) for i in ids[:-1].tolist()] + [0]


def test_a_character_in_several_tokens_counts_once(bpe: Tokenizer) -> None:
    ids, sizes = bpe.encode("\U0001f9ff".encode())  # not in the corpus: several tokens
    assert len(ids) > 2 and sizes.tolist() == [4] + [0] * (len(ids) - 1)


def test_identity_is_the_file(bpe: Tokenizer) -> None:
    assert bpe.file is not None
    assert bpe.name == hashlib.sha256(bpe.file.read_bytes()).hexdigest()


def test_a_separator_in_the_text_stays_text(bpe: Tokenizer) -> None:
    ids, _ = bpe.encode(b"a<|endoftext|>b")
    assert (ids == bpe.separator).sum() == 1
    assert bpe.decode(ids.tolist()) == "a<|endoftext|>b"


def test_without_a_known_separator_one_is_added(tmp_path: Path) -> None:
    tokenizer = open_tokenizer(byte_level(tmp_path / "t.json", ["<s>"]))
    assert tokenizer.separator == tokenizer.vocab - 1
    ids, _ = tokenizer.encode(b"block")
    assert ids[-1] == tokenizer.separator and ids[:-1].max() < tokenizer.separator


def test_what_a_normaliser_drops_still_counts(tmp_path: Path) -> None:
    library = tokenizers.Tokenizer(models.WordLevel({"a": 0, "b": 1, "[UNK]": 2}, unk_token="[UNK]"))
    library.normalizer = normalizers.Lowercase()
    library.pre_tokenizer = pre_tokenizers.Whitespace()
    library.save(str(tmp_path / "t.json"))
    tokenizer = open_tokenizer(tmp_path / "t.json")
    ids, sizes = tokenizer.encode("A   ü b  ".encode())
    assert ids.tolist() == [0, 2, 1, 3] and sizes.tolist() == [1, 5, 2, 2]
    with pytest.raises(ValueError, match="one token stands for 70000 bytes"):
        tokenizer.encode(b"x" * 70_000)


@pytest.mark.parametrize("content", [None, b"", b"{}", b"no json"])
def test_files_that_are_no_tokenizer(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "t.json").write_bytes(content)
    with pytest.raises(DataError, match="t.json") as caught:
        open_tokenizer(tmp_path / "t.json")
    assert "\n" not in str(caught.value)
