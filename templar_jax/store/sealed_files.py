"""A miner's own seals on disk, written before anything is uploaded: after a crash the seal is revealed, not redone.

Two different seals of one window, with one of them committed, would cost the miner its window; so the first to reach
the disk is the only one, for ever.
"""

import hashlib
from pathlib import Path

from templar_jax.errors import StoreError
from templar_jax.store.disk import DRAFT, write_file
from templar_jax.store.seal import KEY_BYTES

_MAGIC = b"TMSEAL01"
_HEAD = len(_MAGIC) + 32 + KEY_BYTES  # magic, sha256 of what follows, key; then the sealed object


def save_seal(folder: Path, window: int, key: bytes, sealed: bytes) -> tuple[bytes, bytes]:
    """Keeps (key, sealed) for `window`, durably, and returns what is now on disk: an earlier seal if there was one.

    Raises StoreError (full disk, not writable): then nothing may be uploaded or committed.
    """
    digest = hashlib.sha256(key)
    digest.update(sealed)
    if write_file(_path(folder, window), (_MAGIC, digest.digest(), key, sealed), replace=False):
        return key, sealed
    earlier = load_seal(folder, window)
    assert earlier is not None  # the name existed a moment ago, and only `prune_seals` removes
    return earlier


def load_seal(folder: Path, window: int) -> tuple[bytes, bytes] | None:
    """(key, sealed object) of the window, or None. Raises StoreError where the file was damaged."""
    path = _path(folder, window)
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StoreError(f"{path}: {error.strerror}") from error
    digest, body = data[len(_MAGIC) : _HEAD - KEY_BYTES], memoryview(data)[_HEAD - KEY_BYTES :]
    if len(data) < _HEAD or not data.startswith(_MAGIC) or hashlib.sha256(body).digest() != digest:
        raise StoreError(f"the seal {path} is damaged: remove it to give up this window's contribution")
    return bytes(body[:KEY_BYTES]), bytes(body[KEY_BYTES:])


def newest_seal(folder: Path) -> int | None:
    """The newest window that has a seal on disk, or None."""
    return max((int(path.stem) for path in folder.glob("*.seal") if path.stem.isdigit()), default=None)


def prune_seals(folder: Path, oldest_window: int) -> None:
    """Removes the seals of windows before `oldest_window`, and drafts of killed processes."""
    for path in folder.glob("*.seal*"):
        stem = path.name.partition(".")[0]
        if DRAFT in path.name or (stem.isdigit() and int(stem) < oldest_window):
            path.unlink(missing_ok=True)


def _path(folder: Path, window: int) -> Path:
    return folder / f"{window:010d}.seal"
