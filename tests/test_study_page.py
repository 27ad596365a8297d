"""From results to verdicts and the page, on results that are small enough to judge by hand."""

import json
from pathlib import Path

import pytest

from benchmarks.study import effort, honest, page, verdict

WINDOWS = 40


def peer(node: str, role: str, pay: float, steps: int, v213: float | None = None) -> dict:
    """Four spans of ten windows, all alike."""
    return {
        "node": node, "role": role, "uids": 1, "accepted": WINDOWS, "refused": {}, "steps": [steps] * 4,
        "violations": {}, "findings": {}, "pay": {"default": [pay] * 4, "v213": [pay if v213 is None else v213] * 4},
    }  # fmt: skip


def result(name: str, seed: int, peers: list[dict], heldout: float = 2.0, gap: float = 0.1, **more) -> dict:
    attacks = [[name.partition("-x")[0], 3]] if name not in ("honest", *effort.KINDS) else []
    return {
        "job": {"name": name, "seed": seed, "attacks": attacks, "peers": 12, "windows": WINDOWS, "validators": 1},
        "versions": {"simulation": "s", "rules": "r", "jax": "j", "cpu_seconds": 36.0},
        "state_roots_equal": True, "windows": WINDOWS, "empty_windows": 0, "heldout": heldout, "log_sha256": "",
        "validators": {"validator-0": "honest"}, "alarms": {},
        "gaps": {"honest": [0.4] * WINDOWS, "adversary": [gap] * WINDOWS}, "peers": peers, **more,
    }  # fmt: skip


def network(name: str, seed: int, pay: float, steps: int, v213: float, heldout: float = 2.0) -> dict:
    """Nine honest peers, paid 1.0 +- 0.02 for 80 steps a span, and three others."""
    workers = [peer(f"peer-{n:02d}", "honest", 1.0 + 0.02 * (n % 3 - 1), 80) for n in range(9)]
    others = [peer(f"peer-{n:02d}", name, pay + 0.01 * (n + seed), steps, v213) for n in range(9, 12)]
    return result(name, seed, workers + others, heldout)


def one_row(results: list[dict], alone: dict | None = None) -> verdict.Row:
    name = results[0]["job"]["name"]
    (row,) = page.rows({name: results} | ({"absent": list(alone.values())} if alone else {}))
    return row


def test_no_work_is_beaten_by_the_upper_bound():
    row = one_row([network("noise", seed, 0.1, 0, 0.9) for seed in (1, 2, 3)])
    assert row.letter == "a" and row.work == 0.0 and row.per_compute["default"] is None
    assert row.weight["default"][0] == pytest.approx(0.1 + 0.12)
    assert row.weight["default"][0] < row.weight["default"][1] < 0.25
    assert row.verdicts["default"] == verdict.BEATEN and row.verdicts["v213"] == verdict.NOT
    alone = one_row([network("noise", 1, 0.6, 0, 0.9), network("noise", 2, 0.0, 0, 0.9)])
    assert alone.verdicts["default"] == verdict.NARROW  # the mean is, the bound is not


def test_partial_work_is_paid_by_the_step():
    results = [network("lazy50", seed, 0.4, 40, 0.6) for seed in (1, 2, 3)]
    row = one_row(results)
    assert row.work == pytest.approx(0.5)
    expected = sum(0.4 + 0.01 * (n + seed) for n in (9, 10, 11) for seed in (1, 2, 3)) / 9 / 0.5
    assert row.per_compute["default"] == pytest.approx((expected, *row.per_compute["default"][1:]))
    assert row.per_compute["v213"][0] == pytest.approx(1.2)
    assert row.verdicts == {"default": verdict.NARROW, "v213": verdict.NOT, "harm": ""}


def test_peers_of_one_owner_are_one():
    """One works for three: the three's pay over the one's steps."""
    result = network("sybil-identical", 1, 0.3, 0, 0.3)
    result["peers"][9]["steps"] = [80] * 4
    assert verdict.per_compute(result, "default") == pytest.approx(0.3 * 3 + 0.33, abs=1e-9)


