"""ss58 addresses <-> the 32 bytes of a public key, as binary formats carry them."""

from functools import lru_cache

from templar_jax.chain.keys import Keypair


@lru_cache(maxsize=4096)
def public_key(hotkey: str) -> bytes:
    """The 32-byte public key of an ss58 address. Raises ValueError where it is none."""
    return bytes(Keypair(ss58_address=hotkey).public_key)


@lru_cache(maxsize=4096)
def address(key: bytes) -> str:
    """The ss58 address (format 42) of a 32-byte public key. Raises ValueError on another length."""
    if len(key) != 32:
        raise ValueError("a public key has 32 bytes")
    return Keypair(public_key=key).ss58_address
