"""The parts of localnet.py: settings that children read back, block times that fit, children that do not obey, and
what is folded from events."""

import asyncio
import dataclasses
import io
import json
import shutil
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from templar_jax.chain.keys import load_or_create
from templar_jax.chain.port import Metagraph, Neuron
from templar_jax.config_load import load, shipped
from templar_jax.config_write import to_toml
from templar_jax.errors import ConfigError, StoreError
from templar_jax.localnet import plots, processes, storage
from templar_jax.localnet.figures import exit_code, figures
from templar_jax.localnet.follow import Follow
from templar_jax.localnet.measure import BUSY, Speed, fit_block, start_seconds, window_seconds
from templar_jax.localnet.network import Network, check_sizes, make_chain, new_home, node_settings, register
from templar_jax.localnet.report import write_report
from templar_jax.localnet.story import Story, rows
from templar_jax.localnet.table import Now, PlainLines, cells, draw
from templar_jax.localnet.watched import Watched
from templar_jax.store.open import open_bucket, open_reader

SPEED = Speed(start=3.0, step=0.005, compress=0.002, apply=0.002, held_out=0.01, peer=0.03)
WINDOWS = range(2, 6)


@pytest.mark.parametrize("name", shipped())
def test_settings_are_read_back_to_the_same_values(name, tmp_path):
    run, node = load(name, {"node.sinks": "wandb", "node.home": str(tmp_path / 'a "b" é')})
    file = tmp_path / "run.toml"
    file.write_text(to_toml(run, node))
    assert load(file) == (run, node)


@given(
    step=st.floats(1e-4, 10), peer=st.floats(1e-4, 10), miners=st.integers(1, 12), validators=st.integers(0, 4),
    cores=st.integers(1, 64),
)  # fmt: skip
def test_a_window_of_every_node_fits_before_its_deadline(step, peer, miners, validators, cores):
    run, _ = load("nano")
    speed = dataclasses.replace(SPEED, step=step, peer=peer)
    seconds = fit_block(run, speed, miners, validators, cores, 0.5)
    time_to_work = seconds * (run.window.deadline - run.window.commit_lead) * BUSY
    assert seconds >= 0.5
    assert window_seconds(run, speed, miners, validators) / cores <= time_to_work * 1.0001
    assert run.inner.steps * step <= time_to_work * 1.0001  # a miner alone uses one core
    assert fit_block(run, speed, miners + 1, validators, cores, 0.5) >= seconds
    assert fit_block(run, dataclasses.replace(speed, others=9.0), miners, validators, cores, 0.5) >= seconds
    assert start_seconds(speed, miners + validators, cores) > speed.start


def test_what_does_not_fit_is_refused():
    run, node = load("nano")
    check_sizes(run, node, 3, 2)
    with pytest.raises(ConfigError, match="data.slots"):
        check_sizes(run, node, 15, 2)
    with pytest.raises(ConfigError, match="memory"):
        check_sizes(*load("70b"), 3, 2)


def test_networks_do_not_share_a_home(tmp_path):
    first, second = new_home(tmp_path), new_home(tmp_path)
    assert (first.name, second.name) == ("net-1", "net-2")
    assert (first / "jax").resolve() == (second / "jax").resolve() == tmp_path / "jax"
    with pytest.raises(ConfigError, match="128"):
        new_home(tmp_path / ("x" * 120))


def make_network(tmp_path: Path) -> Network:
    run, node = load("nano", {"node.network.block_seconds": 0.05})
    return Network(run, node_settings(node, tmp_path, run, 1), tmp_path, 2, 1)


def test_uids_follow_the_order_of_names_and_block_0_is_ahead(tmp_path):
    made = make_network(tmp_path)

    async def story() -> list[str]:
        before = time.time()
        chain = make_chain(made, 0.3)
        assert await chain.eta(0) >= before + 0.3
        await register(made, chain)
        found = (await chain.metagraph()).neurons
        chain.close()
        return [neuron.hotkey for neuron in found]

    wallets = [tmp_path / "wallet" / name for name in ("miner-0", "miner-1", "validator-0")]
    assert asyncio.run(story()) == [load_or_create(wallet).ss58_address for wallet in wallets]


SLEEPS = "import signal, time; print('ready', flush=True); time.sleep(60)"
IGNORES = SLEEPS.replace("print", "signal.signal(signal.SIGTERM, signal.SIG_IGN); print")


