"""What happened on a network, folded from the events that its nodes wrote. Pure bookkeeping, no I/O.

Events come as the JSON objects of the nodes' files: tuples are lists, and keys that were uids are text.
"""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from templar_jax.telemetry.text import printable

SAID = 200  # warnings and alarms of a node that are kept


@dataclass(frozen=True)
class Span:
    """A phase of a window, in seconds of the clock."""

    window: int
    phase: str
    start: float
    end: float


@dataclass
class NodeStory:
    """One node. `see` folds one of its events."""

    name: str
    uid: int | None = None
    started: Mapping[str, Any] | None = None  # its NodeStarted
    joined: int | None = None  # first window of a process that it took part in
    window: int | None = None
    state: str = "starting"
    steps: dict[int, dict[int, float]] = field(default_factory=dict)  # window -> step -> loss
    held_out: dict[int, float] = field(default_factory=dict)  # window -> bits per byte of theta_w
    roots: dict[int, set[str]] = field(default_factory=dict)  # window -> every root that this node had after it
    verdicts: dict[int, Mapping[str, Any]] = field(default_factory=dict)  # window -> its ManifestApplied
    done: dict[int, Mapping[str, Any]] = field(default_factory=dict)  # window -> its WindowDone
    sealed: dict[int, Mapping[str, Any]] = field(default_factory=dict)
    scored: dict[int, Mapping[str, Any]] = field(default_factory=dict)
    weights_set: list[Mapping[str, Any]] = field(default_factory=list)
    spans: list[Span] = field(default_factory=list)
    said: deque[tuple[float, str]] = field(default_factory=lambda: deque(maxlen=SAID))

    @property
    def validates(self) -> bool:
        return self.name.startswith("validator")

    def see(self, event: Mapping[str, Any]) -> None:
        window = event.get("window")
        match event["event"]:
            case "NodeStarted":
                self.started, self.state = event, "joining"
            case "Registered":
                self.uid = event["uid"]
            case "Noted":
                if self.window is None:
                    self.state = printable(event["text"])
            case "PhaseStarted":
                self.window, self.state = window, event["phase"]
                self.joined = window if self.joined is None else self.joined
            case "PhaseEnded":
                self.spans.append(
                    Span(event["window"], event["phase"], event["time"] - event["seconds"], event["time"])
                )
            case "StepDone":
                self.steps.setdefault(event["window"], {})[event["step"]] = float(event["loss"])
                of = "" if self.started is None else f"/{self.started['steps']}"
                self.state = f"train {event['step']}{of}"
            case "HeldOut":
                self.held_out[event["window"]] = float(event["bits_per_byte"])
            case "Sealed":
                self.sealed[event["window"]] = event
            case "ManifestApplied":
                self.roots.setdefault(event["window"], set()).add(event["root"])
                self.verdicts[event["window"]] = event
            case "WindowDone":
                self.done[event["window"]] = event
            case "Scored":
                self.scored[event["window"]] = event
            case "WeightsSet":
                self.weights_set.append(event)
            case "Warned":
                self.said.append((event["time"], printable(event["text"])))
            case "Alarm":
                text = f"ALARM window {window}, uid {event['uid']}, {event['kind']}: {printable(event['proof'])}"
                self.said.append((event["time"], text))
            case "NodeStopped":
                self.state = "stopped"
            case _:
                pass


