"""sr25519 hotkeys: Bittensor's own keypair, so that an address here is an address there."""

import os
from pathlib import Path

from bittensor.sp_core import Keypair

from templar_jax.errors import ChainError

__all__ = ["Keypair", "load_or_create", "verify"]


def verify(hotkey: str, message: bytes, signature: bytes) -> bool:
    """True if `signature` (64 bytes) over `message` was made by the owner of the ss58 address `hotkey`."""
    try:
        return bool(Keypair(ss58_address=hotkey).verify(message, signature))
    except (ValueError, TypeError):
        return False


def load_or_create(path: Path) -> Keypair:
    """The hotkey whose 32-byte seed (hex) lies at `path`; created on first use, readable by the owner only.

    Raises: ChainError if the file holds something else.
    """
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_suffix(f".{os.getpid()}")
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(os.urandom(32).hex())
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(draft, path)  # never replaces a key that another process made meanwhile
        except FileExistsError:
            pass
        draft.unlink()
    try:
        return Keypair.create_from_seed(bytes.fromhex(path.read_text().strip()))
    except ValueError as error:
        raise ChainError(
            f"{path} is not a hotkey (64 hex digits): restore it, or move it away to get a new one"
        ) from error