def test_who_does_not_end_when_asked_is_killed_and_nobody_else(tmp_path):
    async def story() -> None:
        deaf = processes.start("deaf", "miner", [sys.executable, "-c", IGNORES], tmp_path / "deaf.log")
        heeding = processes.start("heeding", "miner", [sys.executable, "-c", SLEEPS], tmp_path / "heeding.log")
        other = processes.start("other", "miner", [sys.executable, "-c", SLEEPS], tmp_path / "other.log")
        try:
            until = time.monotonic() + 30
            while not processes.last_words(deaf) and time.monotonic() < until:
                await asyncio.sleep(0.02)
            killed = await processes.stop([deaf, heeding], 0.5)
            assert killed == [deaf] and other.code is None
            assert processes.ended(deaf.code or 0) == "killed by SIGKILL" and heeding.code
        finally:
            processes.kill([deaf, heeding, other])

    asyncio.run(story())


def test_last_words_are_of_one_line_each_and_an_exit_code_has_a_name(tmp_path):
    code = "print('one\\n\\ntwo\\x1b[2J'); raise SystemExit(3)"
    child = processes.start("x", "miner", [sys.executable, "-c", code], tmp_path / "x.log")
    assert child.process.wait(30) == 3
    assert processes.last_words(child, 2) == ["one", "two?[2J"]
    assert (processes.ended(3), processes.ended(-15)) == ("exit 3", "killed by SIGTERM")


def test_half_a_line_waits_for_its_end(tmp_path):
    file = tmp_path / "miner-0" / "metrics.jsonl"
    file.parent.mkdir()
    follow = Follow(tmp_path)
    file.write_bytes(b'{"time": 1, "event": "Registered", "uid": 4}\n{"time": 2, "ev')
    assert [event["uid"] for _, event in follow.new()] == [4]
    with file.open("ab") as more:
        more.write(b'ent": "Noted", "text": "x"}\ngarbage\n[]\n')
    assert [(name, event["event"]) for name, event in follow.new()] == [("miner-0", "Noted")]
    assert not list(follow.new())


@pytest.mark.processes
@pytest.mark.skipif(shutil.which(storage.PROGRAM) is None, reason="SeaweedFS is not installed (extra s3)")
def test_each_node_writes_and_reads_with_a_key_of_its_own(tmp_path):
    async def story() -> None:
        server = storage.start_server(tmp_path / "s3", tmp_path / "log", ["miner-0", "miner-1"])
        try:
            assert await storage.until_ready(server, asyncio.Event())
            first, second = server.accounts["miner-0"], server.accounts["miner-1"]
            await open_bucket(first.locator, first.environment).put("a/b", b"bytes")
            assert await open_reader(first.locator, local=True).get("a/b", 10, 10) == b"bytes"
            with pytest.raises(StoreError, match="PERMISSION_DENIED"):  # the other's write keys
                await open_bucket(first.locator, second.environment).put("a/b", b"other")
        finally:
            processes.kill([server.child])
            for path in server.litter:
                path.unlink()  # there, and where it is expected

    asyncio.run(story())


def events() -> list[tuple[str, dict]]:
    """Two miners and a validator over four windows; uid 1 is refused in the third."""
    started = dict(steps=8, window_blocks=16, marks=[["D", 9], ["K", 11], ["M", 12]], block_seconds=0.5)
    found: list[tuple[str, dict]] = []
    for uid, name in enumerate(("miner-0", "miner-1", "validator-0")):
        found += [(name, dict(event="NodeStarted", **started)), (name, dict(event="Registered", uid=uid))]
    for window in WINDOWS:
        for uid, name in enumerate(("miner-0", "miner-1", "validator-0")):
            refused = [[1, "no-key"]] if window == 4 else []
            accepted = [0] if refused else [0, 1]
            found.append((name, dict(event="PhaseStarted", phase="train", window=window)))
            if name != "validator-0":
                found.append((name, dict(event="StepDone", window=window, step=1, loss=5.0 - window / 2 + uid)))
                found.append((name, dict(event="Sealed", window=window, payload_bytes=3000)))
                found.append((name, dict(event="WindowDone", window=window, idle_share=0.5)))
            found.append((name, dict(event="PhaseEnded", phase="train", window=window, seconds=2.0)))
            root = f"{window:02d}" * 32
            found.append(
                (name, dict(event="ManifestApplied", window=window, accepted=accepted, refused=refused, root=root))
            )
            found.append((name, dict(event="HeldOut", window=window, bits_per_byte=8.0 - window)))
        scores = {str(uid): {"pay": 0.5, "gain": 1.0 - uid / 4, "effort": 0.5} for uid in range(2)}
        shares = {"0": 0.6, "1": 0.4}
        scored = dict(scores=scores, weights=shares, evaluated=2, accepted=2, seconds=1.0, window=window)
        found.append(("validator-0", dict(event="Scored", **scored)))
    found.append(("miner-1", dict(event="Warned", text="a disk\nis slow")))
    return [(name, {"time": 16.0 + index, **event}) for index, (name, event) in enumerate(found)]


