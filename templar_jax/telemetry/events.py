"""What a node says while it works: one frozen dataclass per kind of event.

Events are facts, not text; sinks decide how they look. Units: seconds, bytes, nats per token for losses, bits per
UTF-8 byte for held-out text. Field names are the keys of the JSONL file, so a change here is a change of a format.
"""

from dataclasses import dataclass

# In the order of the timetable. "lead" is closing a window as its leader.
PHASES = ("train", "compress", "seal", "commit", "reveal", "lead", "wait", "apply", "checkpoint")


@dataclass(frozen=True)
class NodeStarted:
    """Who runs what on what; said once per process, before the first window."""

    run: str  # name of the run
    run_id: str
    hotkey: str
    parameters: int
    devices: str  # e.g. "2 cpu"
    tokens_per_step: int
    steps: int  # H
    window_blocks: int
    marks: tuple[tuple[str, int], ...]  # offsets in blocks within a window, e.g. (("D", 28), ("K", 31), ("M", 33))
    block_seconds: float
    restarts: int = 0  # of this home before this start
    name: str = ""  # of the hotkey's file on this machine


@dataclass(frozen=True)
class Registered:
    """The hotkey has a place on the subnet."""

    uid: int


@dataclass(frozen=True)
class Noted:
    """Progress outside windows: preparing data, compiling, joining, catching up."""

    text: str
    topic: str = ""  # a newer note of the same topic replaces it on a screen


@dataclass(frozen=True)
class PhaseStarted:
    window: int
    phase: str  # one of PHASES


@dataclass(frozen=True)
class PhaseEnded:
    window: int
    phase: str
    seconds: float


@dataclass(frozen=True)
class StepDone:
    """One inner step."""

    window: int
    step: int  # steps done in this window, from 1
    global_step: int
    loss: float
    tokens_per_s: float
    grad_norm: float
    lr: float


@dataclass(frozen=True)
class HeldOut:
    """Evaluation of theta_w, the global model from which window w starts."""

    window: int
    bits_per_byte: float


@dataclass(frozen=True)
class Sealed:
    """The own contribution, encrypted and on the own disk."""

    window: int
    payload_bytes: int
    bits_per_param: float
    steps: int


@dataclass(frozen=True)
class Committed:
    """The sealed object's hash is on chain."""

    window: int
    block: int


@dataclass(frozen=True)
class Revealed:
    """The own key is published."""

    window: int


@dataclass(frozen=True)
class ManifestApplied:
    """The outer step of a window. An empty window has outer_step unchanged and nobody accepted."""

    window: int
    outer_step: int
    accepted: tuple[int, ...]  # uids
    refused: tuple[tuple[int, str], ...]  # (uid, reason)
    root: str  # state root after the step, hex


@dataclass(frozen=True)
class WindowDone:
    """The figures of one window; made by `meter.Meter` from the events before it."""

    window: int
    outer_step: int
    steps: int
    tokens: int
    seconds: float
    tokens_per_s: float  # while training
    loss_first: float | None  # of the first and the last inner step; None without one
    loss_last: float | None
    heldout_bits_per_byte: float | None  # of the model that this window started from
    payload_bytes: int  # 0 where nothing was sent
    bits_per_param: float
    idle_share: float  # part of the window's time in which no inner step ran
    phases: dict[str, float]  # seconds
    accepted: tuple[int, ...]
    refused: tuple[tuple[int, str], ...]
    root: str


@dataclass(frozen=True)
class CheckpointSaved:
    window: int
    seconds: float = 0.0


@dataclass(frozen=True)
class Warned:
    """Something went wrong and was dealt with; `text` says what and how."""

    text: str


@dataclass(frozen=True)
class Alarm:
    """Somebody broke the rules, as far as this node can see."""

    window: int
    kind: str
    uid: int
    proof: str


@dataclass(frozen=True)
class Scored:
    """A validator's view of one window. Everything is by uid as of that window."""

    window: int
    beta: float  # share of the outer step at which contributions were evaluated
    evaluated: int
    accepted: int  # contributions that opened in time
    scores: dict[int, dict[str, float]]  # "pay", and what it is made of
    findings: dict[int, tuple[str, ...]]  # statistical ones: they prove nothing
    violations: dict[int, tuple[str, ...]]  # broken rules
    weights: dict[int, float]  # shares of pay
    refused: dict[int, str]  # contributions that this node could not open, and why
    link: str  # pins the evidence of all windows so far, hex
    seconds: float


@dataclass(frozen=True)
class Challenged:
    """Who holds the parameters that a window's contributions start from. Health only: it changes nobody's pay."""

    window: int
    answers: dict[int, str]  # by uid of those who sealed something: "same", "other" or "absent"


@dataclass(frozen=True)
class WeightsSet:
    """The own weights stand on the chain."""

    window: int  # the last that they take into account
    block: int
    weights: dict[int, int]  # u16 by uid


@dataclass(frozen=True)
class NodeStopped:
    """The last event of a process that ended by itself."""

    window: int
    root: str
    reason: str = ""


Event = (
    NodeStarted
    | Registered
    | Noted
    | PhaseStarted
    | PhaseEnded
    | StepDone
    | HeldOut
    | Sealed
    | Committed
    | Revealed
    | ManifestApplied
    | WindowDone
    | CheckpointSaved
    | Warned
    | Alarm
    | Scored
    | Challenged
    | WeightsSet
    | NodeStopped
)
