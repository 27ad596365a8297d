"""Manifests: the signed list of exactly what makes one outer step.

    body        magic, schema, run id 16, window u64, outer step u64, predecessor 32, root 32, counts u16 u16
                accepted: uid u16, hotkey 32, sealed hash 32, key 32, plaintext hash 32, inner steps u32
                refused: uid u16, length u8, reason
    signatures  count u8; hotkey 32, sr25519 signature 64 over the body's hash

The hash that the chain holds is that of the body, so signatures can be added later. There is exactly one encoding of
each manifest: uids ascend, none stands twice, signers ascend by public key. A window without a manifest does not
exist: the next one's predecessor is the hash of the last real one.
"""

import hashlib
import struct
from dataclasses import dataclass, replace

from templar_jax.chain import address
from templar_jax.chain.keys import Keypair, verify
from templar_jax.errors import RefusedError
from templar_jax.store.refusals import is_reason

GENESIS = bytes(32)  # predecessor of a run's first manifest
MAX_REFUSED = 1024
MAX_SIGNATURES = 64
SCHEMA = 1
REASON_FORM = "a reason is 1 to 24 of [a-z0-9-]"

_MAGIC = b"TMMF"
_HEAD = struct.Struct("<4sB16sQQ32s32sHH")
_ACCEPTED = struct.Struct("<H32s32s32s32sI")
_REFUSED = struct.Struct("<HB")
_SIGNATURE = struct.Struct("<32s64s")
_SIGNED = b"templar-jax manifest\0"
_REASON_BYTES = 24


@dataclass(frozen=True)
class Accepted:
    """One contribution that makes the outer step, and all it takes to open and check it."""

    uid: int
    hotkey: str  # ss58
    sealed_sha256: bytes
    key: bytes
    plaintext_sha256: bytes
    inner_steps: int


@dataclass(frozen=True)
class Manifest:
    """What takes theta_w, whose state root is `root`, to theta_{w+1}."""

    run_id: bytes  # 16
    window: int
    outer_step: int  # outer steps taken before this one
    predecessor: bytes  # hash of the manifest before, or GENESIS
    root: bytes  # of theta_w
    accepted: tuple[Accepted, ...]  # ascending by uid
    refused: tuple[tuple[int, str], ...]  # (uid, reason), ascending by uid
    signatures: tuple[tuple[str, bytes], ...] = ()  # (hotkey, 64 bytes), ascending by public key


def max_manifest_bytes(max_contributors: int) -> int:
    """Length of the largest manifest of a run: what a reader has to be ready for."""
    refused = MAX_REFUSED * (_REFUSED.size + _REASON_BYTES)
    return _HEAD.size + max_contributors * _ACCEPTED.size + refused + 1 + MAX_SIGNATURES * _SIGNATURE.size


def encode_manifest(manifest: Manifest) -> bytes:
    """Raises ValueError where the manifest is not well-formed."""
    signatures = [_SIGNATURE.pack(address.public_key(hotkey), sig) for hotkey, sig in manifest.signatures]
    if len(signatures) > MAX_SIGNATURES or any(len(sig) != 64 for _, sig in manifest.signatures):
        raise ValueError(f"a manifest carries at most {MAX_SIGNATURES} signatures of 64 bytes")
    if not _ascending([entry[:32] for entry in signatures]):
        raise ValueError("signers must ascend by public key")
    return _encode_body(manifest) + bytes([len(signatures)]) + b"".join(signatures)


def manifest_hash(manifest: Manifest) -> bytes:
    """32 bytes: sha256 of the body, without the signatures. Raises ValueError where it is not well-formed."""
    return hashlib.sha256(_encode_body(manifest)).digest()


def sign_manifest(manifest: Manifest, keypair: Keypair) -> Manifest:
    """The manifest with this hotkey's signature added (or renewed)."""
    mine = (keypair.ss58_address, bytes(keypair.sign(_SIGNED + manifest_hash(manifest))))
    others = [entry for entry in manifest.signatures if entry[0] != mine[0]]
    return replace(manifest, signatures=tuple(sorted([*others, mine], key=lambda entry: address.public_key(entry[0]))))


