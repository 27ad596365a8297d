"""A Merkle tree over fixed-size chunks of a byte string: 32 bytes that pin all of it.

leaf = sha256(0 | chunk), node = sha256(1 | left | right), a last node without a partner moves up as it is, and
root = sha256(2 | length as 8 bytes | top). The leading byte keeps leaves, nodes and roots apart (RFC 6962 does so too);
the length keeps a string apart from any other that cuts into the same chunks.
"""

import hashlib

CHUNK = 2**20  # bytes
EMPTY = bytes(32)  # stands where there is no tree


def merkle_root(data: bytes | memoryview) -> bytes:
    """32 bytes."""
    view = memoryview(data)
    row = [
        hashlib.sha256(b"\0" + bytes(view[start : start + CHUNK])).digest()
        for start in range(0, max(1, len(view)), CHUNK)
    ]
    while len(row) > 1:
        pairs = [hashlib.sha256(b"\1" + a + b).digest() for a, b in zip(row[::2], row[1::2], strict=False)]
        row = pairs + row[len(pairs) * 2 :]
    return hashlib.sha256(b"\2" + len(view).to_bytes(8, "little") + row[0]).digest()
