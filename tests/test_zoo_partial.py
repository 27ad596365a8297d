"""Class (b) of the zoo: contributions are accepted as valid, the saved work shows, and uids are related as said.

The mini run has H = 2: every share of the steps below one half is one step.
"""

import asyncio
import dataclasses
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some
from node_network import RUN, applied, assert_one_history, engine_of, events, open_run, play, together

from templar_jax.chain.local import Limits
from templar_jax.compress import aggregate
from templar_jax.compress.tiles import tilings
from templar_jax.incentive.evidence import Identity, Losses, PeerEvidence, WindowEvidence
from templar_jax.node.world import Costs
from templar_jax.simulate.network import Network
from templar_jax.simulate.role import Role
from templar_jax.simulate.zoo import partial_arrays as arrays
from templar_jax.simulate.zoo import partial_names as names
from templar_jax.simulate.zoo.partial import lazy, share_of
from templar_jax.simulate.zoo.partial_seen import looks_at, when_seen
from templar_jax.simulate.zoo.past import Past
from templar_jax.simulate.zoo.table import ROLES
from templar_jax.telemetry.events import Registered, Scored, Sealed, StepDone

WINDOWS, H = 3, RUN.inner.steps
OWNED = (3, 4, 5)  # uids of the adversaries
STEPS = {  # of the three together in a window
    "lazy50": 3, "lazy20": 3, "lazy50-rescaled": 3, "lazy20-rescaled": 3, "memoriser": 3,
    "sybil-identical": 2, "sybil-noise": 2, "sybil-ranks": 2, "sybil-all-data": 2, "sybil-share": 3,
    "thin50": 3, "thin25": 3, "pair": 3, "when-seen": 6,  # nobody publishes what was evaluated
}  # fmt: skip


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory):
    return open_run(tmp_path_factory.mktemp("partial"))


async def watched(network: Network, count: int, windows: int, roles: dict[int, Role]) -> None:
    """Beside a validator."""
    watching = asyncio.ensure_future(network.validator("validator-0"))
    await together(network, count, windows, roles)
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)


def steps_done(network: Network) -> Counter[tuple[str, int]]:
    """By node and window."""
    return Counter((e.node, e.event.window) for e in network.log if isinstance(e.event, StepDone))


def alike(sent, one: int, other: int) -> float:
    return arrays.cosine(RUN, sent[one], sent[other])


@pytest.mark.parametrize("name", STEPS)
def test_partial_work_is_accepted_and_shows_in_the_steps(opened, name: str):
    past = Past(keep=WINDOWS)
    roles = dict(zip(OWNED, ROLES[name].roles(3), strict=True)) | {0: Role(engine=past.engine)}
    network = play(opened, lambda network: together(network, 6, WINDOWS, roles))
    assert_one_history(network)
    assert [event.accepted for event in applied(network, "peer-01").values()] == [(0, 1, 2, *OWNED)] * WINDOWS
    done = steps_done(network)
    owned = [f"peer-{uid:02d}" for uid in OWNED]
    for window in range(1, WINDOWS + 1):
        assert sum(done[node, window] for node in owned) == STEPS[name]
        assert done["peer-01", window] == H
    assert {event.steps for node in owned for event in events(network, Sealed, node)} == {H}
    _check_relations(name, [step.contributions for step in past.steps])


def _check_relations(name: str, windows) -> None:
    honest = max(alike(sent, 0, 1) for sent in windows)
    likeness = [alike(sent, 3, 4) for sent in windows]
    match name:
        case "sybil-identical":
            assert min(likeness) == pytest.approx(1)
        case "sybil-noise":
            assert honest < likeness[-1] < 0.999
        case "sybil-ranks" | "sybil-all-data":
            assert max(likeness) < honest + 0.2
            assert all(not _shared_places(sent[3], sent[4]) for sent in windows)
        case "pair":
            assert min(likeness) > honest
        case _:
            assert max(likeness[1:]) < honest + 0.2  # a memoriser's very first steps are mostly signs
    if name not in ("lazy50", "lazy20", "thin50", "thin25"):  # from the second window on they know the others' norms
        for before, sent in zip(windows, windows[1:], strict=False):
            wanted = arrays.median_norms(RUN, before.values())
            for parameter, tiling in tilings(RUN).items():
                norms = aggregate.norms(tiling, sent[3][parameter])
                assert (norms >= wanted[parameter] * 0.999).all() and (norms <= wanted[parameter] * 1.2).all()


