"""What is simulated, and where its results stand."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Job:
    """One simulation: NAME-SEED of the result's files, and who takes part."""

    name: str
    seed: int
    attacks: tuple[tuple[str, int], ...] = ()
    peers: int = 12
    windows: int = 40
    validators: int = 1

    @property
    def stem(self) -> str:
        return f"{self.name}-{self.seed}"


@dataclass(frozen=True)
class Places:
    out: Path  # results, committed
    evidence: Path  # recorded evidence and facts: large, not committed

    def result(self, job: Job) -> Path:
        return self.out / f"{job.stem}.json"

    def facts(self, job: Job) -> Path:
        return self.evidence / f"{job.stem}.facts.json"

    def lines(self, job: Job) -> Path:
        return self.evidence / f"{job.stem}.evidence.gz"
