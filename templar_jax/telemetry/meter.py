"""Folds the events of a node into the figures of each window and of the whole run. Pure bookkeeping, no I/O."""

from dataclasses import dataclass, field
from typing import Any

from templar_jax.telemetry.events import (
    Event,
    HeldOut,
    ManifestApplied,
    NodeStarted,
    PhaseEnded,
    PhaseStarted,
    Sealed,
    StepDone,
    WindowDone,
)


@dataclass
class _Window:
    """What is known of a window that is not over."""

    started: float
    steps: list[StepDone] = field(default_factory=list)
    phases: dict[str, float] = field(default_factory=dict)
    sealed: Sealed | None = None
    applied: ManifestApplied | None = None


class Meter:
    """Sees every event in order. `see` returns the WindowDone that an event completes, else None.

    A window is complete when its "apply" phase ends after its ManifestApplied; manifests applied while catching up
    have no phases and complete nothing. Sums over the process stand in `figures()`.
    """

    def __init__(self) -> None:
        self._tokens_per_step = 0
        self._restarts = 0
        self._windows: dict[int, _Window] = {}
        self._last_end: float | None = None
        self._held_out: dict[int, float] = {}
        self._root = ""
        self.done: list[WindowDone] = []

    def see(self, event: Event, time: float) -> WindowDone | None:
        match event:
            case NodeStarted():
                self._tokens_per_step, self._restarts = event.tokens_per_step, event.restarts
            case HeldOut():
                self._held_out[event.window] = event.bits_per_byte
            case PhaseStarted():
                self._window(event.window, time)
            case StepDone():
                self._window(event.window, time).steps.append(event)
            case Sealed():
                self._window(event.window, time).sealed = event
            case ManifestApplied():
                self._root = event.root
                if event.window in self._windows:
                    self._windows[event.window].applied = event
            case PhaseEnded():
                window = self._window(event.window, time)
                window.phases[event.phase] = window.phases.get(event.phase, 0.0) + event.seconds
                if event.phase == "apply" and window.applied is not None:
                    return self._close(window, window.applied, time)
            case _:
                pass
        return None

    def figures(self) -> dict[str, Any]:
        """The figures of this process so far, by the names that `mine.py --json` uses. None where nothing is known.

        tokens_per_s is over the time spent training; idle_share over all complete windows; payload_bytes and
        bits_per_param are of the last contribution.
        """
        training = sum(window.phases.get("train", 0.0) for window in self.done)
        seconds = sum(window.seconds for window in self.done)
        tokens = sum(window.tokens for window in self.done)
        trained = [window for window in self.done if window.steps]
        sent = [window for window in self.done if window.payload_bytes]
        held_out = [self._held_out[window] for window in sorted(self._held_out)]
        return {
            "windows": len(self.done),
            "tokens": tokens,
            "tokens_per_s": tokens / training if training else 0.0,
            "loss_first": trained[0].loss_first if trained else None,
            "loss_last": trained[-1].loss_last if trained else None,
            "heldout_bits_per_byte_first": held_out[0] if held_out else None,
            "heldout_bits_per_byte_last": held_out[-1] if held_out else None,
            "payload_bytes": sent[-1].payload_bytes if sent else 0,
            "bits_per_param": sent[-1].bits_per_param if sent else 0.0,
            "idle_share": 1 - training / seconds if seconds else 0.0,
            "state_root": self._root,
            "restarts": self._restarts,
        }

    def _window(self, number: int, time: float) -> _Window:
        if number not in self._windows:
            self._windows[number] = _Window(started=self._last_end if self._last_end is not None else time)
        return self._windows[number]

    def _close(self, window: _Window, applied: ManifestApplied, time: float) -> WindowDone:
        self._windows = {number: other for number, other in self._windows.items() if number > applied.window}
        self._last_end = time
        seconds, training = time - window.started, window.phases.get("train", 0.0)
        tokens = len(window.steps) * self._tokens_per_step
        done = WindowDone(
            window=applied.window,
            outer_step=applied.outer_step,
            steps=len(window.steps),
            tokens=tokens,
            seconds=seconds,
            tokens_per_s=tokens / training if training else 0.0,
            loss_first=window.steps[0].loss if window.steps else None,
            loss_last=window.steps[-1].loss if window.steps else None,
            heldout_bits_per_byte=self._held_out.get(applied.window),
            payload_bytes=window.sealed.payload_bytes if window.sealed else 0,
            bits_per_param=window.sealed.bits_per_param if window.sealed else 0.0,
            idle_share=max(0.0, 1 - training / seconds) if seconds > 0 else 0.0,
            phases=window.phases,
            accepted=applied.accepted,
            refused=applied.refused,
            root=applied.root,
        )
        self.done.append(done)
        return done
