"""sr25519 hotkeys: Bittensor's own keypair, so that an address here is an address there."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from templar_jax.errors import ChainError

if TYPE_CHECKING:

    class Keypair:
        """What is used of Bittensor's compiled keypair, which comes without types."""

        ss58_address: str
        public_key: bytes

        def __init__(self, *, ss58_address: str | None = None, public_key: bytes | None = None) -> None: ...
        @staticmethod
        def create_from_seed(seed: bytes) -> "Keypair": ...
        @staticmethod
        def create_from_uri(uri: str) -> "Keypair": ...
        def sign(self, data: bytes) -> bytes: ...
        def verify(self, data: bytes, signature: bytes) -> bool: ...
else:
    from bittensor.sp_core import Keypair

__all__ = ["Keypair", "load_or_create", "verify"]


def verify(hotkey: str, message: bytes, signature: bytes) -> bool:
    """True if `signature` (64 bytes) over `message` was made by the owner of the ss58 address `hotkey`."""
    try:
        return bool(Keypair(ss58_address=hotkey).verify(message, signature))
    except (ValueError, TypeError):
        return False


def load_or_create(path: Path) -> Keypair:
    """The hotkey whose 32-byte seed (hex) lies at `path`; created on first use, readable by the owner only.

    Raises: ChainError if the file holds something else, or cannot be read or made.
    """
    try:
        if not path.exists():
            _create(path)
        return Keypair.create_from_seed(bytes.fromhex(path.read_text().strip()))
    except OSError as error:
        raise ChainError(f"cannot read or make the hotkey {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise ChainError(
            f"{path} is no hotkey (64 hex digits): restore it, or move it away to get a new one"
        ) from error


def _create(path: Path) -> None:
    """A complete file appears under the name, and never replaces a key that another process made meanwhile."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f"{path.name}.{os.getpid()}.{os.urandom(4).hex()}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(os.urandom(32).hex())
            file.flush()
            os.fsync(file.fileno())
        os.link(draft, path)
    except FileExistsError:
        pass
    finally:
        draft.unlink(missing_ok=True)
