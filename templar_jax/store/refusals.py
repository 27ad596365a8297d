"""Why bytes of a peer are refused: the one list of `RefusedError.reason` codes of all rooms.

A code is what a manifest says of a refused uid and what a miner reads in its log, so it stays what it is; details go
into the error's text. A manifest may carry codes of a newer version, of the same form (see `is_reason`).
"""

import re

REASONS = {
    "address": "the commitment's first field is no bucket locator",
    "auth": "decryption failed: key, header and ciphertext do not belong together",
    "error": "its bytes set off an error of this program, which is logged",
    "fetch": "the object did not arrive before the deadline",
    "full": "good, but earlier commitments fill the outer step",
    "hash": "content differs from the hash that pins it",
    "history": "a manifest that continues another history",
    "hotkey": "signed by another hotkey than the one it is attributed to",
    "index": "the index of an object's parts is malformed",
    "indices": "the payload's indices lie beyond their tiles",
    "key": "the published key is not the one whose hash the sealed object carries",
    "late": "no commitment of this window at or before the deadline",
    "manifest": "not the one canonical encoding of a manifest",
    "message": "a commitment that is none of the known messages",
    "mirror": "the leader could not copy the object in time",
    "no-key": "no key was published by the time that the leader closed the window",
    "padding": "bits beyond the payload's last value are set",
    "plaintext": "a manifest that lists another plaintext than the object holds",
    "quantizer": "the payload names another quantizer than the run's",
    "root": "a manifest whose state does not follow from the manifests before it",
    "run": "made for another run",
    "scales": "a scale of the payload is not finite, or out of range",
    "seal": "the sealed object's header is malformed",
    "signature": "a signature does not verify",
    "size": "length outside the bounds that follow from the run's configuration",
    "snapshot": "a published checkpoint that does not match the run's table of parameters",
    "standing": "good, but worth nothing to the validators so far: evaluated and paid, not added to the model",
    "steps": "a number of inner steps that the run does not allow, or not the one in the header",
    "uid": "made for another uid",
    "version": "the payload is of an unknown version",
    "window": "made for another window",
}

# Reasons that the very bytes show whose hash the chain holds: everybody who gets hold of them finds the same.
PROVEN = frozenset(
    ("auth", "hotkey", "indices", "padding", "plaintext", "quantizer", "run", "scales", "seal", "signature")
    + ("steps", "uid", "version", "window")
)

_FORM = re.compile(r"[a-z][a-z0-9-]{0,23}")


def is_reason(text: str) -> bool:
    """True if `text` can stand in a manifest: 1 to 24 of [a-z0-9-], beginning with a letter."""
    return _FORM.fullmatch(text) is not None
