"""Class (a): somebody else's sealed object taken before its key is out, and one's own sealed ambiguously."""

import dataclasses
import hashlib

from templar_jax.chain.messages import SealMessage, encode_commitment
from templar_jax.compress.codec import encode
from templar_jax.errors import RefusedError, StoreError
from templar_jax.node.craft import Craft, Trained, claim_of
from templar_jax.node.forkchoice import Claim
from templar_jax.node.gather import fetch_sealed
from templar_jax.node.seals import SavedSeal
from templar_jax.node.world import Node
from templar_jax.simulate.role import Role
from templar_jax.simulate.zoo.entry import Adversary, alone
from templar_jax.simulate.zoo.malformed import plain, sealed_once
from templar_jax.simulate.zoo.others import first_claim, half_of, key_of
from templar_jax.simulate.zoo.sending import untrained
from templar_jax.store import contribution
from templar_jax.store.seal import HEADER_BYTES, read_header, signed_header
from templar_jax.store.simulated import Fault, Operation


async def placeholder(node: Node, window: int, trained: Trained) -> bytes:
    """What is sealed where the object that counts is another one."""
    del window, trained
    return encode(node.run, plain(node.run))


async def same_commitment(node: Node, window: int, saved: SavedSeal) -> bool:
    """Commits to the hash of the first other peer that committed, and names that peer's bucket."""
    del saved
    victim = await first_claim(node, window)
    if victim is None:
        return False
    fields = encode_commitment(victim.locator, SealMessage(window, victim.sealed_sha256))
    await node.world.chain.commit(node.world.key, fields)
    return True


def same_ciphertext() -> Role:
    """A header of its own around the ciphertext of the first other peer; its key is passed on when it is out."""
    victims: dict[int, Claim] = {}

    async def seal(node: Node, window: int, trained: Trained, plaintext: bytes) -> SavedSeal:
        own = await claim_of(node, window, trained.steps)
        victim = await first_claim(node, window)
        if victim is None:
            return sealed_once(node, own, plaintext)
        try:
            sealed = await fetch_sealed(node, victim, (), window, node.world.chain.block_seconds)
        except (RefusedError, StoreError):
            return sealed_once(node, own, plaintext)
        victims[window] = victim
        header = dataclasses.replace(read_header(sealed), claim=own, hotkey=node.world.hotkey)
        return SavedSeal(bytes(32), signed_header(header, node.world.key) + sealed[HEADER_BYTES:])

    async def reveal(node: Node, window: int, saved: SavedSeal, until: float) -> None:
        key: bytes | None = saved.key
        if window in victims:
            key = await key_of(node, victims.pop(window), window, until)
        if key is not None:
            await contribution.publish_key(node.world.bucket, window, key)

    return Role(craft=Craft(train=untrained, compress=placeholder, seal=seal, reveal=reveal))


def second_key(operation: Operation) -> Fault | None:
    """Half of the readers get another key, with which they are to open another contribution."""
    if operation.key.endswith("/key") and half_of(operation.actor):
        return Fault("swap", data=hashlib.sha256(operation.key.encode()).digest())
    return None


ROWS = {
    "copier-before-keys": Adversary(
        "a",
        "commits to another peer's object before it can be read",
        alone(lambda: Role(craft=Craft(train=untrained, compress=placeholder, submit=same_commitment))),
    ),
    "copied-ciphertext": Adversary("a", "signs a header around another peer's ciphertext", alone(same_ciphertext)),
    "two-keys": Adversary("a", "gives half of the readers another key", alone(lambda: Role(serve=second_key))),
}