def test_windows_to_tell_follow_from_the_gap():
    z = verdict.TELL
    results = [network("lazy50", 1, 0.4, 40, 0.6)]
    assert verdict.windows_to_tell(results) == 2  # 64 * 0.3**2 = 5.76 a window, 10.8 are needed
    results[0]["gaps"]["adversary"] = [0.38] * WINDOWS
    assert verdict.windows_to_tell(results) == pytest.approx(z * z / (64 * 0.02**2))
    results[0]["gaps"]["adversary"] = [0.4] * WINDOWS
    assert verdict.windows_to_tell(results) == float("inf")


def test_harm_is_paired_by_seed():
    alone = {seed: network("absent", seed, 0.0, 0, 0.0, 2.0 + 0.01 * seed) for seed in (1, 2, 3)}
    worse = [network("noise", seed, 0.1, 0, 0.1, (2.0 + 0.01 * seed) * 1.05) for seed in (1, 2, 3, 4)]
    row = one_row(worse, alone)
    assert row.harm == pytest.approx((0.05, 0.05, 0.05))
    assert row.verdicts["harm"] == verdict.NOT
    assert one_row([network("noise", 1, 0.1, 0, 0.1, 2.01)], alone).verdicts["harm"] == verdict.BEATEN


def test_a_median_that_earns_nothing_has_no_ratio():
    broke = network("noise", 1, 0.2, 0, 0.2)
    for one in broke["peers"][:9]:
        one["pay"]["v213"] = [0.0] * 4
    assert verdict.weights(broke, "v213") == [float("inf")] * 3
    assert one_row([broke]).verdicts["v213"] == verdict.NOT


def test_planted_losers_move_shares():
    before = network("absent", 1, 0.0, 0, 0.0)
    after = network("noise", 1, 0.1, 0, 0.1)
    for one in before["peers"][9:] + after["peers"][9:]:
        one["pay"]["default"] = [0.0] * 4
    known = honest.planted({"absent": [before], "noise": [after]}, "default")
    assert known is not None and known["moved"] == 0.0 and known["spread"] > 0.01
    after["peers"][0]["pay"]["default"] = [2.0] * 4
    assert honest.planted({"absent": [before], "noise": [after]}, "default")["worst"] > 0.5


def test_the_page_is_made_of_what_is_there(tmp_path: Path):
    out = tmp_path / "attacks"
    out.mkdir()
    page.write(out)
    assert not (tmp_path / "attacks.md").exists()  # nothing to tell
    twelve = [peer(f"peer-{n:02d}", "honest", 1.0 + 0.01 * n, 80) for n in range(12)]
    groups = {"join 0, windows 10-20": {"means": [1.0, 0.4, 0.2], "pairs": [1.0, 0.9, 1.0]}}
    results = [result("honest", 1, twelve), result("effort-plain", 1, twelve, effort=groups)]
    for seed in (1, 2):
        results += [
            network("absent", seed, 0.0, 0, 0.0),
            network("noise", seed, 0.9, 0, 0.9),
            network("lazy50", seed, 0.4, 40, 0.6),
        ]
    for one in results:
        (out / f"{one['job']['name']}-{one['job']['seed']}.json").write_text(json.dumps(one))
    (out / page.NOTES).write_text('noise = "It is paid for what it is not."\n')
    page.write(out)
    text = (tmp_path / "attacks.md").read_text()
    assert (tmp_path / "attacks.png").stat().st_size > 5_000
    assert "| `noise` | trains nothing, sends noise | 2 |" in text and "**not beaten**" in text
    assert "- `noise` (pay): It is paid for what it is not." in text
    assert "1 of 1" in text and "Broken rules: 0" in text and "`absent`" not in text
    page.write(out)
    assert (tmp_path / "attacks.md").read_text() == text  # the same results, the same page