def make_story() -> Story:
    story = Story()
    for name, event in events():
        story.see(name, json.loads(json.dumps(event)))
    return story


def test_the_table_is_what_the_events_say():
    story = make_story()
    first, second, third = rows(story, {0: (0.7, 0.0), 1: (0.3, 0.0), 2: (0.0, 1.0)})
    assert (first.accepted, first.closed, second.accepted, second.refused) == (4, 4, 3, {"no-key": 1})
    assert (second.reason, second.gain, second.weight, second.incentive) == ("no-key (w 4)", 0.75, 0.4, 0.3)
    assert (third.role, third.accepted, third.incentive, third.dividends) == ("validator", None, None, 1.0)
    assert cells(second)[-3:] == ("3/4", "no-key (w 4)", "train 1/8") and not story.differing()
    assert story.losses()[2] == 4.5 and story.nodes["miner-1"].said[0][1] == "a disk is slow"
    assert [row.accepted for row in rows(story, {}, last=3)] == [2, 2, None]


def test_a_root_that_differs_in_one_window_of_one_node_is_told():
    story = make_story()
    story.see("miner-1", dict(event="ManifestApplied", window=3, accepted=[0], refused=[], root="ff", time=99.0))
    assert story.differing() == [3]


def make_watched(tmp_path: Path) -> Watched:
    neuron = Neuron(0, "x", 1, 0.0, False, 0, 0.7, 0.0, 1.0)
    history = [Metagraph(32 * at, (neuron, dataclasses.replace(neuron, uid=2, dividends=1.0))) for at in (1, 2)]
    made = make_network(tmp_path)
    found = Watched(made, Follow(made.folder), block_seconds=0.5, story=make_story(), first=2, windows=4)
    found.history, found.metagraph = history, history[-1]
    return found


def test_figures_and_exit_codes(tmp_path):
    watched = make_watched(tmp_path)
    found = figures(watched)
    assert json.loads(json.dumps(found)) == found
    assert found["windows"] == 4 and found["loss"] == {"first_window": 4.5, "last_window": 3.0}
    assert found["state_roots_equal"] and exit_code(watched) == 0
    watched.dead = {"miner-0": -9}
    assert exit_code(watched) == 1 and figures(watched)["failed"] == ["miner-0"]
    watched.dead, watched.story = {}, Story()
    assert exit_code(watched) == 1  # nothing was closed, and nobody asked for that
    watched.asked = True
    assert exit_code(watched) == 0


def test_the_report_stands_alone_and_quotes_nothing_as_markup(tmp_path):
    watched = make_watched(tmp_path)
    watched.notes = [("miner-1", "<script>alert(1)</script>")]
    page = write_report(watched, tmp_path / "report", "scripts/localnet.py --windows 4").read_text()
    assert page.count("<img") == 4 and 'src="http' not in page and "<script" not in page and "no-key (w 4)" in page
    assert plots.typical_window(watched.story, None) in WINDOWS


@given(st.lists(st.floats(0, 1), max_size=8).map(sorted), st.floats(0.01, 0.2))
def test_labels_keep_their_distance_and_their_order(values, gap):
    found = plots.apart(values, gap)
    assert all(after - before >= gap * 0.999 for before, after in zip(found, found[1:], strict=False))
    if all(after - before >= gap for before, after in zip(values, values[1:], strict=False)):
        assert found == pytest.approx(values)


@pytest.mark.parametrize("width", [40, 80, 130])
def test_the_live_table_keeps_its_width(width):
    story = make_story()
    now = Now("nano", 40, 16, 2, 4, rows(story, {0: (0.7, 0.0)}))
    console = Console(width=width, file=io.StringIO(), record=True)
    console.print(draw(story, now, ["miner-1: " + "x" * 300], width))
    lines = console.export_text().splitlines()
    assert max(map(len, lines)) <= max(43, width - 3)
    if width >= 80:
        assert any("no-key (w 4)" in line for line in lines) and any("60 %" in line for line in lines)


def test_plain_lines_say_each_window_once():
    story, console = make_story(), Console(width=200, file=io.StringIO(), record=True)
    screen = PlainLines(console)
    for _ in range(3):
        screen.show(story, Now("nano", 40, 16, 2, 4, ()))
    text = console.export_text()
    assert text.count("window 4  loss") == 1 and "uid 1 refused: no-key" in text and text.count("scored") == 1
