"""What people see: the display at chosen moments, the summary, and the picture."""

import io
import json
from pathlib import Path

import pytest
from rich.console import Console
from telemetry_story import BLOCKS, FIRST, START, story

from templar_jax.telemetry import events as ev
from templar_jax.telemetry.display import LOOK, Display, draw
from templar_jax.telemetry.plot import curves, plot_run, smoothed
from templar_jax.telemetry.sinks import JsonLines, Telemetry, read_events
from templar_jax.telemetry.state import View
from templar_jax.telemetry.summary import print_summary, rows, write_json


def screen(second: float, width: int = 110, block: bool = True) -> list[str]:
    """The display `second` seconds into the story's last window, without colours."""
    view = View()
    stop = START + 2 * BLOCKS + second
    telemetry = Telemetry([Into(view)], lambda: now[0])
    now = [0.0]
    for at, event in story():
        if at <= stop:
            now[0] = at
            telemetry(event)
    console = Console(width=width, file=io.StringIO(), record=True)
    console.print(draw(view, stop, (FIRST + 2) * BLOCKS + second if block else None, width))
    return console.export_text().splitlines()


class Into:
    def __init__(self, view: View) -> None:
        self.view = view

    def emit(self, event, time) -> None:
        self.view.see(event, time)

    def close(self) -> None: ...


def test_every_phase_has_a_look():
    assert set(LOOK) == set(ev.PHASES) and len({letter for _, letter in LOOK.values()}) == len(LOOK)


@pytest.mark.parametrize("block", [True, False])
def test_timeline_in_the_middle_of_training(block):
    lines = screen(20, block=block)
    assert "window 9" in lines[1] and "train" in lines[1] and "step 39 of 60" in lines[1]
    bar, scale = lines[2][2:-2], lines[3][2:-2]
    share = bar.count("T") / len(bar)
    assert share == pytest.approx((19 if block else 19) / BLOCKS, abs=0.03)
    cursor = scale.index("▲") / len(scale)
    assert cursor == pytest.approx((20 if block else 19) / BLOCKS, abs=0.02)
    assert scale.index("D") < scale.index("K") < scale.index("M")


def test_timeline_at_the_end_shows_every_phase_in_order():
    lines = screen(38.5)
    letters = "".join(dict.fromkeys(lines[2].replace("━", "").strip("│ ")))
    assert letters == "TZSC.RLA"
    assert "committed, key published" in lines[1]


def test_figures_and_messages_are_there():
    text = "\n".join(screen(38.5))
    for part in ("17.2 KiB", "3 accepted (uid 0 1 4), uid 3 refused: late", "held-out bits/byte 4.980", "idle 40 %"):
        assert part in text, part
    assert "mirror of uid 3" in text and "manifest-root" in text and "090909090909" in text


@pytest.mark.parametrize("width", [40, 60, 80, 100, 110, 200])
def test_no_line_is_wider_than_the_terminal(width):
    lines = screen(38.5, width)
    assert all(len(line) <= width for line in lines) and len(lines) < 40


def test_before_anything_happened():
    console = Console(width=80, file=io.StringIO(), record=True)
    console.print(draw(View(), 0.0, None, 80))
    assert "templar_jax" in console.export_text()


def test_live_display_draws_and_closes():
    out = io.StringIO()
    now = [START]
    display = Display(Console(file=out, force_terminal=True, width=100), lambda: now[0])
    for at, event in story(1):
        now[0] = at
        display.emit(event, at)
    display.close()
    assert "window 7" in out.getvalue() and "\x1b[?25h" in out.getvalue(), "the cursor comes back"


def test_a_loss_that_is_no_number_is_drawn_all_the_same():
    out = io.StringIO()
    display = Display(Console(file=out, force_terminal=True, width=100), lambda: START)
    for at, event in story(1):
        display.emit(event, at)
    for loss in (float("nan"), float("inf")):
        display.emit(ev.StepDone(FIRST, 51, 51, loss, 1.0, 1.0, 1.0), START)
    display.close()
    assert "inf" in out.getvalue() and "failed" not in out.getvalue()


def test_a_display_that_cannot_draw_says_so_and_gives_the_terminal_back():
    out = io.StringIO()
    display = Display(Console(file=out, force_terminal=True, width=100), lambda: START, block=lambda: 1 / 0)
    display.close()
    assert "ZeroDivisionError" in out.getvalue() and "\x1b[?25h" in out.getvalue()


def events_file(tmp_path: Path) -> Path:
    sink = JsonLines(tmp_path / "events.jsonl")
    for at, event in story():
        sink.emit(event, at)
    sink.close()
    return tmp_path / "events.jsonl"


def test_picture(tmp_path):
    assert plot_run(read_events(events_file(tmp_path)), tmp_path / "loss.png", "tiny")
    assert (tmp_path / "loss.png").read_bytes()[:4] == b"\x89PNG"
    assert not plot_run([], tmp_path / "none.png") and not (tmp_path / "none.png").exists()
    assert not list(tmp_path.glob("*.part*"))


def test_curves_count_what_a_restart_repeated_once(tmp_path):
    file = events_file(tmp_path)
    steps, held_out = curves(read_events(file))
    again, held_out_again = curves([*read_events(file), *read_events(file)])
    assert steps == again and held_out == held_out_again and len(steps) == 150
    assert steps == sorted(steps) and steps[0][0] == FIRST and FIRST + 2 < steps[-1][0] < FIRST + 3


def test_smoothing_keeps_a_constant_and_the_first_point():
    assert [y for _, y in smoothed([(0, 3.0), (1, 3.0), (2, 3.0)])] == pytest.approx([3.0] * 3)
    assert smoothed([(0, 5.0), (1, 1.0)])[0] == (0, 5.0)


@pytest.mark.parametrize("terminal", [True, False])
def test_summary(terminal, tmp_path):
    telemetry = Telemetry([], lambda: START)
    for _, event in story():
        telemetry(event)
    figures = telemetry.meter.figures()
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=100)
    print_summary(console, figures, {"picture": tmp_path / "loss.png"})
    assert all(name in out.getvalue() for name, _ in rows(figures)) and "loss.png" in out.getvalue()
    assert ("\x1b" in out.getvalue()) == terminal
    write_json(tmp_path / "out" / "figures.json", figures)
    assert json.loads((tmp_path / "out" / "figures.json").read_text()) == figures
    write_json(tmp_path / "figures.json", {"loss_last": float("nan"), "windows": 1})
    assert json.loads((tmp_path / "figures.json").read_text()) == {"loss_last": None, "windows": 1}


def test_summary_of_nothing():
    print_summary(Console(file=io.StringIO()), Telemetry([], lambda: 0.0).meter.figures())