@dataclass
class Story:
    """All nodes of one network."""

    nodes: dict[str, NodeStory] = field(default_factory=dict)

    def see(self, name: str, event: Mapping[str, Any]) -> None:
        self.node(name).see(event)

    def node(self, name: str) -> NodeStory:
        return self.nodes.setdefault(name, NodeStory(name))

    @property
    def miners(self) -> list[NodeStory]:
        return [node for node in self.nodes.values() if not node.validates]

    @property
    def validators(self) -> list[NodeStory]:
        return [node for node in self.nodes.values() if node.validates]

    def verdicts(self, last: int | None = None) -> dict[int, Mapping[str, Any]]:
        """{window: what was applied}, ascending, up to `last`; of several nodes the first by name."""
        found: dict[int, Mapping[str, Any]] = {}
        for node in self.nodes.values():
            found = {**node.verdicts, **found}
        return {window: found[window] for window in sorted(found) if last is None or window <= last}

    def differing(self) -> list[int]:
        """Windows after which two nodes, or one node at two times, had different state roots."""
        roots: dict[int, set[str]] = {}
        for node in self.nodes.values():
            for window, found in node.roots.items():
                roots.setdefault(window, set()).update(found)
        return sorted(window for window, found in roots.items() if len(found) > 1)

    def losses(self) -> dict[int, float]:
        """{window: training loss in nats per token, mean over miners of the means over steps}, ascending."""
        by_window: dict[int, list[float]] = {}
        for node in self.miners:
            for window, steps in node.steps.items():
                by_window.setdefault(window, []).append(sum(steps.values()) / len(steps))
        return {window: sum(found) / len(found) for window, found in sorted(by_window.items())}

    def weights(self) -> dict[int, dict[int, float]]:
        """{window: {uid: share of pay, mean over the validators that scored it}}, ascending."""
        found: dict[int, list[Mapping[str, float]]] = {}
        for node in self.validators:
            for window, event in node.scored.items():
                found.setdefault(window, []).append(event["weights"])
        return {window: _mean(found[window]) for window in sorted(found)}

    def newest_scores(self, part: str) -> dict[int, float]:
        """{uid: `part` of its newest score, mean over validators}: "gain", "effort", "pay"."""
        newest = [node.scored[max(node.scored)] for node in self.validators if node.scored]
        values: dict[int, list[float]] = {}
        for event in newest:
            for uid, score in event["scores"].items():
                if score.get(part) is not None:
                    values.setdefault(int(uid), []).append(float(score[part]))
        return {uid: sum(found) / len(found) for uid, found in values.items()}

    def uids(self) -> dict[int, NodeStory]:
        return {node.uid: node for node in self.nodes.values() if node.uid is not None}


def _mean(shares: list[Mapping[str, float]]) -> dict[int, float]:
    uids = sorted({int(uid) for each in shares for uid in each})
    return {uid: sum(float(each.get(str(uid), 0.0)) for each in shares) / len(shares) for uid in uids}


@dataclass(frozen=True)
class Row:
    """One node in the table; None where there is nothing to say."""

    uid: int | None
    name: str
    role: str
    window: int | None
    gain: float | None
    effort: float | None
    weight: float | None
    incentive: float | None
    dividends: float | None
    accepted: int | None  # windows in which its contribution was taken
    closed: int  # windows that were closed since it took part
    refused: dict[str, int]  # reason -> windows
    reason: str  # of its last refusal, with the window
    state: str


def rows(story: Story, incentive: Mapping[int, tuple[float, float]], last: int | None = None) -> list[Row]:
    """The table, ascending by uid; those without one last.

    Args:
      incentive: {uid: (incentive, dividends)} of the chain's metagraph.
      last: window up to which verdicts count.
    """
    verdicts, weights = story.verdicts(last), story.weights()
    newest = weights[max(weights)] if weights else {}
    gain, effort = story.newest_scores("gain"), story.newest_scores("effort")
    found = [_row(node, verdicts, newest, gain, effort, incentive) for node in story.nodes.values()]
    return sorted(found, key=lambda row: (row.uid is None, row.uid or 0, row.name))


def _row(
    node: NodeStory,
    verdicts: Mapping[int, Mapping[str, Any]],
    weights: Mapping[int, float],
    gain: Mapping[int, float],
    effort: Mapping[int, float],
    incentive: Mapping[int, tuple[float, float]],
) -> Row:
    uid, refused, reason, accepted = node.uid, dict[str, int](), "", 0
    first = node.joined  # what was closed before is not its concern
    mine = {window: event for window, event in verdicts.items() if first is not None and window >= first}
    for window, event in mine.items():
        accepted += uid in event["accepted"]
        for other, why in event["refused"]:
            if other == uid:
                refused[why] = refused.get(why, 0) + 1
                reason = f"{printable(why)} (w {window})"
    paid = incentive.get(uid) if uid is not None else None

    def of(values: Mapping[int, float]) -> float | None:
        return None if uid is None or node.validates else values.get(uid)

    return Row(
        uid=uid,
        name=node.name,
        role="validator" if node.validates else "miner",
        window=node.window,
        gain=of(gain),
        effort=of(effort),
        weight=of(weights),
        incentive=None if paid is None or node.validates else paid[0],
        dividends=None if paid is None or not node.validates else paid[1],
        accepted=None if node.validates else accepted,
        closed=len(mine),
        refused=refused,
        reason=reason,
        state=node.state,
    )
