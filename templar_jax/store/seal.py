"""Sealed objects: a contribution that nobody can read before its key is published, and nobody can change after.

    header      207 bytes, clear: schema, run, window, uid, hotkey, inner steps, loss of the first, roots of the
                private state before and after, length and sha256 of the plaintext, sha256 of the key
    signature   64 bytes, sr25519 by the hotkey over the header
    ciphertext  AES-256-GCM in chunks of CHUNK bytes, each with its 16-byte tag; header as associated data

AES-GCM does not commit to its key (two keys can open one ciphertext to two texts); sha256(key) under the signature
does. The AEAD key is HKDF(key, run | window | hotkey), used for this one object, so the nonce is the chunk's number.
sr25519 signatures are randomised, and one who can sign can make many: an object's identity, `sealed_hash`, leaves the
64 signature bytes out, so that the same contribution under the same key has one hash.
"""

import hashlib
import struct
from dataclasses import dataclass

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from templar_jax.chain import address
from templar_jax.chain.keys import Keypair, verify
from templar_jax.errors import RefusedError
from templar_jax.store.merkle import EMPTY

KEY_BYTES = 32
CHUNK = 64 * 2**20  # plaintext bytes of one AEAD call (the library's limit is 2^31)
TAG = 16
SCHEMA = 3

_MAGIC = b"TMSL"
_HEADER = struct.Struct("<4sB16sQH32sIf32s32sQ32s32s")
_SIGNED = b"templar-jax seal\0"  # domain of the signature and of the key derivation
SIGNATURE_AT = _HEADER.size
HEADER_BYTES = _HEADER.size + 64  # with the signature: where the ciphertext begins


@dataclass(frozen=True)
class Claim:
    """What a miner says of its contribution."""

    run_id: str  # 32 hex digits
    window: int
    uid: int
    inner_steps: int  # done, at most H
    first_loss: float  # of inner step 0, before it: f32, nats per token; not finite where training diverged
    before: bytes = EMPTY  # Merkle root of the private state before the window; zeros where the run makes no audits
    after: bytes = EMPTY  # and after it


@dataclass(frozen=True)
class Header:
    """The clear header, signed by `hotkey`."""

    claim: Claim
    hotkey: str  # ss58
    plaintext_bytes: int
    plaintext_sha256: bytes
    key_sha256: bytes