def verify_manifest(manifest: Manifest, hotkey: str) -> bool:
    """True if `hotkey` signed the manifest and no signature on it is false."""
    message = _SIGNED + manifest_hash(manifest)
    signers = [signer for signer, _ in manifest.signatures]
    return hotkey in signers and all(verify(signer, message, signature) for signer, signature in manifest.signatures)


def decode_manifest(data: bytes) -> Manifest:
    """Inverse of `encode_manifest`. Signatures are not checked: see `verify_manifest`.

    Raises RefusedError("manifest") on anything but the one encoding of a well-formed manifest.
    """
    try:
        manifest = _parse(data)
        if encode_manifest(manifest) != data:
            raise ValueError("not the canonical encoding")
    except (ValueError, IndexError, struct.error) as error:
        raise RefusedError("manifest", str(error)) from error
    return manifest


def _encode_body(manifest: Manifest) -> bytes:
    _check(manifest)
    try:
        parts = [
            _HEAD.pack(
                _MAGIC, SCHEMA, manifest.run_id, manifest.window, manifest.outer_step, manifest.predecessor,
                manifest.root, len(manifest.accepted), len(manifest.refused),
            )
        ]  # fmt: skip
        for entry in manifest.accepted:
            hotkey = address.public_key(entry.hotkey)
            hashes = entry.sealed_sha256, entry.key, entry.plaintext_sha256
            parts.append(_ACCEPTED.pack(entry.uid, hotkey, *hashes, entry.inner_steps))
        for uid, reason in manifest.refused:
            parts.append(_REFUSED.pack(uid, len(reason)) + reason.encode("ascii"))
    except struct.error as error:
        raise ValueError(f"a value does not fit its field: {error}") from error
    return b"".join(parts)


def _check(manifest: Manifest) -> None:
    accepted = [entry.uid for entry in manifest.accepted]
    refused = [uid for uid, _ in manifest.refused]
    if not _ascending(accepted) or not _ascending(refused):
        raise ValueError("uids must ascend, each once")
    if set(accepted) & set(refused):
        raise ValueError("a uid is both accepted and refused")
    if len(refused) > MAX_REFUSED:
        raise ValueError(f"more than {MAX_REFUSED} refused uids")
    if not all(is_reason(reason) for _, reason in manifest.refused):
        raise ValueError(REASON_FORM)
    entries = [(e.sealed_sha256, e.key, e.plaintext_sha256) for e in manifest.accepted]
    hashes = [manifest.predecessor, manifest.root, *(field for entry in entries for field in entry)]
    if len(manifest.run_id) != 16 or any(len(field) != 32 for field in hashes):  # struct would pad or cut in silence
        raise ValueError("a hash or key does not have 32 bytes, or the run id not 16")


def _parse(data: bytes) -> Manifest:
    magic, schema, run_id, window, outer_step, predecessor, root, n_accepted, n_refused = _HEAD.unpack_from(data)
    if magic != _MAGIC or schema != SCHEMA:
        raise ValueError("unknown schema")
    at = _HEAD.size
    if len(data) < at + n_accepted * _ACCEPTED.size + n_refused * _REFUSED.size:
        raise ValueError("shorter than its counts say")
    accepted = []
    for _ in range(n_accepted):
        uid, hotkey, sealed, key, plaintext, steps = _ACCEPTED.unpack_from(data, at)
        accepted.append(Accepted(uid, address.address(hotkey), sealed, key, plaintext, steps))
        at += _ACCEPTED.size
    refused = []
    for _ in range(n_refused):
        uid, length = _REFUSED.unpack_from(data, at)
        at += _REFUSED.size
        reason = data[at : at + length].decode("ascii")
        if not is_reason(reason):  # at once: an entry without a reason would cost three bytes and a hundred in memory
            raise ValueError(REASON_FORM)
        refused.append((uid, reason))
        at += length
    count, at = data[at], at + 1
    signatures = []
    for _ in range(count):
        hotkey, signature = _SIGNATURE.unpack_from(data, at)
        signatures.append((address.address(hotkey), signature))
        at += _SIGNATURE.size
    return Manifest(
        run_id, window, outer_step, predecessor, root, tuple(accepted), tuple(refused), tuple(signatures)
    )  # fmt: skip


def _ascending(values: list) -> bool:
    return all(a < b for a, b in zip(values, values[1:], strict=False))
