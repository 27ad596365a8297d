"""Class (b): honest only in windows in which it expects to be evaluated.

Validators publish what they saw of each window, and evaluate first whom they have not seen for longest (see
incentive/select): so everybody can tell who comes next. Where time suffices for all, such a node always works.
"""

import contextlib
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field

from templar_jax.chain.messages import EvidenceMessage, parse_commitment
from templar_jax.errors import DataError, StoreError
from templar_jax.incentive import evidence as evidences
from templar_jax.incentive.evidence import Identity, WindowEvidence
from templar_jax.node.craft import Trained
from templar_jax.node.world import Node
from templar_jax.simulate.role import Role
from templar_jax.simulate.zoo.entry import Adversary, alone
from templar_jax.simulate.zoo.partial import like_the_others, share_of, some_steps
from templar_jax.simulate.zoo.past import Past
from templar_jax.simulate.zoo.sending import Contribution, own, sending
from templar_jax.store.contribution import evidence_key

SHARE = 0.2  # of the steps, in windows in which nobody looks
MAX_BYTES = 1 << 24  # of one window's evidence
LOOK_BACK = 4  # windows that validators may be behind


@dataclass
class Library:
    """Evidence that validators published, by locator, ascending by window."""

    read: dict[str, list[WindowEvidence]] = field(default_factory=dict)

    async def update(self, node: Node, window: int) -> None:
        """Reads what came since. What is not served is passed over."""
        world = node.world
        rows = await world.chain.commitments(0, await world.chain.finalized())
        parsed = [found for row in rows if (found := parse_commitment(row.fields)) is not None]
        for locator in dict.fromkeys(one.locator for one in parsed if isinstance(one.message, EvidenceMessage)):
            known = self.read.setdefault(locator, [])
            first = max(window - LOOK_BACK, known[-1].window + 1 if known else 0)
            for at in range(first, window):
                with contextlib.suppress(StoreError, DataError):
                    reader = world.open_reader(locator)
                    data = await reader.get(evidence_key(at), MAX_BYTES, world.chain.block_seconds)
                    known.append(evidences.decode(data.splitlines(keepends=True)[0]))


def looks_at(history: Sequence[WindowEvidence], me: Identity, window: int) -> bool:
    """Whether a validator with this history is likely to evaluate `me` in `window`, if it goes on as fast as it did."""
    if not history:
        return True
    last = {seen.peer: one.window for one in history for seen in one.peers if seen.losses}
    newest = history[-1]
    present = {seen.peer for seen in newest.peers if seen.accepted} | {me}
    count = sum(seen.losses is not None for seen in newest.peers)
    for at in range(newest.window + 1, window):  # whom it will have taken meanwhile
        for peer in sorted(present, key=lambda peer: (last.get(peer, -1), peer))[:count]:
            last[peer] = at
    before = sum(last.get(peer, -1) < last.get(me, -1) for peer in present)
    ties = sum(last.get(peer, -1) == last.get(me, -1) for peer in present)
    return count - before >= ties / 2


def when_seen() -> Role:
    past, library = Past(), Library()

    async def train(node: Node, window: int, slot: int, seed: bytes) -> Trained:
        await library.update(node, window)
        neuron = (await node.world.chain.metagraph()).by_hotkey(node.world.hotkey)
        assert neuron is not None  # it has a slot
        me = Identity(neuron.hotkey, neuron.registered)
        honest = not library.read or any(looks_at(known, me, window) for known in library.read.values())
        return await some_steps(node, window, slot, seed, node.run.inner.steps if honest else share_of(node, SHARE))

    async def make(node: Node, trained: Trained) -> Contribution:
        return like_the_others(node, past, await own(node, trained))

    return Role(craft=dataclasses.replace(sending(make), train=train), engine=past.engine)


ROWS = {
    "when-seen": Adversary(
        "b",
        "honest where the order of evaluation says that it is its turn, else a fifth of the steps",
        alone(when_seen),
    )
}
