"""Which commitments count: pure functions over what stands on the chain.

Every node comes to the same answer because it asks only about finalised blocks.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from templar_jax.chain.messages import ManifestMessage, SealMessage, parse_commitment
from templar_jax.chain.port import Commitment, Metagraph, Neuron
from templar_jax.node.timetable import Timetable

STANDING_LEAST = 8  # miners with an incentive: fewer say little about what is usual


@dataclass(frozen=True)
class Claim:
    """A hotkey's sealed object of one window, as the chain notarised it on time."""

    uid: int
    hotkey: str
    locator: str
    sealed_sha256: bytes
    block: int
    index: int = 0  # in the block
    stands: bool = True  # the outer step may take it: see with_standing


@dataclass(frozen=True)
class Candidate:
    """A manifest that a leader committed inside its own slot."""

    rank: int
    uid: int
    hotkey: str
    locator: str
    message: ManifestMessage
    block: int


def claims(commitments: Iterable[Commitment], metagraph: Metagraph, timetable: Timetable) -> tuple[Claim, ...]:
    """The latest seal commitment <= D(w) of every hotkey registered at the seed block, ascending by uid.

    Args:
      commitments: of the blocks from the window's seed block to D(w), in chain order.
      metagraph: as of the window's seed block: it gave out the slots.
    """
    neurons = {neuron.hotkey: neuron for neuron in metagraph.neurons}
    latest: dict[int, Claim] = {}
    for commitment in commitments:
        neuron = neurons.get(commitment.hotkey)
        parsed = parse_commitment(commitment.fields)
        if neuron is None or parsed is None or commitment.block > timetable.deadline:
            continue
        if isinstance(parsed.message, SealMessage) and parsed.message.window == timetable.window:
            sealed = parsed.message.sealed_sha256
            where = commitment.block, commitment.index
            latest[neuron.uid] = Claim(neuron.uid, neuron.hotkey, parsed.locator, sealed, *where)
    return tuple(latest[uid] for uid in sorted(latest))


def leaders(metagraph: Metagraph, window_claims: Iterable[Claim], count: int) -> tuple[Neuron, ...]:
    """The leaders of a window by rank: stake at D(w) descending, uid ascending.

    Where no neuron has a permit (a local network without a validator) those lead who sealed something for
    this window: they are alive, and the chain says so to everybody.
    """
    permitted = [neuron for neuron in metagraph.neurons if neuron.permit]
    if not permitted:
        alive = {claim.hotkey for claim in window_claims}
        permitted = [neuron for neuron in metagraph.neurons if neuron.hotkey in alive]
    return tuple(sorted(permitted, key=lambda neuron: (-neuron.stake, neuron.uid))[:count])


def with_standing(window_claims: tuple[Claim, ...], metagraph: Metagraph, share: float) -> tuple[Claim, ...]:
    """The same claims, each with whether the outer step may take it: whether validators find it worth something.

    A miner is evaluated and paid either way, so a newcomer gets in as its incentive grows, and who sends what is
    worth nothing is out with the first weights that say so. Until STANDING_LEAST of those who claim have an incentive
    (a new network, one without validators) all are in.

    Args:
      metagraph: as of D(w). share: of the lower median of these incentives; 0: all are in.
    """
    incentive = {neuron.hotkey: neuron.incentive for neuron in metagraph.neurons}
    found = [incentive.get(claim.hotkey, 0.0) for claim in window_claims]
    paid = sorted(value for value in found if value > 0.0)
    if len(paid) < STANDING_LEAST:
        return window_claims
    least = share * paid[(len(paid) - 1) // 2]
    return tuple(replace(claim, stands=value >= least) for claim, value in zip(window_claims, found, strict=True))


def candidates(
    commitments: Iterable[Commitment], ranked: tuple[Neuron, ...], timetable: Timetable
) -> tuple[Candidate, ...]:
    """Manifests committed by a leader inside its own slot, in chain order. The first valid one is canonical."""
    rank_of = {neuron.hotkey: rank for rank, neuron in enumerate(ranked)}
    found = []
    for commitment in commitments:
        rank = rank_of.get(commitment.hotkey)
        parsed = parse_commitment(commitment.fields)
        if rank is None or parsed is None or not isinstance(parsed.message, ManifestMessage):
            continue
        first, end = timetable.leader_slot(rank)
        if first <= commitment.block < end and parsed.message.window == timetable.window:
            neuron = ranked[rank]
            found.append(Candidate(rank, neuron.uid, neuron.hotkey, parsed.locator, parsed.message, commitment.block))
    return tuple(found)


def equivocations(found: Iterable[Candidate]) -> tuple[tuple[int, tuple[int, int]], ...]:
    """(uid, blocks of the first two) of every leader with two different manifests among a window's candidates."""
    first: dict[int, Candidate] = {}
    proofs: dict[int, tuple[int, int]] = {}
    for candidate in found:
        earlier = first.setdefault(candidate.uid, candidate)
        if earlier.message.manifest_sha256 != candidate.message.manifest_sha256:
            proofs.setdefault(candidate.uid, (earlier.block, candidate.block))
    return tuple(sorted(proofs.items()))
