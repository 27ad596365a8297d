"""Which commitments count: claims, leaders and manifest candidates, from hand-made chains."""

from templar_jax.chain.messages import ManifestMessage, SealMessage, encode_commitment
from templar_jax.chain.port import Commitment, Metagraph, Neuron
from templar_jax.config import WindowConfig
from templar_jax.node.forkchoice import (
    STANDING_LEAST,
    candidates,
    claims,
    equivocations,
    leaders,
    with_standing,
)
from templar_jax.node.timetable import Timetable, window_of

CONFIG = WindowConfig(
    blocks=40, deadline=28, keys=31, evaluate=1, manifest=33, leader_slot=3, leaders=3, seed_lookback=3
)
WINDOW = 5
TABLE = Timetable(WINDOW, CONFIG)


def neuron(uid: int, stake: float = 0.0, permit: bool = False, incentive: float = 0.0) -> Neuron:
    return Neuron(uid, f"hotkey-{uid}", 0, stake, permit, 0, incentive, 0.0, 0.0)


def metagraph(*neurons: Neuron) -> Metagraph:
    return Metagraph(TABLE.deadline, neurons)


def seal(uid: int, block: int, digest: bytes = b"\1" * 32, window: int = WINDOW, index: int = 0) -> Commitment:
    return Commitment(block, index, f"hotkey-{uid}", encode_commitment(f"sim:{uid}", SealMessage(window, digest)))


def manifest(uid: int, block: int, digest: bytes = b"\2" * 32, window: int = WINDOW) -> Commitment:
    return Commitment(block, 0, f"hotkey-{uid}", encode_commitment(f"sim:{uid}", ManifestMessage(window, digest)))


def test_timetable_blocks():
    assert (TABLE.start, TABLE.seed_block, TABLE.commit_aim, TABLE.deadline) == (200, 197, 226, 228)
    assert (TABLE.keys, TABLE.evaluation_block, TABLE.manifest, TABLE.manifest_end) == (231, 232, 233, 242)
    assert [TABLE.leader_slot(rank) for rank in range(3)] == [(233, 236), (236, 239), (239, 242)]
    assert [window_of(block, CONFIG) for block in (0, 39, 40, 200)] == [0, 0, 1, 5]


def test_the_latest_commitment_until_the_deadline_counts():
    chain = [seal(0, 210, b"a" * 32), seal(0, 228, b"b" * 32), seal(0, 229, b"c" * 32)]
    assert [claim.sealed_sha256 for claim in claims(chain, metagraph(neuron(0)), TABLE)] == [b"b" * 32]


def test_other_windows_strangers_and_garbage_do_not_count():
    garbage = Commitment(210, 1, "hotkey-1", (b"file:///x", b"garbage"))
    chain = [seal(0, 210, window=WINDOW - 1), seal(7, 210), garbage, seal(1, 211)]
    assert [claim.uid for claim in claims(chain, metagraph(neuron(0), neuron(1)), TABLE)] == [1]


def test_claims_ascend_by_uid_whoever_came_first():
    chain = [seal(2, 201), seal(0, 202), seal(1, 202, index=1)]
    found = claims(chain, metagraph(neuron(0), neuron(1), neuron(2)), TABLE)
    assert [claim.uid for claim in found] == [0, 1, 2]
    assert found[2].block == 201


def test_validators_lead_by_stake_then_uid():
    ranked = leaders(metagraph(neuron(0), neuron(1, 5, True), neuron(2, 9, True), neuron(3, 5, True)), (), 3)
    assert [n.uid for n in ranked] == [2, 1, 3]


def test_without_a_validator_those_lead_who_sealed():
    everybody = metagraph(*(neuron(uid) for uid in range(5)))
    alive = claims([seal(3, 210), seal(4, 211), seal(1, 212)], everybody, TABLE)
    assert [n.uid for n in leaders(everybody, alive, 2)] == [1, 3]


def test_candidates_stand_in_their_own_slots_only():
    ranked = tuple(neuron(uid) for uid in (0, 1, 2))
    early, in_slot, second, other = manifest(0, 232), manifest(0, 235), manifest(1, 236), manifest(1, 235, b"x" * 32)
    foreign, stale = manifest(7, 234), manifest(2, 240, window=WINDOW - 1)
    found = candidates([early, foreign, in_slot, other, second, stale], ranked, TABLE)
    assert [(c.rank, c.block) for c in found] == [(0, 235), (1, 236)]


def test_two_different_manifests_of_one_leader_are_found_whatever_stands_between():
    ranked = tuple(neuron(uid) for uid in (0, 1, 2))
    first, again, second, other = manifest(0, 233), manifest(0, 234), manifest(0, 235, b"x" * 32), manifest(1, 236)
    assert equivocations(candidates([first, again, other], ranked, TABLE)) == ()
    assert equivocations(candidates([first, again, second, other], ranked, TABLE)) == ((0, (233, 235)),)


def standing(incentives: list[float], share: float) -> list[int]:
    """Uids that the outer step may take, of as many claims."""
    everybody = metagraph(*(neuron(uid, incentive=value) for uid, value in enumerate(incentives)))
    found = claims([seal(uid, 210) for uid in range(len(incentives))], everybody, TABLE)
    return [claim.uid for claim in with_standing(found, everybody, share) if claim.stands]


def test_who_earns_nothing_is_not_added():
    assert standing([1.0] * 8 + [0.0, 0.2, 0.25, 0.3], 0.25) == [*range(8), 10, 11]
    assert standing([1.0] * 8 + [0.0], 0.0) == list(range(9)), "a share of 0 takes all"


def test_standing_needs_enough_who_are_paid():
    few = [1.0] * (STANDING_LEAST - 1) + [0.0] * 5
    assert standing(few, 0.25) == list(range(len(few)))
    assert standing([0.0] * 12, 0.25) == list(range(12))


def test_unpaid_names_do_not_move_what_is_asked_for():
    assert standing([1.0] * 8 + [0.0] * 30, 0.9) == list(range(8))
