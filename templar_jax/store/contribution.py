"""Where things lie in a bucket, the published key of a seal, and what is thrown away when.

w/WINDOW/sealed                     own sealed object (index; its parts beside it)
w/WINDOW/key                        its key, 32 bytes, from the deadline on
w/WINDOW/root                       answer to the state challenge, 32 bytes (see node/challenge.py)
w/WINDOW/audit                      what a full audit asks for (index; its parts beside it; see node/audit.py)
w/WINDOW/mirror/UID                 a leader's copy of another uid's sealed object
w/WINDOW/led                        the manifest that this node commits as a leader, written before the commitment
manifest/WINDOW-HASH                a manifest, the leader's own or passed on
checkpoint/WINDOW/...               a published checkpoint (see snapshot)
evidence/WINDOW                     what a validator's weights follow from
"""

from templar_jax.errors import RefusedError
from templar_jax.store.bucket import Bucket, Reader
from templar_jax.store.seal import KEY_BYTES

_WINDOWS = ("w", "checkpoint")


def sealed_key(window: int) -> str:
    return f"w/{window:010d}/sealed"


def published_key(window: int) -> str:
    return f"w/{window:010d}/key"


def root_key(window: int) -> str:
    return f"w/{window:010d}/root"


def audit_key(window: int) -> str:
    return f"w/{window:010d}/audit"


def mirror_key(window: int, uid: int) -> str:
    return f"w/{window:010d}/mirror/{uid:05d}"


def led_key(window: int) -> str:
    return f"w/{window:010d}/led"


def manifest_key(window: int, manifest_sha256: bytes) -> str:
    return f"manifest/{window:010d}-{manifest_sha256.hex()}"


def evidence_key(window: int) -> str:
    return f"evidence/{window:010d}"


def checkpoint_folder(window: int) -> str:
    return f"checkpoint/{window:010d}"


async def publish_key(bucket: Bucket, window: int, key: bytes) -> None:
    """Reveals the window's contribution. Only after D(w) is final. Raises StoreError."""
    if len(key) != KEY_BYTES:
        raise ValueError(f"a seal's key has {KEY_BYTES} bytes")
    await bucket.put(published_key(window), key)


async def fetch_key(reader: Reader, window: int, timeout: float) -> bytes:
    """The published key, 32 bytes. Raises NotFound, StoreError, RefusedError("key") on another length."""
    key = await reader.get(published_key(window), KEY_BYTES, timeout)
    if len(key) != KEY_BYTES:
        raise RefusedError("key", f"{len(key)} bytes, must be {KEY_BYTES}")
    return key


async def expire(bucket: Bucket, oldest_window: int, oldest_checkpoint: int | None = None) -> int:
    """Removes what belongs to windows before `oldest_window`; returns the number of objects removed.

    Manifests stay: they are small, and joiners walk them. Checkpoints before the window `oldest_checkpoint` go where
    it is given. Indexes and commits go first, so that nobody finds an object whose parts are already gone.
    """
    removed = 0
    for folder, oldest in zip(_WINDOWS, (oldest_window, oldest_checkpoint or 0), strict=True):
        old = [item.key for item in await bucket.list(folder) if (w := window_of(item.key)) is not None and w < oldest]
        heads = [key for key in old if ".parts/" not in key and not key.rpartition("/")[2].startswith("part-")]
        await bucket.delete(heads)
        await bucket.delete(sorted(set(old) - set(heads)))
        removed += len(old)
    return removed


def window_of(key: str) -> int | None:
    """The window in a key of the form FOLDER/WINDOW/..., else None."""
    window = key.split("/")[1] if key.count("/") >= 2 else ""
    return int(window) if len(window) == 10 and window.isascii() and window.isdigit() else None
