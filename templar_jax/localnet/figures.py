"""What a network came to, in figures: `localnet.py --json`."""

from typing import Any

from rich.console import Console

from templar_jax.localnet import processes
from templar_jax.localnet.story import Row
from templar_jax.localnet.table import make_table
from templar_jax.localnet.watched import Watched
from templar_jax.telemetry.text import number


def figures(watched: Watched) -> dict[str, Any]:
    """JSON-ready. Losses in nats per token, means over miners; shares between 0 and 1."""
    story, last = watched.story, watched.last
    verdicts = story.verdicts(last)
    losses = {window: loss for window, loss in story.losses().items() if last is None or window <= last}
    held_out = {w: v for node in story.nodes.values() for w, v in node.held_out.items()}
    return {
        "run": watched.network.run.name,
        "run_id": watched.network.run.run_id,
        "miners": watched.network.miners,
        "validators": watched.network.validators,
        "windows": sum(watched.first is not None and window >= watched.first for window in verdicts),
        "windows_asked": watched.windows,
        "first_window": watched.first,
        "block_seconds": watched.block_seconds,
        "state_roots_equal": roots_equal(watched),
        "state_root": verdicts[max(verdicts)]["root"] if verdicts else "",
        "loss": {"first_window": _first(losses), "last_window": _last(losses)},
        "heldout_bits_per_byte": {"first_window": _first(held_out), "last_window": _last(held_out)},
        "per_uid": [_of_row(watched, row) for row in watched.rows()],
        "failed": watched.failed,
        "notes": [f"{who}: {what}" for who, what in watched.notes],
    }


def roots_equal(watched: Watched) -> bool:
    """False also where nothing was closed: nothing was equal."""
    return bool(watched.story.verdicts()) and not watched.story.differing()


def exit_code(watched: Watched) -> int:
    """0: roots equal and every process did what it was asked. A stop before the first window is what was asked for."""
    if watched.failed:
        return 1
    return 0 if roots_equal(watched) or (watched.asked and not watched.story.verdicts()) else 1


def _of_row(watched: Watched, row: Row) -> dict[str, Any]:
    node = watched.story.node(row.name)
    code = next((child.code for child in watched.children if child.name == row.name), None)
    shares = [done["idle_share"] for done in node.done.values()]
    return {
        "uid": row.uid,
        "name": row.name,
        "role": row.role,
        "window": row.window,
        "gain": row.gain,
        "effort": row.effort,
        "weight": row.weight,
        "incentive": row.incentive,
        "dividends": row.dividends,
        "accepted": row.accepted,
        "windows": row.closed,
        "refused_reasons": row.refused,
        "scored": len(node.scored) if node.validates else None,
        "idle_share": sum(shares) / len(shares) if shares and not node.validates else None,
        "payload_bytes": max((sealed["payload_bytes"] for sealed in node.sealed.values()), default=None),
        "state": row.state,
        "ended": None if code is None else processes.ended(code),
    }


def _first(values: dict[int, float]) -> float | None:
    return values[min(values)] if values else None


def _last(values: dict[int, float]) -> float | None:
    return values[max(values)] if values else None


def print_summary(console: Console, watched: Watched) -> None:
    """The table and what it comes to. On a terminal the live table has just been left there."""
    found = figures(watched)
    if not console.is_terminal:
        console.width = 160  # no terminal cuts it
        console.print(make_table(watched.rows(), console.width))
    loss, held_out = found["loss"], found["heldout_bits_per_byte"]
    different = watched.story.differing()
    roots = "equal" if found["state_roots_equal"] else f"DIFFERENT in windows {different}" if different else "none"
    for name, text in (
        ("windows", f"{found['windows']} of {found['windows_asked']}"),
        ("state roots", roots),
        ("training loss", f"{number(loss['first_window'])} -> {number(loss['last_window'])} nats per token"),
        ("held-out", f"{number(held_out['first_window'])} -> {number(held_out['last_window'])} bits per byte"),
        ("failed", ", ".join(found["failed"]) or "nobody"),
    ):
        console.out(f"summary  {name}: {text}", highlight=False)