def _shared_places(one, other) -> int:
    shared = 0
    for name, tiling in tilings(RUN).items():
        if not tiling.full:
            pair = zip(one[name].indices.reshape(-1, tiling.k), other[name].indices.reshape(-1, tiling.k), strict=True)
            shared += sum(np.intersect1d(a, b).size for a, b in pair)
    return shared


def test_their_headers_name_the_right_loss_of_step_0(opened):
    owned = [role for name in ("sybil-all-data", "thin50", "memoriser") for role in ROLES[name].roles(2)]
    network = play(opened, lambda network: watched(network, 7, 2, dict(enumerate(owned, 1))))
    scored = events(network, Scored)
    assert scored and all(event.evaluated == 7 for event in scored)
    assert not [found for event in scored for found in event.findings.values() if "step0" in found]


def test_a_share_of_the_steps_is_at_least_one():
    assert [share_of_h(h, share) for h, share in ((8, 0.5), (8, 0.2), (30, 0.2), (2, 0.2))] == [4, 2, 6, 1]


def share_of_h(h: int, share: float) -> int:
    node = type("Node", (), {"run": dataclasses.replace(RUN, inner=dataclasses.replace(RUN.inner, steps=h))})
    return share_of(node, share)  # type: ignore[arg-type]


@given(seed=some.integers(0, 2**32 - 1), count=some.integers(1, 5))
@settings(max_examples=8, deadline=None)
def test_stripes_are_disjoint_and_together_the_largest(seed: int, count: int):
    rng = np.random.default_rng(seed)
    gradient = {p: rng.standard_normal(t.param.shape, np.float32) for p, t in tilings(RUN).items()}
    parts = [arrays.stripe(RUN, gradient, number, count) for number in range(count)]
    for name, tiling in ((name, tiling) for name, tiling in tilings(RUN).items() if not tiling.full):
        there = np.array([part[name] != 0 for part in parts])
        assert there.sum(0).max() == 1
        tiles, whole = (arrays.in_tiles(tiling, x).reshape(-1, tiling.size) for x in (there.any(0), gradient[name]))
        kept = min(count * tiling.k, tiling.size)
        for chosen, values in zip(tiles, np.abs(whole), strict=True):
            assert chosen.sum() == kept and set(values[chosen]) == set(np.sort(values)[-kept:])


@given(seed=some.integers(0, 2**32 - 1), factor=some.floats(0.01, 100))
@settings(max_examples=8, deadline=None)
def test_rescaled_norms_are_at_most_one_scale_code_above_the_wanted(seed: int, factor: float):
    engine, rng = engine_of(RUN), np.random.default_rng(seed)
    gradient = {p: 1e-3 * rng.standard_normal(t.param.shape, np.float32) for p, t in tilings(RUN).items()}
    sent = arrays.compressed(engine, gradient)
    wanted = {name: factor * norms for name, norms in arrays.median_norms(RUN, [sent]).items()}
    scaled = arrays.with_norms(RUN, sent, wanted)
    for name, norms in arrays.median_norms(RUN, [scaled]).items():
        assert (norms >= 0.999 * wanted[name]).all() and (norms <= 1.1 * wanted[name]).all()
        assert (scaled[name].codes == sent[name].codes).all() and (scaled[name].indices == sent[name].indices).all()


