"""Sealed objects: opened only by their key, for their run, window, uid and hotkey, and never after a changed bit."""

import hashlib
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from templar_jax.chain.keys import Keypair
from templar_jax.errors import RefusedError
from templar_jax.store import seal as room
from templar_jax.store.refusals import REASONS, is_reason
from templar_jax.store.seal import Claim, check_header, open_sealed, read_header, seal, sealed_bytes, sealed_hash

KEY = bytes(range(32))
MINER = Keypair.create_from_seed(b"\x11" * 32)
OTHER = Keypair.create_from_seed(b"\x22" * 32)
CLAIM = Claim("ab" * 16, 7, 3, 30, 2.5, b"\1" * 32, b"\2" * 32)
TEXT = b"a contribution " * 20
SEALED = seal(CLAIM, TEXT, MINER, KEY)


def reason_of(call, *args, **kwargs) -> str:
    with pytest.raises(RefusedError) as caught:
        call(*args, **kwargs)
    assert caught.value.reason in REASONS and "\n" not in str(caught.value)
    return caught.value.reason


def open_all(data: bytes, key: bytes = KEY) -> bytes:
    return open_sealed(data, key, read_header(data, 0, 10_000))


@pytest.mark.parametrize("size", [0, 1, 99, 100, 101, 350])
def test_seal_and_open(size, monkeypatch):
    monkeypatch.setattr(room, "CHUNK", 100)
    text = bytes(value % 251 for value in range(size))
    sealed = seal(CLAIM, text, MINER, KEY)
    header = read_header(sealed, size, size)
    assert (header.claim, header.hotkey, header.plaintext_bytes) == (CLAIM, MINER.ss58_address, size)
    assert header.plaintext_sha256 == hashlib.sha256(text).digest()
    assert len(sealed) == sealed_bytes(size)
    assert open_sealed(sealed, KEY, header) == text
    assert text[:16] not in sealed or size < 16


def test_the_hash_leaves_out_the_signature_only():
    again = seal(CLAIM, TEXT, MINER, KEY)
    assert again != SEALED, "sr25519 signatures are randomised"
    assert sealed_hash(again) == sealed_hash(SEALED)
    assert sealed_hash(seal(CLAIM, TEXT, OTHER, KEY)) != sealed_hash(SEALED)


def test_golden():
    """A change of any byte of the format makes every node refuse the other's objects: raise SCHEMA with it."""
    assert sealed_hash(SEALED).hex() == "f5fe05c862381cf9ab80d2bac9cdd52ffd0f7aa877133dfa80eece0711e89325"
    assert room.HEADER_BYTES == 271


@settings(max_examples=300)
@given(st.integers(0, len(SEALED) - 1), st.integers(1, 255))
def test_any_changed_byte_is_refused(at, change):
    data = bytearray(SEALED)
    data[at] ^= change
    assert reason_of(open_all, bytes(data)) in REASONS
    if not room.SIGNATURE_AT <= at < room.HEADER_BYTES:
        assert sealed_hash(bytes(data)) != sealed_hash(SEALED)


@settings(max_examples=300)
@given(st.one_of(st.binary(max_size=400), st.integers(0, 700).map(lambda n: (SEALED * 2)[:n])))
def test_any_other_bytes_are_refused(data):
    if data != SEALED:
        reason_of(open_all, data)


def test_bounds_come_before_anything_else():
    assert reason_of(read_header, SEALED, 0, len(TEXT) - 1) == "size"
    assert reason_of(read_header, SEALED, len(TEXT) + 1, 10_000) == "size"
    assert reason_of(read_header, SEALED + b"x") == "size"
    assert reason_of(read_header, SEALED[:100]) == "seal"


def test_a_header_of_elsewhere_is_refused():
    header, here = read_header(SEALED), dict(run_id=CLAIM.run_id, window=7, uid=3, hotkey=MINER.ss58_address)
    check_header(header, **here)
    elsewhere = {"run_id": "cd" * 16, "window": 8, "uid": 4, "hotkey": OTHER.ss58_address}
    for field, value in elsewhere.items():
        assert reason_of(check_header, header, **(here | {field: value})) == field.removesuffix("_id")


def test_the_key_is_committed_to():
    assert reason_of(open_all, SEALED, bytes(32)) == "key"
    assert reason_of(open_all, SEALED, KEY[:31]) == "key"


def test_a_ciphertext_cannot_be_moved_under_another_header():
    """A thief signs his own header round another's ciphertext, with the key's hash copied: the key does not open it."""
    stolen = seal(replace(CLAIM, uid=9), TEXT, OTHER, KEY)[: room.HEADER_BYTES] + SEALED[room.HEADER_BYTES :]
    assert read_header(stolen).hotkey == OTHER.ss58_address
    assert reason_of(open_all, stolen) == "auth"


def test_chunks_cannot_be_swapped_or_dropped(monkeypatch):
    monkeypatch.setattr(room, "CHUNK", 100)
    sealed = seal(CLAIM, bytes(300), MINER, KEY)
    head, body = sealed[: room.HEADER_BYTES], sealed[room.HEADER_BYTES :]
    assert reason_of(open_all, head + body[116:232] + body[:116] + body[232:]) == "auth"
    assert reason_of(open_all, head + body[:232]) == "size"


def test_a_plaintext_that_is_not_the_one_promised(monkeypatch):
    real = hashlib.sha256(TEXT).digest()
    forged = replace(read_header(SEALED), plaintext_sha256=bytes(32))
    assert reason_of(open_sealed, SEALED, KEY, forged) == "hash" and forged.plaintext_sha256 != real


def test_reasons_can_stand_in_a_manifest():
    assert all(is_reason(reason) for reason in REASONS)
    assert not any(is_reason(text) for text in ("", "A", "a b", "-a", "a" * 25, "ä"))
