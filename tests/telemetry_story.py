"""A made-up run as a list of (time, event): three windows of 40 blocks of one second, as a node says them."""

import math

from templar_jax.telemetry.events import (
    Alarm,
    CheckpointSaved,
    Committed,
    Event,
    HeldOut,
    ManifestApplied,
    NodeStarted,
    Noted,
    PhaseEnded,
    PhaseStarted,
    Revealed,
    Sealed,
    StepDone,
    Warned,
)

BLOCKS, STEPS, TOKENS, FIRST = 40, 50, 4096, 7
START = 1_700_000_000.0


def story(windows: int = 3) -> list[tuple[float, Event]]:
    marks = (("D", 28), ("K", 31), ("M", 33))
    told: list[tuple[float, Event]] = [
        (START, NodeStarted("tiny", "c613215b" * 4, "miner-0", 828_544, "2 cpu", TOKENS, 60, BLOCKS, marks, 1.0, 2)),
        (START, Noted("compiling the inner step")),
    ]
    for window in range(FIRST, FIRST + windows):
        told += _window(window, START + (window - FIRST) * BLOCKS)
    return told


def _window(window: int, start: float) -> list[tuple[float, Event]]:
    told: list[tuple[float, Event]] = []

    def phase(name: str, first: float, last: float, *inside: tuple[float, Event]) -> None:
        told.append((start + first, PhaseStarted(window, name)))
        told.extend((start + at, event) for at, event in inside)
        told.append((start + last, PhaseEnded(window, name, last - first)))

    since = (window - FIRST) * STEPS
    losses = [5.6 * math.exp(-(since + step) / 60) + 1.7 + 0.1 * math.sin(step) for step in range(STEPS)]
    steps = [
        (
            1 + 0.48 * step,
            StepDone(window, step, since + step, losses[step - 1], 8533.0, 0.9, 1e-3 * min(1, (since + step) / 60)),
        )
        for step in range(1, STEPS + 1)
    ]
    root = f"{window:02x}" * 32
    phase("train", 1, 25, *steps)
    phase("compress", 25, 25.6)
    phase("seal", 25.6, 26, (26, Sealed(window, 17_612, 0.166, STEPS)))
    phase("commit", 26, 27, (26.5, Committed(window, window * BLOCKS + 26)))
    told.append((start + 27, HeldOut(window, 8.1 * math.exp(-(window - FIRST) / 2) + 2)))
    phase("wait", 27, 29)
    phase("reveal", 29, 29.5, (29.4, Revealed(window)))
    phase("lead", 33, 34)
    phase("wait", 34, 37)
    applied = ManifestApplied(window, window - 2, (0, 1, 4), ((3, "late"),), root)
    phase("apply", 37, 38, (37.9, applied))
    if window == FIRST + 1:
        told.append((start + 38, CheckpointSaved(window)))
        told.append((start + 38, Warned("window 8: mirror of uid 3 is incomplete; its owner's bucket is tried again")))
        told.append((start + 38, Alarm(8, "manifest-root", 5, "its root is not that of its own list")))
    return told
