"""Events reach every sink in order, the file survives kills, and no sink can stop the node."""

import dataclasses
import io
import json
import os
import signal
import subprocess
import sys
import time

import pytest
from telemetry_story import FIRST, START, STEPS, TOKENS, story

from templar_jax.config import NodeConfig, RunConfig
from templar_jax.errors import ConfigError, StoreError
from templar_jax.telemetry import events as ev
from templar_jax.telemetry.open import open_telemetry
from templar_jax.telemetry.plain import PlainLines
from templar_jax.telemetry.sinks import JsonLines, Telemetry, extra_sinks, read_events, scalars


class Kept:
    """A sink that keeps what it gets, and fails from the `fails`-th event on."""

    def __init__(self, fails: int = 10**9) -> None:
        self.events: list[ev.Event] = []
        self.fails = fails

    def emit(self, event: ev.Event, time: float) -> None:
        if len(self.events) >= self.fails:
            raise OSError("disk is full\nsecond line")
        self.events.append(event)

    def close(self) -> None: ...


def write(file, event: ev.Event) -> None:
    sink = JsonLines(file)
    sink.emit(event, 1.0)
    sink.close()


def tell(*sinks, windows=3) -> Telemetry:
    now = [0.0]
    telemetry = Telemetry(sinks, lambda: now[0])
    for at, event in story(windows):
        now[0] = at
        telemetry(event)
    return telemetry


def test_a_window_done_follows_the_end_of_each_apply():
    kept = Kept()
    tell(kept)
    done = [i for i, event in enumerate(kept.events) if isinstance(event, ev.WindowDone)]
    assert [kept.events[i].window for i in done] == [FIRST, FIRST + 1, FIRST + 2]
    assert all(kept.events[i - 1] == ev.PhaseEnded(kept.events[i].window, "apply", 1) for i in done)


def test_figures_by_hand():
    figures = tell().meter.figures()
    assert figures["windows"] == 3 and figures["tokens"] == 3 * STEPS * TOKENS
    assert figures["tokens_per_s"] == pytest.approx(3 * STEPS * TOKENS / (3 * 24))
    # The first window is counted from its first phase (second 1) to its end (38), the others from end to end.
    assert figures["idle_share"] == pytest.approx(1 - 3 * 24 / (37 + 40 + 40))
    assert (figures["heldout_bits_per_byte_first"], figures["restarts"]) == (pytest.approx(10.1), 2)
    assert figures["state_root"] == "09" * 32 and figures["payload_bytes"] == 17_612
    assert figures["loss_first"] > figures["loss_last"]
    json.dumps(figures, allow_nan=False)


def test_figures_of_a_run_that_did_nothing_yet():
    figures = Telemetry([], lambda: 0.0).meter.figures()
    assert figures["windows"] == 0 and figures["loss_first"] is None
    json.dumps(figures, allow_nan=False)


def test_manifests_of_a_catch_up_are_no_windows_of_this_node():
    now = [0.0]
    telemetry = Telemetry([], lambda: now[0])
    telemetry(ev.ManifestApplied(3, 1, (0,), (), "aa"))
    assert telemetry.meter.figures()["windows"] == 0
    assert telemetry.meter.figures()["state_root"] == "aa"


def test_a_failing_sink_is_named_once_and_dropped():
    broken, kept = Kept(fails=5), Kept()
    tell(broken, kept)
    said = [event.text for event in kept.events if isinstance(event, ev.Warned) and "Kept" in event.text]
    assert said == ["Kept is switched off until the next start: disk is full"]
    assert sum(isinstance(event, ev.WindowDone) for event in kept.events) == 3, "the others got everything"


def test_all_sinks_failing_is_silent():
    tell(Kept(fails=0), Kept(fails=0)).close()


def test_jsonl_holds_every_event_with_its_fields(tmp_path):
    kept = Kept()
    tell(JsonLines(tmp_path / "a" / "events.jsonl"), kept).close()
    lines = list(read_events(tmp_path / "a" / "events.jsonl"))
    assert [line["event"] for line in lines] == [type(event).__name__ for event in kept.events]
    assert lines[0]["time"] == START
    for line, event in zip(lines, kept.events, strict=True):
        names = {field.name for field in dataclasses.fields(event)}
        assert set(line) == names | {"time", "event"}


