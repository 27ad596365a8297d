"""Class (a): objects that break the format, and buckets that do not hold what was promised."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from templar_jax.chain.messages import SealMessage, encode_commitment
from templar_jax.compress.codec import HEADER, encode, plaintext_bounds
from templar_jax.compress.packed import Packed
from templar_jax.compress.tiles import tilings
from templar_jax.config import RunConfig
from templar_jax.node.craft import Craft, Trained, claim_of
from templar_jax.node.seals import SavedSeal
from templar_jax.node.world import Node, World
from templar_jax.simulate.role import Role
from templar_jax.simulate.zoo.entry import Adversary, alone
from templar_jax.simulate.zoo.ports import committing, putting
from templar_jax.simulate.zoo.sending import untrained
from templar_jax.store import seal as sealing
from templar_jax.store.seal import HEADER_BYTES, Claim


def text(make: Callable[[Node], bytes]) -> Craft:
    """Trains nothing and seals what `make` returns as the plaintext."""

    async def compress(node: Node, window: int, trained: Trained) -> bytes:
        del window, trained
        return make(node)

    return Craft(train=untrained, compress=compress)


def claiming(change: Callable[[Claim], Claim]) -> Craft:
    """Trains nothing and signs another claim, over the right format."""

    async def seal(node: Node, window: int, trained: Trained, plaintext: bytes) -> SavedSeal:
        return sealed_once(node, change(await claim_of(node, window, trained.steps)), plaintext)

    return Craft(train=untrained, seal=seal)


def damaging(change: Callable[[bytes, int], bytes]) -> Craft:
    """Trains nothing; commits to `change(sealed object, window)`."""

    async def seal(node: Node, window: int, trained: Trained, plaintext: bytes) -> SavedSeal:
        whole = sealed_once(node, await claim_of(node, window, trained.steps), plaintext)
        return SavedSeal(whole.key, change(whole.sealed, window))

    return Craft(train=untrained, seal=seal)


def sealed_once(node: Node, claim: Claim, plaintext: bytes) -> SavedSeal:
    """A seal under a fresh key that is not kept on disk."""
    key = node.world.entropy(32)
    return SavedSeal(key, sealing.seal(claim, plaintext, node.world.key, key))


def garbage(node: Node) -> bytes:
    """The right header, and random bytes of a length that is allowed."""
    length = sum(plaintext_bounds(node.run)) // 2 - HEADER.size
    whole = encode(node.run, plain(node.run))
    return HEADER.pack(*HEADER.unpack_from(whole)[:-1], length) + node.world.entropy(length)


def plain(run: RunConfig) -> dict[str, Packed]:
    """A contribution of that run: the first k elements of each tile, with the smallest positive value."""
    found = {}
    for name, tiling in tilings(run).items():
        shape, stack = tiling.packed_shape, tiling.param.shape[: tiling.param.stack]
        indices = np.broadcast_to(np.arange(tiling.k, dtype=np.uint16), shape)
        sign1 = run.compress.quantizer == "sign1"
        scales = np.ones((*stack, tiling.tiles), np.uint8) if sign1 else np.zeros((*stack, 4), np.float32)
        found[name] = Packed(indices, np.zeros(shape, np.uint8), scales)
    return found


def other_shape(node: Node) -> bytes:
    """A contribution of a run with one layer more or less, brought to a length that is allowed here."""
    layers = node.run.model.layers
    model = dataclasses.replace(node.run.model, layers=layers - 1 if layers > 1 else layers + 1)
    foreign = dataclasses.replace(node.run, model=model)
    least, most = plaintext_bounds(node.run)
    data = encode(foreign, plain(foreign))
    data = data[:most] + bytes(max(0, least - len(data)))
    return HEADER.pack(*HEADER.unpack_from(data)[:-1], len(data) - HEADER.size) + data[HEADER.size :]


def oversize(node: Node) -> bytes:
    """A whole contribution, and after it as many bytes again as the largest may have."""
    return encode(node.run, plain(node.run)) + bytes(plaintext_bounds(node.run)[1])


def broken_header(sealed: bytes, window: int) -> bytes:
    """Each window another damage: magic, schema, a flipped bit of the claim, no signature, cut short."""
    kinds = (
        b"XXXX" + sealed[4:],
        sealed[:4] + b"\xff" + sealed[5:],
        sealed[:6] + bytes([sealed[6] ^ 1]) + sealed[7:],
        sealed[: HEADER_BYTES - 64] + bytes(64) + sealed[HEADER_BYTES:],
        sealed[: HEADER_BYTES // 2],
    )
    return kinds[window % len(kinds)]


async def elsewhere(world: World, locator: str, message: Any) -> Any:
    """Another bucket, which does not exist, in its commitments."""
    return encode_commitment("s3:nowhere" if isinstance(message, SealMessage) else locator, message)


async def nonsense(world: World, locator: str, message: Any) -> Any:
    """Bytes that are no commitment of this network."""
    return (b"no bucket", b"garbage") if isinstance(message, SealMessage) else encode_commitment(locator, message)


def no_index(key: str, data: bytes) -> bytes | None:
    return b"garbage" if key.endswith("/sealed") else data


def other_bytes(key: str, data: bytes) -> bytes | None:
    return data[::-1] if "/sealed.parts/" in key else data


def wrong_key(key: str, data: bytes) -> bytes | None:
    return bytes(32) if key.endswith("/key") else data


def _crafted(does: str, craft: Craft) -> Adversary:
    return Adversary("a", does, alone(lambda: Role(craft=craft)))


def _lazily(does: str, role: Role) -> Adversary:
    craft = text(lambda node: encode(node.run, plain(node.run)))
    return Adversary("a", does, alone(lambda: dataclasses.replace(role, craft=craft)))


ROWS = {
    "garbage": _crafted("random bytes after the right header", text(garbage)),
    "malformed-header": _crafted("a sealed object whose header is damaged", damaging(broken_header)),
    "wrong-shape": _crafted("a contribution to a model with another number of layers", text(other_shape)),
    "oversize": _crafted("a contribution of more than twice the allowed size", text(oversize)),
    "empty": _crafted("a sealed object with nothing inside", text(lambda node: b"")),
    "wrong-window": _crafted(
        "claims the next window", claiming(lambda claim: dataclasses.replace(claim, window=claim.window + 1))
    ),
    "wrong-uid": _crafted("claims another uid", claiming(lambda claim: dataclasses.replace(claim, uid=claim.uid ^ 1))),
    "wrong-run": _crafted("claims another run", claiming(lambda claim: dataclasses.replace(claim, run_id="ab" * 16))),
    "no-steps": _crafted("claims no inner steps", claiming(lambda claim: dataclasses.replace(claim, inner_steps=0))),
    "no-index": _lazily("its object's index is garbage", putting(no_index)),
    "other-bytes": _lazily("serves other bytes than it committed to", putting(other_bytes)),
    "wrong-key": _lazily("publishes a key that does not open its object", putting(wrong_key)),
    "elsewhere": _lazily("names a bucket that does not exist", committing(elsewhere)),
    "nonsense": _lazily("commits bytes that are no commitment", committing(nonsense)),
}
