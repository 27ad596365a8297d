"""Commitments: two fields of at most 128 bytes that say one thing in one way."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from templar_jax.chain.messages import (
    GenesisMessage,
    ManifestMessage,
    Parsed,
    SealMessage,
    decode_message,
    encode_commitment,
    encode_message,
    parse_commitment,
)
from templar_jax.chain.port import FIELD_BYTES
from templar_jax.errors import RefusedError

H = bytes(range(32))
MESSAGES = [
    SealMessage(2**40, H),
    ManifestMessage(5, H),
    ManifestMessage(5, H, 4, bytes(32)),
    ManifestMessage(5, H, 0, H),
    GenesisMessage(H[:16], H, 77, H[::-1]),
]


@pytest.mark.parametrize("message", MESSAGES)
def test_round_trip_within_the_fields(message):
    fields = encode_commitment("file:///a", message)
    assert max(map(len, fields)) <= FIELD_BYTES
    assert parse_commitment(fields) == Parsed("file:///a", message)


def test_golden():
    """These bytes stand on a chain for ever: a change needs a new version byte, and the old one still parsed."""
    assert encode_message(SealMessage(258, H)).hex() == "5401530201000000000000" + H.hex()
    assert encode_message(ManifestMessage(1, H)).hex() == "54014d0100000000000000" + H.hex() + "00" * 41
    genesis = encode_message(GenesisMessage(H[:16], H, 3, H)).hex()
    assert genesis == "540147" + H[:16].hex() + H.hex() + "0300000000000000" + H.hex()


@settings(max_examples=300)
@given(st.sampled_from(MESSAGES), st.integers(0, 127), st.integers(1, 255))
def test_a_changed_byte_is_refused_or_says_something_else(message, at, change):
    data = bytearray(encode_message(message))
    data[at % len(data)] ^= change
    try:
        other = decode_message(bytes(data))
    except RefusedError as error:
        assert error.reason == "message"
    else:
        assert other != message and encode_message(other) == bytes(data)


@settings(max_examples=300)
@given(st.lists(st.binary(max_size=140), max_size=3))
def test_garbage_is_none(fields):
    parsed = parse_commitment(tuple(fields))
    assert parsed is None or encode_commitment(parsed.locator, parsed.message) == tuple(fields)


def test_a_flag_has_two_values_and_zeros_behind_it():
    data = encode_message(ManifestMessage(5, H))
    for wrong in (data[:43] + b"\2" + data[44:], data[:-1] + b"\1", data + b"\0", data[:-1]):
        with pytest.raises(RefusedError):
            decode_message(wrong)


@pytest.mark.parametrize(
    "fields",
    [
        (),
        (b"file:///a",),
        (b"file:///a", b""),
        (b"", encode_message(MESSAGES[0])),
        (b"file:///a b", encode_message(MESSAGES[0])),
        (b"file:///\xff", encode_message(MESSAGES[0])),
        (b"x" * 129, encode_message(MESSAGES[0])),
        (b"file:///a", encode_message(MESSAGES[0]), b""),
    ],
)
def test_what_is_no_commitment_of_ours_is_none(fields):
    assert parse_commitment(fields) is None


@pytest.mark.parametrize(
    "message",
    [
        SealMessage(-1, H),
        SealMessage(2**64, H),
        SealMessage(1, H[:31]),
        ManifestMessage(1, H, 4, None),
        ManifestMessage(1, H, None, H),
        GenesisMessage(H, H, 1, H),
    ],
)
def test_what_does_not_fit_is_not_encoded(message):
    with pytest.raises(ValueError):
        encode_message(message)


def test_a_locator_that_does_not_fit_is_not_encoded():
    for locator in ("", "x" * 129, "file:///ü"):
        with pytest.raises(ValueError):
            encode_commitment(locator, MESSAGES[0])
