"""Numbers and events as short text; used by the plain lines, the live display and the summary."""

from collections.abc import Mapping

from templar_jax.telemetry.events import (
    Alarm,
    Challenged,
    CheckpointSaved,
    Committed,
    Event,
    HeldOut,
    ManifestApplied,
    NodeStarted,
    NodeStopped,
    Noted,
    Registered,
    Revealed,
    Scored,
    Sealed,
    StepDone,
    Warned,
    WeightsSet,
    WindowDone,
)

UNKNOWN = "-"


def count(value: float) -> str:
    """828544 -> "829 k", 70553706496 -> "70.6 B"."""
    for size, unit in ((1e12, " T"), (1e9, " B"), (1e6, " M"), (1e3, " k")):
        if value >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.0f}"


def bytes_(value: float) -> str:
    """In powers of 1024: 17612 -> "17.2 KiB"."""
    for size, unit in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if value >= size:
            return f"{value / size:.1f} {unit}"
    return f"{value:.0f} B"


def number(value: float | None, digits: int = 3) -> str:
    return UNKNOWN if value is None else f"{value:.{digits}f}"


def percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def printable(text: str) -> str:
    """`text` on one line and without control characters: errors may quote what a stranger sent."""
    return "".join(char if char.isprintable() else "?" for char in text.replace("\n", " "))


def uids(values: tuple[int, ...], most: int = 8) -> str:
    """(0, 1, 5) -> "0 1 5"; long lists end in "+3"."""
    shown = " ".join(map(str, values[:most]))
    return shown + (f" +{len(values) - most}" if len(values) > most else "")


def peers(accepted: tuple[int, ...], refused: tuple[tuple[int, str], ...]) -> str:
    """Who made the outer step, and who did not and why."""
    text = f"{len(accepted)} accepted" + (f" (uid {uids(accepted)})" if accepted else "")
    return text + "".join(f", uid {uid} refused: {printable(reason)}" for uid, reason in refused[:3])


def shares(weights: Mapping[int, float], most: int = 6) -> str:
    """Who earns what: {0: 0.6, 3: 0.4} -> "uid 0 60 %, uid 3 40 %", the largest first."""
    ranked = sorted(weights.items(), key=lambda item: (-item[1], item[0]))
    shown = ", ".join(f"uid {uid} {percent(share)}" for uid, share in ranked[:most])
    return (shown or "nobody has earned anything") + (f", {len(ranked) - most} more" if len(ranked) > most else "")


def line(event: Event) -> str | None:
    """The event as one plain line; None for those that only the live display and the files need."""
    match event:
        case NodeStarted():
            again = f", restart {event.restarts}" if event.restarts else ""
            return (
                f"run {event.run} ({event.run_id[:8]}): {count(event.parameters)} parameters on {event.devices}, "
                f"hotkey {event.name} {event.hotkey}{again}"
            )
        case Registered():
            return f"registered as uid {event.uid}"
        case Noted():
            return printable(event.text)
        case StepDone():
            return (
                f"window {event.window}  step {event.step}  loss {event.loss:.3f}  grad norm {event.grad_norm:.3f}  "
                f"lr {event.lr:.2e}  {event.tokens_per_s:,.0f} tokens/s"
            )
        case HeldOut():
            return f"window {event.window}  held-out {event.bits_per_byte:.3f} bits/byte"
        case Sealed():
            return (
                f"window {event.window}  sealed {event.steps} steps in {bytes_(event.payload_bytes)} "
                f"({event.bits_per_param:.3f} bits/parameter)"
            )
        case Committed():
            return f"window {event.window}  committed at block {event.block}"
        case Revealed():
            return f"window {event.window}  key published"
        case ManifestApplied():
            who = peers(event.accepted, event.refused)
            return f"window {event.window}  outer step {event.outer_step}: {who}  root {event.root[:12]}"
        case WindowDone():
            return (
                f"window {event.window} done: {event.steps} steps, {count(event.tokens)} tokens, loss "
                f"{number(event.loss_first)} -> {number(event.loss_last)}, held-out at its start "
                f"{number(event.heldout_bits_per_byte)} bits/byte, idle {percent(event.idle_share)}"
            )
        case CheckpointSaved():
            return f"window {event.window}  checkpoint saved"
        case Warned():
            return f"warning: {printable(event.text)}"
        case Alarm():
            return f"ALARM: window {event.window}, uid {event.uid}, {event.kind}: {printable(event.proof)}"
        case Scored():
            text = f"window {event.window}  scored {event.evaluated} of {event.accepted} at {event.beta:g} of the step"
            return f"{text}: {shares(event.weights)}" + "".join(
                f", uid {uid} refused: {printable(reason)}" for uid, reason in sorted(event.refused.items())[:3]
            )
        case Challenged():
            unwell = sorted((uid, answer) for uid, answer in event.answers.items() if answer != "same")
            if not unwell:
                return None
            text = ", ".join(f"uid {uid} {answer}" for uid, answer in unwell[:6])
            return f"window {event.window}  state challenge: {text} (of {len(event.answers)})"
        case WeightsSet():
            total = sum(event.weights.values())
            set_ = shares({uid: weight / total for uid, weight in event.weights.items()})
            return f"window {event.window}  weights set in block {event.block}: {set_}"
        case NodeStopped():
            why = f" ({event.reason})" if event.reason else ""
            return f"stopped in window {event.window}{why}, root {event.root[:12]}"
        case _:
            return None
