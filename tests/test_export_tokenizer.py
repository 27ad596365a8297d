"""The tokenizer's files beside exported weights."""

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from models import SMALL, rough_params, small_run

from templar_jax.data.tokenizer import open_tokenizer
from templar_jax.errors import ConfigError
from templar_jax.export import export_folder
from templar_jax.huggingface.tokenizer_json import byte_characters, bytes_tokenizer


@given(st.text(max_size=60))
def test_the_bytes_tokenizer_has_our_ids(text):
    tokenizer = bytes_tokenizer()
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    assert ids == list(text.encode())
    assert tokenizer.decode(ids) == text
    assert [*ids, 256] == open_tokenizer("bytes").encode(text.encode())[0].tolist()


def test_the_byte_alphabet_is_the_librarys():
    from tokenizers.pre_tokenizers import ByteLevel

    assert sorted(byte_characters()) == sorted(ByteLevel.alphabet())
    tokenizer = bytes_tokenizer()
    assert tokenizer.get_vocab_size() == 257 and tokenizer.token_to_id("<|endoftext|>") == 256


def test_another_tokenizer_travels_along_and_a_wrong_one_is_refused(tmp_path):
    run = small_run(dataclasses.replace(SMALL, vocab=320))
    params = rough_params(run)
    source = tmp_path / "tokenizer.json"
    bytes_tokenizer().save(str(source))
    name = open_tokenizer(source).name
    other = dataclasses.replace(run, data=dataclasses.replace(run.data, tokenizer=name))
    made = export_folder(tmp_path / "a", other, params.__getitem__, tokenizer=source)
    assert (tmp_path / "a" / "tokenizer.json").read_bytes() == source.read_bytes()
    assert made.separator == 256 and json.loads((tmp_path / "a/config.json").read_text())["eos_token_id"] == 256
    made = export_folder(tmp_path / "b", other, params.__getitem__)
    assert made.separator is None and "tokenizer.json" not in made.files
    wrong = dataclasses.replace(run, data=dataclasses.replace(run.data, tokenizer="0" * 64))
    with pytest.raises(ConfigError, match="not the run's tokenizer"):
        export_folder(tmp_path / "c", wrong, params.__getitem__, tokenizer=source)
