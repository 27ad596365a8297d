"""What a hotkey's commitment says: field 1 is its bucket's locator, field 2 one message. Both fit 128 bytes.

    message     "T", version 1, tag, then fixed little-endian fields; no length is variable
    S seal      window u64, sealed hash 32
    M manifest  window u64, manifest hash 32, checkpoint? u8, its window u64, its sha256 32 (zeros where there is none)
    G genesis   run id 16, sha256 of the data manifest 32, first window u64, root of theta_0 32
    E evidence  newest window u64, hash 32 that pins a validator's evidence of all windows up to that

Every byte string that parses is the encoding of what it parses to, so nothing can be said in two ways.
"""

import struct
from dataclasses import dataclass

from templar_jax.chain.port import FIELD_BYTES
from templar_jax.errors import RefusedError

_SEAL = struct.Struct("<3sQ32s")
_MANIFEST = struct.Struct("<3sQ32s?Q32s")
_GENESIS = struct.Struct("<3s16s32sQ32s")
_EVIDENCE = struct.Struct("<3sQ32s")
_ZERO = bytes(32)


@dataclass(frozen=True)
class SealMessage:
    """A miner's: this is my sealed object of `window`."""

    window: int
    sealed_sha256: bytes  # store.seal.sealed_hash of the object


@dataclass(frozen=True)
class ManifestMessage:
    """A leader's: this manifest closes `window`; the newest checkpoint in my bucket is that one."""

    window: int
    manifest_sha256: bytes
    checkpoint_window: int | None = None  # theta at the start of this window
    checkpoint_sha256: bytes | None = None


@dataclass(frozen=True)
class GenesisMessage:
    """A run begins: whose first commitment this is on the chain starts the run."""

    run_id: bytes  # 16
    data_manifest: bytes  # 32
    first_window: int
    root: bytes  # 32, state root of theta_0


@dataclass(frozen=True)
class EvidenceMessage:
    """A validator's, before it sets weights: they follow from the evidence of its windows up to `window`."""

    window: int
    chain_sha256: bytes  # incentive.replay.link of all of it


Message = SealMessage | ManifestMessage | GenesisMessage | EvidenceMessage


@dataclass(frozen=True)
class Parsed:
    """A commitment of two well-formed fields. The locator is untrusted text: `store.open` judges it."""

    locator: str
    message: Message


def encode_message(message: Message) -> bytes:
    """Field 2. Raises ValueError where a value does not fit its field."""
    try:
        match message:
            case SealMessage(window, sealed):
                return _SEAL.pack(b"T\1S", window, _exactly(32, sealed))
            case ManifestMessage(window, manifest, checkpoint_window, checkpoint):
                if (checkpoint_window is None) != (checkpoint is None):
                    raise ValueError("a checkpoint has a window and a hash, or neither")
                at, digest = (checkpoint_window or 0), _exactly(32, checkpoint or _ZERO)
                return _MANIFEST.pack(b"T\1M", window, _exactly(32, manifest), checkpoint is not None, at, digest)
            case GenesisMessage(run_id, data, first, root):
                return _GENESIS.pack(b"T\1G", _exactly(16, run_id), _exactly(32, data), first, _exactly(32, root))
            case EvidenceMessage(window, chain):
                return _EVIDENCE.pack(b"T\1E", window, _exactly(32, chain))
    except struct.error as error:
        raise ValueError(f"{type(message).__name__} does not fit its fields: {error}") from error


def decode_message(data: bytes) -> Message:
    """Inverse of `encode_message`. Raises RefusedError("message") on anything else."""
    try:
        match bytes(data[:3]):
            case b"T\1S":
                message = SealMessage(*_SEAL.unpack(data)[1:])
            case b"T\1M":
                _, window, manifest, present, at, digest = _MANIFEST.unpack(data)
                message = ManifestMessage(window, manifest, *((at, digest) if present else (None, None)))
            case b"T\1G":
                message = GenesisMessage(*_GENESIS.unpack(data)[1:])
            case b"T\1E":
                message = EvidenceMessage(*_EVIDENCE.unpack(data)[1:])
            case _:
                raise RefusedError("message", "unknown version or tag")
    except struct.error as error:
        raise RefusedError("message", str(error)) from error
    if encode_message(message) != data:
        raise RefusedError("message", "not the canonical encoding")
    return message


def encode_commitment(locator: str, message: Message) -> tuple[bytes, bytes]:
    """The two fields for `Chain.commit`. Raises ValueError where one does not fit."""
    fields = locator.encode("ascii"), encode_message(message)
    if not all(0 < len(field) <= FIELD_BYTES for field in fields):
        raise ValueError(f"fields of {len(fields[0])} and {len(fields[1])} bytes; the chain takes 1 to {FIELD_BYTES}")
    return fields


def parse_commitment(fields: tuple[bytes, ...]) -> Parsed | None:
    """What a commitment says, or None where it is not one of ours."""
    if len(fields) != 2 or not 0 < len(fields[0]) <= FIELD_BYTES:
        return None
    if not all(0x21 <= byte <= 0x7E for byte in fields[0]):  # printable, no spaces
        return None
    try:
        return Parsed(fields[0].decode("ascii"), decode_message(fields[1]))
    except RefusedError:
        return None


def _exactly(length: int, data: bytes) -> bytes:
    if len(data) != length:  # struct would pad or cut in silence
        raise ValueError(f"{len(data)} bytes, must be {length}")
    return data
