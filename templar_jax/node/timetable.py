"""The timetable of a window as pure arithmetic on block numbers (DESIGN: Timetable of window w).

S(w) start, D(w) deadline of commitments, K(w) deadline of keys, M(w) first block of the manifest.
"""

from dataclasses import dataclass

from templar_jax.config import WindowConfig


@dataclass(frozen=True)
class Timetable:
    """All blocks of one window. `leader_slot(r)` is half-open, like every range here."""

    window: int
    config: WindowConfig

    @property
    def start(self) -> int:
        return self.window * self.config.blocks

    @property
    def seed_block(self) -> int:
        """Its hash seeds the assignment; those registered at its end have a slot."""
        return self.start - self.config.seed_lookback

    @property
    def commit_aim(self) -> int:
        return self.deadline - self.config.commit_lead

    @property
    def deadline(self) -> int:
        """Last block in which a commitment counts."""
        return self.start + self.config.deadline

    @property
    def keys(self) -> int:
        return self.start + self.config.keys

    @property
    def evaluation_block(self) -> int:
        return self.keys + self.config.evaluate

    @property
    def manifest(self) -> int:
        return self.start + self.config.manifest

    @property
    def manifest_end(self) -> int:
        """First block in which no leader's manifest counts any more: without one by now the window is empty."""
        return self.manifest + self.config.leaders * self.config.leader_slot

    @property
    def answers_due(self) -> int:
        """Block after which nobody waits for an answer to the state challenge: halfway to the next deadline."""
        return self.start + self.config.blocks + self.config.deadline // 2

    @property
    def audit_due(self) -> int:
        """Likewise for a full audit: sooner, for validators run the steps again between it and the next deadline."""
        return self.start + self.config.blocks + self.config.deadline // 4

    def leader_slot(self, rank: int) -> tuple[int, int]:
        first = self.manifest + rank * self.config.leader_slot
        return first, first + self.config.leader_slot


def window_of(block: int, config: WindowConfig) -> int:
    return block // config.blocks
