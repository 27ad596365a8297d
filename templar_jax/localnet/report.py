"""The report of a network: one HTML page that needs nothing else, and its pictures as PNG files beside it."""

import base64
import html
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from templar_jax.localnet import plots
from templar_jax.localnet.figures import figures
from templar_jax.localnet.table import COLUMNS, cells
from templar_jax.localnet.watched import Watched
from templar_jax.store.disk import write_file
from templar_jax.telemetry.text import UNKNOWN, bytes_, number, percent

PAGE = "report.html"
STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; margin: .6rem 0; } td, th { padding: .2rem .7rem; text-align: right; }
th { border-bottom: 1px solid #888; font-weight: 600; } td.left, th.left { text-align: left; }
img { max-width: 100%; } .bad { color: #b00020; font-weight: 600; } code { background: #f3f3f3; padding: 0 .2rem; }
figure { margin: 1.4rem 0; } figcaption { color: #555; }
"""
CAPTIONS = {
    "weights": "Above: the share of pay that validators give each uid, thin each validator's own, bold their mean. "
    "Below: what the chain paid for it after each epoch; solid: incentive of miners, dashed: dividends of validators.",
    "loss": "Training loss of each miner, and held-out text under the global model.",
    "nodes": "What each miner sent, and the part of each window in which it did no inner step.",
    "phases": "One window of every node. S start, D deadline of commitments, K of keys, M manifest. Faded: what "
    "belongs to the window before or after. Thin bar: scoring, beside everything else.",
}


def write_report(watched: Watched, folder: Path, command: str) -> Path:
    """Writes FOLDER/report.html and one PNG a picture. Returns the page's path.

    Raises:
      StoreError: the folder cannot be written.
    """
    pictures = {name: _png(figure) for name, figure in _pictures(watched).items()}
    for name, data in pictures.items():
        write_file(folder / f"{name}.png", [data])
    write_file(folder / PAGE, [_page(watched, pictures, command).encode()])
    return folder / PAGE


def _pictures(watched: Watched) -> dict[str, Any]:
    story, last, run = watched.story, watched.last, watched.network.run
    found: dict[str, Any] = {}
    if story.weights():
        found["weights"] = plots.plot_weights(story, watched.history, run.window.blocks, last)
    if story.losses():
        found["loss"] = plots.plot_loss(story, last)
        found["nodes"] = plots.plot_nodes(story, last)
    window = plots.typical_window(story, last)
    if window is not None:
        found["phases"] = plots.plot_phases(story, window, watched.genesis, watched.block_seconds)
    return found


def _png(figure: Any) -> bytes:
    out = io.BytesIO()
    figure.savefig(out, format="png")
    return out.getvalue()


def _page(watched: Watched, pictures: dict[str, bytes], command: str) -> str:
    found, run = figures(watched), watched.network.run
    title = f"{run.name} {run.run_id[:8]}: {watched.network.miners} miners, {watched.network.validators} validators"
    parts = [
        f"<h1>{html.escape(title)}</h1>",
        f"<p><code>{html.escape(command)}</code></p>",
        _facts(watched, found),
        "<h2>Nodes</h2>",
        _table(COLUMNS, [cells(row) for row in watched.rows()]),
        *(_figure(name, data) for name, data in pictures.items()),
        "<h2>What went wrong</h2>",
        _notes(watched),
    ]
    head = f'<meta charset="utf-8"><title>{html.escape(title)}</title><style>{STYLE}</style>'
    return f'<!doctype html><html lang="en"><head>{head}</head><body>{"".join(parts)}</body></html>\n'


def _facts(watched: Watched, found: dict[str, Any]) -> str:
    different = watched.story.differing()
    equal = "equal in every window" if found["state_roots_equal"] else f"DIFFERENT in windows {different}"
    if not watched.story.verdicts():
        equal = "no window was closed"
    loss, held_out = found["loss"], found["heldout_bits_per_byte"]
    idle = [row["idle_share"] for row in found["per_uid"] if row["idle_share"] is not None]
    sent = [row["payload_bytes"] for row in found["per_uid"] if row["payload_bytes"]]
    seconds = watched.block_seconds * watched.network.run.window.blocks
    rows = [
        ("state roots", f"{equal} ({found['state_root'][:12] or UNKNOWN})", not found["state_roots_equal"]),
        ("windows", f"{found['windows']} of {found['windows_asked']}, {seconds:g} s each", False),
        ("training loss", f"{number(loss['first_window'])} → {number(loss['last_window'])} nats per token", False),
        ("held-out text", f"{number(held_out['first_window'])} → {number(held_out['last_window'])} bits/byte", False),
        ("contribution", bytes_(max(sent)) if sent else UNKNOWN, False),
        ("idle", f"{percent(sum(idle) / len(idle))} of a miner's time" if idle else UNKNOWN, False),
        ("processes that failed", ", ".join(found["failed"]) or "none", bool(found["failed"])),
    ]
    lines = []
    for name, text, bad in rows:
        style = "left bad" if bad else "left"
        lines.append(f'<tr><td class="left">{html.escape(name)}</td><td class="{style}">{html.escape(text)}</td></tr>')
    return f"<table>{''.join(lines)}</table>"


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    left = ("role", "reason", "state")

    def line(tag: str, texts: Sequence[str]) -> str:
        pairs = zip(columns, texts, strict=True)
        inner = (f"<{tag}{' class=left' if name in left else ''}>{html.escape(text)}</{tag}>" for name, text in pairs)
        return f"<tr>{''.join(inner)}</tr>"

    return f"<table>{line('th', columns)}{''.join(line('td', row) for row in rows)}</table>"


def _figure(name: str, data: bytes) -> str:
    source = f"data:image/png;base64,{base64.b64encode(data).decode()}"
    caption = html.escape(CAPTIONS[name])
    return f'<figure><img src="{source}" alt="{name}"><figcaption>{caption}</figcaption></figure>'


def _notes(watched: Watched) -> str:
    if not watched.notes:
        return "<p>Nothing: no warning, no alarm.</p>"
    return "<ul>" + "".join(f"<li>{html.escape(f'{who}: {what}')}</li>" for who, what in watched.notes) + "</ul>"
