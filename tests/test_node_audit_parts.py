"""The parts of a full audit: bytes of the state, likeness, the tree, the pick, the limits, what is kept."""

import dataclasses
from functools import partial

import numpy as np
import pytest
from audit_network import BIG
from node_network import RUN, engine_of

from templar_jax.errors import StoreError
from templar_jax.node import audit, private, rerun
from templar_jax.node.forkchoice import Claim
from templar_jax.node.snapshots import DiskSnapshots, MemorySnapshots, open_snapshots
from templar_jax.store import parts
from templar_jax.store.disk import DRAFT
from templar_jax.store.merkle import CHUNK, merkle_root
from templar_jax.train.offload import copy


def test_the_private_state_survives_as_bytes():
    run, engine = BIG, engine_of(BIG)
    params = engine.theta_0()
    batch = np.random.default_rng(0).integers(0, 255, (run.inner.batch, run.data.sequence)).astype(np.int32)
    start = copy(params, offloaded=False)
    params, opt, _ = engine.inner.step(params, engine.inner.init(), batch, 3)
    feedback, packed = engine.compressor.update(engine.compressor.init(), start, params)
    state = private.to_bytes(run, opt, feedback)
    assert len(state) == private.state_bytes(run)
    again = private.from_bytes(engine, state)
    assert private.to_bytes(run, *again) == state
    leaves, ours = private.leaves(run, opt, feedback), private.leaves(run, *again)
    assert rerun.compare(run, packed, leaves, packed, ours) == pytest.approx((1.0, 1.0, 1.0))


def test_likeness_falls_with_direction_and_with_length():
    a, b = np.random.default_rng(0).standard_normal((2, 50))

    def like(x: np.ndarray, y: np.ndarray) -> float:
        with np.errstate(invalid="ignore"):
            return rerun.likeness(float(x @ y), float(x @ x), float(y @ y))

    assert like(a, a) == pytest.approx(1.0) == like(0 * a, 0 * a) and like(a, -a) == pytest.approx(-1.0)
    assert like(a, 100 * a) == pytest.approx(2 * 100 / (1 + 100**2)) and like(a, 0 * a) == 0.0
    same_length = b * np.sqrt((a @ a) / (b @ b))
    assert like(a, same_length) == pytest.approx(a @ b / np.sqrt((a @ a) * (b @ b)))
    assert like(a, np.full_like(a, np.nan)) == like(a, np.full_like(a, np.inf)) == 0.0


def test_the_tree_pins_content_order_and_length():
    data = bytes(range(256)) * (CHUNK // 64)  # four chunks
    roots = [merkle_root(x) for x in (b"", b"\0", data, data[:-1], data + b"\0", data[CHUNK:] + data[:CHUNK][::-1])]
    assert len(set(roots)) == len(roots) and merkle_root(data) == roots[2]
    for at in (0, CHUNK, 3 * CHUNK + 5):
        assert merkle_root(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]) != roots[2]


def test_the_pick_is_the_chains_and_fair():
    claims = [Claim(uid, f"key-{uid}", "sim:x", bytes(32), 1, uid) for uid in (5, 1, 9)]
    hashes = [bytes([n]) * 32 for n in range(200)]
    found = [audit.picked(claims, value) for value in hashes]
    assert found == [audit.picked(claims[::-1], value) for value in hashes]
    counts = [sum(one is not None and one.uid == uid for one in found) for uid in (1, 5, 9)]
    assert sum(counts) == 200 and min(counts) > 40
    assert audit.picked([], hashes[0]) is None


def test_audits_are_off_unless_they_fit(monkeypatch):
    need = 2 * private.state_bytes(RUN)
    allowed = partial(dataclasses.replace, RUN)
    assert not audit.allowed(RUN) and not audit.allowed(allowed(audit_bytes_max=need - 1))
    assert audit.allowed(allowed(audit_bytes_max=need))
    assert f"takes {need}" in audit.why_not(allowed(audit_bytes_max=need - 1))
    with monkeypatch.context() as small:
        small.setattr(parts, "PART_BYTES", 1)
        small.setattr(parts, "MAX_PARTS", need - 1)
        assert not audit.allowed(allowed(audit_bytes_max=2 * need))
        assert f"one object holds at most {need - 1}" in audit.why_not(allowed(audit_bytes_max=2 * need))
    assert not audit.why_not(RUN) and not audit.why_not(allowed(audit_bytes_max=need))


@pytest.mark.parametrize("kind", ["memory", "disk"])
def test_snapshots_keep_the_newest(kind: str, tmp_path):
    kept = MemorySnapshots() if kind == "memory" else DiskSnapshots(tmp_path / "s")
    for window in range(5):
        kept.save(window, b"%d" % window)
    assert kept.windows() == [2, 3, 4] and kept.load(3) == b"3"
    kept.save(3, b"again")
    kept.drop(4)
    assert kept.windows() == [2, 3] and kept.load(3) == b"again"


def test_what_a_kill_left_half_written_is_removed_and_a_stubborn_disk_is_said(tmp_path):
    open_snapshots(tmp_path).save(1, b"one")
    draft = tmp_path / f"0000000002.state{DRAFT}77"
    draft.write_bytes(b"tw")
    kept = open_snapshots(tmp_path)
    assert not draft.exists() and kept.windows() == [1]
    (tmp_path / "0000000003.state").mkdir()
    with pytest.raises(StoreError):
        kept.drop(3)