def test_jsonl_of_values_that_json_does_not_know(tmp_path):
    file = tmp_path / "events.jsonl"
    write(file, ev.StepDone(1, 1, 1, float("nan"), float("inf"), 0.0, 0.0))
    json.loads(file.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    (line,) = read_events(file)
    assert float(line["loss"]) != float(line["loss"]) and float(line["tokens_per_s"]) == float("inf")


def test_a_torn_last_line_costs_itself_only(tmp_path):
    file = tmp_path / "events.jsonl"
    write(file, ev.Noted("whole"))
    with file.open("a") as out:
        out.write('{"time":2,"event":"Not')
    write(file, ev.Noted("after"))
    assert [line["text"] for line in read_events(file)] == ["whole", "after"]
    assert not list(read_events(tmp_path / "none.jsonl"))


@pytest.mark.processes
def test_jsonl_survives_a_kill(tmp_path):
    """Everything that was emitted before SIGKILL is in the file: lines are not kept back in the process."""
    code = """
import sys, pathlib
from templar_jax.telemetry.sinks import JsonLines
from templar_jax.telemetry.events import Noted
sink = JsonLines(pathlib.Path(sys.argv[1]))
for i in range(10**9):
    sink.emit(Noted(str(i)), 0.0)
    print(i, flush=True)
"""
    file = tmp_path / "events.jsonl"
    with subprocess.Popen([sys.executable, "-c", code, str(file)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        while int(process.stdout.readline()) < 200:
            pass
        process.send_signal(signal.SIGKILL)
        printed = process.stdout.read().split("\n")[:-1]
    last = int(printed[-1]) if printed else 200
    seen = [int(line["text"]) for line in read_events(file)]
    assert seen == list(range(len(seen))) and len(seen) >= last


def test_missing_extra_is_one_clear_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)  # as if it were not installed
    with pytest.raises(ConfigError, match=r'"wandb", which is not installed: .*\[wandb\]"'):
        extra_sinks(RunConfig(), NodeConfig(sinks=("wandb",)))


def test_scalars_of_plotting_sinks():
    by_type = {}
    for _, event in story(1):
        by_type[type(event)] = scalars(event)
    step, values = by_type[ev.StepDone]
    assert step == STEPS and set(values) == {"train/loss", "train/grad_norm", "train/lr", "train/tokens_per_s"}
    assert by_type[ev.HeldOut][1] == {"global/heldout_bits_per_byte": pytest.approx(10.1)}
    assert by_type[ev.Noted] == (0, {})


def test_plain_lines_are_few_and_whole():
    out = io.StringIO()
    tell(PlainLines(out, every=10.0))
    lines = out.getvalue().splitlines()
    steps = [line for line in lines if "loss" in line and "step" in line and "done" not in line]
    assert len(steps) == 3 * 3, "24 s of training: the first step, then one each 10 s"
    assert sum(" done: 50 steps" in line for line in lines) == 3
    assert all(line[2] == ":" and line[5] == ":" for line in lines), "every line starts with its time"
    assert any("ALARM" in line for line in lines) and any("warning" in line for line in lines)


def test_what_a_stranger_sent_cannot_move_the_cursor():
    out = io.StringIO()
    PlainLines(out).emit(ev.Alarm(1, "seal", 2, "bad \x1b[2J\rbytes\nnext"), 0.0)
    assert out.getvalue().count("\n") == 1 and "\x1b" not in out.getvalue() and "\r" not in out.getvalue()


def test_open_telemetry_elsewhere_than_on_a_terminal(tmp_path):
    out = io.StringIO()
    telemetry = open_telemetry(RunConfig(), NodeConfig(), tmp_path / "events.jsonl", stream=out, clock=time.time)
    telemetry(ev.Noted("hello"))
    telemetry.close()
    assert out.getvalue().endswith("  hello\n")
    assert [line["text"] for line in read_events(tmp_path / "events.jsonl")] == ["hello"]


@pytest.mark.skipif(os.name != "posix", reason="needs a path that cannot be a folder")
def test_a_home_that_cannot_be_written_is_one_clear_line(tmp_path):
    (tmp_path / "home").write_text("a file, not a folder")
    with pytest.raises(StoreError, match="cannot write .*events.jsonl"):
        open_telemetry(RunConfig(), NodeConfig(), tmp_path / "home" / "events.jsonl")
