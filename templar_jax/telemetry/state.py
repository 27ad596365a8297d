"""What the live display knows: the newest of everything, folded from events. No drawing here."""

from collections import deque
from dataclasses import dataclass, field

from templar_jax.telemetry.events import (
    Alarm,
    CheckpointSaved,
    Committed,
    Event,
    HeldOut,
    ManifestApplied,
    NodeStarted,
    NodeStopped,
    Noted,
    PhaseEnded,
    PhaseStarted,
    Registered,
    Revealed,
    Scored,
    Sealed,
    StepDone,
    Warned,
    WeightsSet,
    WindowDone,
)
from templar_jax.telemetry.text import line, printable

MESSAGES = 4  # of the newest warnings and notes that stay on screen
WINDOWS = 6  # rows of the table of windows
LOSSES = 120  # points of the loss curve


@dataclass
class Segment:
    """One phase on the timeline, in seconds of the node's clock. `end` None: still going on."""

    phase: str
    start: float
    end: float | None = None


@dataclass
class View:
    """The newest facts. `see` folds one event."""

    started: NodeStarted | None = None
    window: int | None = None
    opened: float = 0.0  # when the first phase of `window` started
    segments: list[Segment] = field(default_factory=list)
    step: StepDone | None = None
    sealed: Sealed | None = None
    applied: ManifestApplied | None = None
    held_out: float | None = None
    block: int | None = None  # of the own commitment in this window
    revealed: bool = False
    losses: deque[float] = field(default_factory=lambda: deque(maxlen=LOSSES))
    windows: deque[WindowDone] = field(default_factory=lambda: deque(maxlen=WINDOWS))
    messages: deque[tuple[str, str]] = field(default_factory=lambda: deque(maxlen=MESSAGES))  # (style, text)
    uid: int | None = None
    checkpoint: int | None = None
    topic: str = ""  # of the newest message, if that may be replaced
    noted: float | None = None  # when the newest note was said, until a phase starts: what is going on meanwhile
    stopped: bool = False

    @property
    def phase(self) -> str | None:
        """The phase going on."""
        return next((segment.phase for segment in reversed(self.segments) if segment.end is None), None)

    def see(self, event: Event, time: float) -> None:
        self._fold(event, time)
        if isinstance(event, (Noted, Warned, Alarm)):
            self.topic = event.topic if isinstance(event, Noted) else ""

    def _fold(self, event: Event, time: float) -> None:
        match event:
            case NodeStarted():
                self.started = event
            case Noted():
                if event.topic and event.topic == self.topic:
                    self.messages.pop()
                self.messages.append(("", printable(event.text)))
                self.noted = time
            case Registered():
                self.uid = event.uid
            case PhaseStarted():
                self._phase_started(event, time)
            case PhaseEnded():
                for segment in self.segments:
                    if segment.phase == event.phase and segment.end is None:
                        segment.end = time
            case StepDone():
                self.step = event
                self.losses.append(event.loss)
            case HeldOut():
                self.held_out = event.bits_per_byte
            case Sealed():
                self.sealed = event
            case Committed():
                self.block = event.block
            case Revealed():
                self.revealed = True
            case ManifestApplied():
                self.applied = event
            case WindowDone():
                self.windows.append(event)
            case CheckpointSaved():
                self.checkpoint = event.window
            case Warned():
                self.messages.append(("yellow", printable(event.text)))
            case Alarm():
                self.messages.append(("bold red", f"uid {event.uid}, {event.kind}: {printable(event.proof)}"))
            case Scored() | WeightsSet():
                self.messages.append(("", line(event) or ""))
            case NodeStopped():
                self.stopped = True

    def _phase_started(self, event: PhaseStarted, time: float) -> None:
        if event.window != self.window:
            self.window, self.opened, self.segments = event.window, time, []
            self.block, self.revealed, self.step = None, False, None
        self.noted = None
        self.segments.append(Segment(event.phase, time))