def sealed_bytes(plaintext_bytes: int) -> int:
    """Length of the sealed object of a plaintext of that length; grows with it, so it turns bounds into bounds."""
    chunks = max(1, -(-plaintext_bytes // CHUNK))
    return HEADER_BYTES + plaintext_bytes + TAG * chunks


def sealed_hash(sealed: bytes) -> bytes:
    """32 bytes that name the object: sha256 of all but the signature. This is what stands on the chain."""
    view = memoryview(sealed)
    digest = hashlib.sha256(view[:SIGNATURE_AT])
    digest.update(view[HEADER_BYTES:])
    return digest.digest()


def seal(claim: Claim, plaintext: bytes, keypair: Keypair, key: bytes) -> bytes:
    """Encrypts and signs.

    Args:
      claim: goes into the header.
      plaintext: the encoded contribution.
      keypair: the hotkey.
      key: 32 random bytes, used for this object only.
    """
    if len(key) != KEY_BYTES:
        raise ValueError(f"a seal's key has {KEY_BYTES} bytes")
    header = Header(
        claim, keypair.ss58_address, len(plaintext), hashlib.sha256(plaintext).digest(), hashlib.sha256(key).digest()
    )
    signed = signed_header(header, keypair)
    body, aead, view = signed[:SIGNATURE_AT], _aead(key, header), memoryview(plaintext)
    chunks = [
        aead.encrypt(_nonce(number), view[start : start + CHUNK], body)
        for number, start in enumerate(range(0, max(1, len(plaintext)), CHUNK))
    ]
    return b"".join([signed, *chunks])


def signed_header(header: Header, keypair: Keypair) -> bytes:
    """The first HEADER_BYTES of a sealed object. `keypair` is the header's hotkey."""
    body = _encode(header)
    return body + bytes(keypair.sign(_SIGNED + body))


def read_header(sealed: bytes, min_bytes: int = 0, max_bytes: int = 2**63) -> Header:
    """The header of a whole sealed object, its signature and lengths checked, before anything is decrypted.

    Args:
      min_bytes, max_bytes: bounds of the plaintext, from the run's configuration.
    Raises:
      RefusedError: "seal", "size" or "signature".
    """
    if len(sealed) < HEADER_BYTES:
        raise RefusedError("seal", f"{len(sealed)} bytes are no sealed object")
    body = bytes(sealed[:SIGNATURE_AT])
    magic, schema, run, window, uid, hotkey, *said, length, plain_hash, key_hash = _HEADER.unpack(body)
    if magic != _MAGIC or schema != SCHEMA:
        raise RefusedError("seal", "unknown schema")
    if not min_bytes <= length <= max_bytes:
        raise RefusedError("size", f"{length} bytes of plaintext, allowed are {min_bytes} to {max_bytes}")
    if len(sealed) != sealed_bytes(length):
        raise RefusedError("size", f"{len(sealed)} bytes, the header says {sealed_bytes(length)}")
    try:
        claim = Claim(run.hex(), window, uid, *said)  # steps, loss, before, after
        header = Header(claim, address.address(hotkey), length, plain_hash, key_hash)
    except ValueError as error:
        raise RefusedError("seal", "no hotkey") from error
    if not verify(header.hotkey, _SIGNED + body, bytes(sealed[SIGNATURE_AT:HEADER_BYTES])):
        raise RefusedError("signature", f"not by {header.hotkey}")
    return header


def check_header(header: Header, run_id: str, window: int, uid: int, hotkey: str) -> None:
    """Raises RefusedError ("run", "window", "uid" or "hotkey") where the header belongs elsewhere."""
    claim = header.claim
    for reason, found, expected in (
        ("run", claim.run_id, run_id),
        ("window", claim.window, window),
        ("uid", claim.uid, uid),
        ("hotkey", header.hotkey, hotkey),
    ):
        if found != expected:
            raise RefusedError(reason, f"made for {found}, expected {expected}")


def open_sealed(sealed: bytes, key: bytes, header: Header) -> bytes:
    """The plaintext. `header` is what `read_header` returned for the same bytes.

    Raises:
      RefusedError: "key" (not the one committed to), "auth", or "hash" (of the plaintext).
    """
    if len(key) != KEY_BYTES or hashlib.sha256(key).digest() != header.key_sha256:
        raise RefusedError("key", "its hash is not the one in the header")
    body = bytes(sealed[:SIGNATURE_AT])
    aead, view = _aead(key, header), memoryview(sealed)
    pieces = []
    try:
        for number, start in enumerate(range(HEADER_BYTES, len(sealed), CHUNK + TAG)):
            pieces.append(aead.decrypt(_nonce(number), view[start : start + CHUNK + TAG], body))
    except InvalidTag as error:
        raise RefusedError("auth", "decryption failed") from error
    plaintext = pieces[0] if len(pieces) == 1 else b"".join(pieces)
    if len(plaintext) != header.plaintext_bytes or hashlib.sha256(plaintext).digest() != header.plaintext_sha256:
        raise RefusedError("hash", "of the plaintext")
    return plaintext


def _encode(header: Header) -> bytes:
    claim = header.claim
    return _HEADER.pack(
        _MAGIC, SCHEMA, bytes.fromhex(claim.run_id), claim.window, claim.uid, address.public_key(header.hotkey),
        claim.inner_steps, claim.first_loss, claim.before, claim.after,
        header.plaintext_bytes, header.plaintext_sha256, header.key_sha256,
    )  # fmt: skip


def _aead(key: bytes, header: Header) -> AESGCM:
    claim = header.claim
    context = bytes.fromhex(claim.run_id) + struct.pack("<Q", claim.window) + address.public_key(header.hotkey)
    return AESGCM(HKDF(algorithm=SHA256(), length=32, salt=_SIGNED, info=context).derive(key))


def _nonce(chunk: int) -> bytes:
    return chunk.to_bytes(12, "little")
