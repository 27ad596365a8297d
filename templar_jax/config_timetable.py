"""Whether the offsets of a window fit each other (config_check.py asks), and what they leave for training."""

from collections.abc import Iterator

from templar_jax.config import WindowConfig

CHAIN_FINALITY = 3  # blocks that a Bittensor head runs before its finalised block
MIN_TRAINING = 0.25  # part of a window that must remain for inner steps even when the last leader closes it


def training_blocks(window: WindowConfig, finality: int, rank: int = 0) -> int:
    """Blocks of a window between the application of its predecessor and this miner's own commit.

    `rank` is that of the leader who closed the predecessor: each rank costs one slot more. The predecessor's
    manifest is usable one block after its slot opens, plus finality.
    """
    final = window.manifest + rank * window.leader_slot + 1 + finality
    return window.deadline - window.commit_lead - max(0, final - window.blocks)


def timetable_problems(window: WindowConfig, finality: int) -> Iterator[str]:
    """Whether the offsets of a window follow each other with room for finality and for training."""
    w = window
    for name in ("seed_lookback", "commit_lead", "evaluate", "leader_slot", "leaders", "deadline"):
        if getattr(w, name) < 1:
            yield f"window.{name} is {getattr(w, name)}: set it to 1 or more"
            return
    if w.seed_lookback < finality:
        yield f"window.seed_lookback {w.seed_lookback} is less than finality: set it to {finality} blocks or more"
    if w.commit_lead >= w.deadline:
        yield f"window.commit_lead {w.commit_lead} leaves no time before window.deadline {w.deadline}: lower it"
    if w.keys <= w.deadline:
        yield f"window.keys {w.keys} must come after window.deadline {w.deadline}: set keys to {w.deadline + 1} or more"
    least = max(w.keys + 1, w.deadline + finality)
    if w.manifest < least:
        yield (
            f"window.manifest {w.manifest} must come after window.keys {w.keys}, and {finality} blocks of finality "
            f"after window.deadline {w.deadline}: set manifest to {least} or more"
        )
    if w.manifest >= w.blocks:
        yield f"window.manifest {w.manifest} lies outside window.blocks {w.blocks}: raise blocks or lower the offsets"
    needed = max(1, int(w.blocks * MIN_TRAINING))
    left = training_blocks(w, finality, rank=w.leaders - 1)
    if left < needed:
        yield (
            f"window.leaders {w.leaders} x window.leader_slot {w.leader_slot} with finality {finality} leave {left} of "
            f"{w.blocks} blocks for training, {needed} are needed: raise window.blocks, or lower leaders or leader_slot"
        )
    waits = w.manifest - 1 + -(-w.leader_slot // 2)  # a leader takes keys for half a slot from block manifest - 1 on
    if w.keys + w.evaluate < waits:  # a peer would see what it is evaluated on, and withhold its key if that is bad
        yield (
            f"window.evaluate {w.evaluate}: the evaluation block {w.keys + w.evaluate} may exist before a leader stops "
            f"waiting for keys (block {waits}): set evaluate to {waits - w.keys} or more"
        )