def test_a_new_hotkey_misses_no_window(opened):
    role = names.renaming(lazy(0.5), names.after(2))
    network = play(opened, lambda network: together(network, 4, 5, {3: role}))
    assert_one_history(network)
    uids = [event.accepted for event in applied(network).values()]
    assert uids == [(0, 1, 2, uid) for uid in (3, 3, 4, 4, 5)]
    done = steps_done(network)
    assert [done["peer-03" + name, w] for w, name in enumerate(("", "", ".2", ".2", ".3"), 1)] == [1] * 5


def test_a_name_is_given_up_when_its_incentive_falls(opened):
    role = names.renaming(lazy(0.5), names.after_a_loss(keep=1.01))  # the first incentive is a loss already

    network = play(opened, lambda network: watched(network, 3, 13, {2: role}), horizon=40_000.0)
    assert_one_history(network)
    uids = [event.accepted[2] for event in applied(network).values()]
    left = uids.index(4)
    paid = [event.window for event in events(network, Scored) if event.weights.get(uids[0])]
    assert left > 2 and min(paid) <= left and set(uids[:left]) == {uids[0]} and uids[0] != 4


def test_the_next_hotkey_takes_over_the_uid_that_makes_room_and_nobody_elses(opened):
    roles = dict(enumerate(names.recycled(2, build=1, least=1)))
    limits = Limits(max_uids=4)
    network = play(opened, lambda network: together(network, 4, 4, roles), limits=limits)
    assert_one_history(network)
    uids = {e.node: e.event.uid for e in network.log if isinstance(e.event, Registered)}
    assert {uids[node] for node in ("peer-00", "peer-00.2")} == {0} and uids["peer-02"] == 2 and uids["peer-03"] == 3
    assert {2, 3} <= set.intersection(*(set(event.accepted) for event in applied(network, "peer-02").values()))
    done = steps_done(network)
    assert done["peer-00", 1] == H and sum(done["peer-00.2", w] for w in (2, 3, 4)) > 0
    assert max(done[node, w] for node in uids if node.startswith("peer-00") for w in (2, 3, 4)) == 1


ME, OTHERS = Identity("me", 1), [Identity(f"other-{n}", 1) for n in range(5)]


def seen(window: int, evaluated: set[Identity]) -> WindowEvidence:
    everybody = (ME, *OTHERS)
    losses = Losses((1.0, 1.0), (0.5, 0.5), (0.5, 0.5))
    peers = tuple(PeerEvidence(p, 0, accepted=True, losses=losses if p in evaluated else None) for p in everybody)
    return WindowEvidence("run", window, window, 1.0, everybody, (1.0, 1.0), peers)


def test_the_order_of_evaluation_can_be_foretold():
    first, second = {ME, *OTHERS[:2]}, set(OTHERS[2:])
    assert looks_at([], ME, 3)  # a newcomer
    assert looks_at([seen(1, {ME, *OTHERS})], ME, 2)  # time suffices for all
    assert not looks_at([seen(1, first)], ME, 2) and looks_at([seen(1, second)], ME, 2)
    history = [seen(1, first), seen(2, second)]
    assert looks_at(history, ME, 3) and not looks_at(history, ME, 4)
    assert not looks_at([seen(1, set(OTHERS[:3])), seen(2, {ME})], ME, 3)


def test_it_works_where_it_is_looked_at_and_saves_work_elsewhere(opened):
    network = play(
        opened, lambda network: watched(network, 6, 12, {5: when_seen()}), costs=Costs(evaluate=50.0), horizon=40_000.0
    )
    assert_one_history(network)
    uid = next(event.uid for event in events(network, Registered, "peer-05"))
    done = steps_done(network)
    evaluated = {event.window for event in events(network, Scored) if "gap" in event.scores.get(uid, {})}
    worked = {window for window in range(1, 13) if done["peer-05", window] == H}
    lazy_windows = {window for window in range(1, 13) if done["peer-05", window] == 1}
    assert lazy_windows and worked and len(evaluated & lazy_windows) < len(lazy_windows) / 2
