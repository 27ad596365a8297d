"""Why bytes of a peer are refused: the one list of `RefusedError.reason` codes of this room and of chain/messages.

A code is what a manifest says of a refused uid and what a miner reads in its log, so it stays what it is; details go
into the error's text. Other rooms may add codes of the same form (see `is_reason`).
"""

import re

REASONS = {
    "address": "the commitment's first field is no bucket locator",
    "auth": "decryption failed: key, header and ciphertext do not belong together",
    "fetch": "the object did not arrive before the deadline",
    "hash": "content differs from the hash that pins it",
    "hotkey": "signed by another hotkey than the one it is attributed to",
    "index": "the index of an object's parts is malformed",
    "key": "the published key is not the one whose hash the sealed object carries",
    "late": "no commitment of this window at or before the deadline",
    "manifest": "not the one canonical encoding of a manifest",
    "message": "a commitment that is none of the known messages",
    "run": "made for another run",
    "seal": "the sealed object's header is malformed",
    "signature": "a signature does not verify",
    "size": "length outside the bounds that follow from the run's configuration",
    "snapshot": "a published checkpoint that does not match the run's table of parameters",
    "uid": "made for another uid",
    "window": "made for another window",
}

_FORM = re.compile(r"[a-z][a-z0-9-]{0,23}")


def is_reason(text: str) -> bool:
    """True if `text` can stand in a manifest: 1 to 24 of [a-z0-9-], beginning with a letter."""
    return _FORM.fullmatch(text) is not None
