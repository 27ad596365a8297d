"""Manifests: one encoding each, so that one hash on the chain names one outer step."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from templar_jax.chain.address import address
from templar_jax.chain.keys import Keypair
from templar_jax.errors import RefusedError
from templar_jax.store.manifest import (
    GENESIS,
    Accepted,
    Manifest,
    decode_manifest,
    encode_manifest,
    manifest_hash,
    max_manifest_bytes,
    sign_manifest,
    verify_manifest,
)

LEADER = Keypair.create_from_seed(b"\x11" * 32)
SECOND = Keypair.create_from_seed(b"\x22" * 32)


def entry(uid: int) -> Accepted:
    fill = bytes([uid % 256]) * 32
    return Accepted(uid, address(bytes([uid % 256, 1]) * 16), fill, fill, fill, 30 + uid)


PLAIN = Manifest(
    run_id=bytes(range(16)),
    window=12,
    outer_step=4,
    predecessor=GENESIS,
    root=bytes([9]) * 32,
    accepted=(entry(0), entry(3), entry(255)),
    refused=((1, "late"), (4, "hash")),
)
SIGNED = sign_manifest(sign_manifest(PLAIN, LEADER), SECOND)
DATA = encode_manifest(SIGNED)


def test_golden():
    """A change of any byte of the body makes nodes disagree on history: raise SCHEMA with it."""
    assert manifest_hash(PLAIN).hex() == "cef8aad5bf67af4e71ba388b6080c663371c223dde0304a7d4473b9ddc2cc2f3"


@pytest.mark.parametrize("manifest", [PLAIN, SIGNED, replace(PLAIN, accepted=(), refused=())])
def test_round_trip(manifest):
    assert decode_manifest(encode_manifest(manifest)) == manifest


def test_signatures_are_outside_the_hash():
    assert manifest_hash(SIGNED) == manifest_hash(PLAIN)
    assert sign_manifest(SIGNED, LEADER).signatures != SIGNED.signatures
    assert len(sign_manifest(SIGNED, LEADER).signatures) == 2
    assert sign_manifest(sign_manifest(PLAIN, SECOND), LEADER).signatures[0][0] == SIGNED.signatures[0][0]


def test_verify():
    assert verify_manifest(SIGNED, LEADER.ss58_address) and verify_manifest(SIGNED, SECOND.ss58_address)
    assert not verify_manifest(PLAIN, LEADER.ss58_address)
    assert not verify_manifest(sign_manifest(PLAIN, SECOND), LEADER.ss58_address)
    assert not verify_manifest(replace(SIGNED, outer_step=5), LEADER.ss58_address)
    forged = replace(SIGNED, signatures=((SIGNED.signatures[0][0], bytes(64)), SIGNED.signatures[1]))
    assert not any(verify_manifest(forged, key.ss58_address) for key in (LEADER, SECOND))


@settings(max_examples=300)
@given(st.integers(0, len(DATA) - 1), st.integers(1, 255))
def test_a_changed_byte_is_refused_or_another_manifest_nobody_signed(at, change):
    data = bytearray(DATA)
    data[at] ^= change
    try:
        other = decode_manifest(bytes(data))
    except RefusedError as error:
        assert error.reason == "manifest"
    else:
        assert encode_manifest(other) == bytes(data) and other != SIGNED
        assert not any(verify_manifest(other, key.ss58_address) for key in (LEADER, SECOND))


@settings(max_examples=300)
@given(st.one_of(st.binary(max_size=300), st.integers(0, 2 * len(DATA)).map(lambda n: (DATA * 2)[:n])))
def test_other_bytes_are_refused(data):
    if data != DATA:
        with pytest.raises(RefusedError):
            decode_manifest(data)


def test_counts_that_promise_much_cost_nothing():
    at = len(encode_manifest(replace(PLAIN, accepted=(), refused=()))) - 5
    with pytest.raises(RefusedError, match="shorter than its counts say"):
        decode_manifest(DATA[:at] + b"\xff\xff\xff\xff" + DATA[at + 4 :])


@pytest.mark.parametrize(
    "wrong",
    [
        dict(accepted=(entry(3), entry(0))),
        dict(accepted=(entry(3), entry(3))),
        dict(refused=((4, "hash"), (1, "late"))),
        dict(refused=((3, "late"),)),
        dict(refused=((1, "Not a code"),)),
        dict(refused=((1, ""),)),
        dict(refused=tuple((uid, "late") for uid in range(1000, 2025))),
        dict(root=bytes(31)),
        dict(root=bytes(33)),
        dict(run_id=bytes(17)),
        dict(window=-1),
        dict(accepted=(replace(entry(0), key=bytes(31)),)),
        dict(accepted=(replace(entry(0), hotkey="nobody"),)),
        dict(accepted=(replace(entry(0), uid=65536),)),
        dict(signatures=tuple(reversed(SIGNED.signatures))),
        dict(signatures=SIGNED.signatures[:1] * 2),
        dict(signatures=((LEADER.ss58_address, bytes(63)),)),
    ],
)
def test_what_is_not_well_formed_cannot_be_encoded(wrong):
    with pytest.raises(ValueError):
        encode_manifest(replace(SIGNED, **wrong))


def test_the_size_bound_holds():
    many = tuple(entry(uid) for uid in range(20))
    full = replace(PLAIN, accepted=many, refused=tuple((uid, "r" * 24) for uid in range(1000, 2024)))
    assert len(encode_manifest(sign_manifest(full, LEADER))) <= max_manifest_bytes(20)
    assert max_manifest_bytes(20) < 64 * 1024
