"""Faults of every kind on the mini network: nodes go on, one history in the end, nobody honest accused."""

import dataclasses

import pytest
from node_network import RUN, open_run

from templar_jax.errors import ConfigError
from templar_jax.simulate import faults as kinds
from templar_jax.simulate.faults import NODES, OPERATIONS, Faults
from templar_jax.simulate.network import NODE, Outcome, simulate
from templar_jax.simulate.report import figures
from templar_jax.store.simulated import Operation

OFTEN = dataclasses.replace(NODE, checkpoint_every=2)
SECONDS = 12.0
WINDOW = RUN.window.blocks * SECONDS
NAMES = [*(f"peer-{n:02d}" for n in range(4)), *(f"validator-{n}" for n in range(2))]
WINDOWS = 6  # faults act in windows 2 and 3, so that three are left to heal


def made(shares: dict[str, float], seed: int = 1, windows: int = WINDOWS) -> Faults:
    return kinds.make(shares, NAMES, seed, RUN.window, SECONDS, windows)


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory):
    return open_run(tmp_path_factory.mktemp("faults"))


def run(opened, shares: dict[str, float], seed: int) -> Outcome:
    numbers = dict(peers=4, validators=2, windows=WINDOWS, seed=seed)
    return simulate(*opened, faults=shares, config=OFTEN, **numbers)


# (fault, share, seed); seeds of faults of nodes are such that they meet somebody who matters.
CASES = [(name, 0.1, 1) for name in OPERATIONS]
CASES += [("slow", 0.25, 1), ("crash", 0.5, 1), ("skew", 1.0, 1), ("partition", 0.25, 5), ("lag", 0.25, 1)]


@pytest.mark.parametrize(("name", "share", "seed"), CASES, ids=[case[0] for case in CASES])
def test_whatever_goes_wrong_nodes_go_on_and_come_together(opened, name: str, share: float, seed: int):
    found = figures(run(opened, {name: share}, seed))
    assert found["healed"]
    assert found["state_roots_equal"] or name == "partition", found["windows_split"]
    assert set(found["windows_empty"]) <= {2, 3, 4}, "windows are lost while it lasts, and one more to come back"
    assert found["violations"] == 0
    assert not [kind for kind, alarm in found["alarms_by_kind"].items() if alarm["proven"]]


def test_everything_at_once_twice_is_the_same_to_the_last_event(opened):
    shares = {**dict.fromkeys(OPERATIONS, 0.03), **dict.fromkeys(NODES, 0.2)}
    one, two = (figures(run(opened, shares, 3)) for _ in range(2))
    assert one == two
    assert one["healed"] and one["violations"] == 0


def test_each_case_is_a_fault_that_happens():
    """A seed under which a fault of nodes hits nobody, or an operation never, would test nothing."""
    for name, share, seed in CASES:
        faults = made({name: share}, seed)
        if name in NODES:
            assert faults.hit[name]
        moments = [at for at in range(0, int(WINDOWS * WINDOW)) if kinds.is_cut(faults, name, float(at))]
        assert not moments or (2 * WINDOW <= moments[0] and moments[-1] < 4 * WINDOW)
        if name in ("partition", "lag"):
            assert len(moments) * SECONDS > 4  # blocks


def test_faults_act_only_in_their_windows_and_in_their_share():
    faults = made({"drop": 0.2})
    ops = [Operation("peer-00", "peer-01", "get", f"w/{n}", 10, 2.5 * WINDOW + n / 7) for n in range(2000)]
    hits = [kinds.of_store(faults, op, 0.05, 5e7) for op in ops]
    assert 320 < sum(hit is not None for hit in hits) < 480 and {hit.kind for hit in hits if hit} == {"drop"}
    for at in (0.0, 1.9 * WINDOW, 4.01 * WINDOW):
        assert not any(kinds.of_store(faults, dataclasses.replace(op, at=at), 0.05, 5e7) for op in ops)
    assert hits == [kinds.of_store(made({"drop": 0.2}), op, 0.05, 5e7) for op in ops]
    assert hits != [kinds.of_store(made({"drop": 0.2}, seed=2), op, 0.05, 5e7) for op in ops]


def test_a_partition_cuts_between_the_groups_and_not_within():
    faults = made({"partition": 0.5}, seed=5)
    inside = sorted(faults.hit["partition"])
    outside = sorted(set(NAMES) - faults.hit["partition"])
    assert len(inside) == len(outside) == 3
    at = next(float(at) for at in range(0, 4000) if kinds.is_cut(faults, "partition", float(at)))
    assert kinds.cut_between(faults, inside[0], outside[0], at) and kinds.cut_between(faults, outside[1], inside[1], at)
    assert not kinds.cut_between(faults, inside[0], inside[1], at)
    assert not kinds.cut_between(faults, outside[0], outside[1], at)


def test_races_end_at_the_boundaries_of_the_timetable():
    faults = made({"race": 1.0})
    start, window = 2 * WINDOW, RUN.window
    for offset in (window.deadline, window.deadline + 1, window.keys, window.manifest, window.manifest + 2):
        at = start + (offset - 0.7) * SECONDS
        op = Operation("peer-00", "peer-00", "put", "w/2/key", 0, at)
        fault = kinds.of_store(faults, op, 0.05, 5e7)
        assert fault is not None and fault.kind == "delay"
        assert at + 0.05 + fault.seconds == pytest.approx(start + offset * SECONDS, abs=0.021)
    assert kinds.race_delay(faults, start + 4.0 * SECONDS, faults.draw()) == 0.0  # no boundary near


def test_words_are_read_and_refused_in_one_line():
    assert kinds.parse(["drop", "crash:0.5"]) == {"drop": 0.1, "crash": 0.5}
    for word, line in (
        ("drp", "did you mean drop"),
        ("drop:2", "NAME:SHARE"),
        ("drop:x", "NAME:SHARE"),
        ("zz", "torn"),
    ):
        with pytest.raises(ConfigError, match=line):
            kinds.parse([word])
