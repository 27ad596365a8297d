"""Evidence and state as bytes: exact, canonical, the same whatever the order, and refused when anything is off."""

import dataclasses
import random

import hypothesis
import pytest
from hypothesis import strategies as st
from incentive_story import HALF, HONEST, STALE, evidence

from templar_jax.errors import DataError
from templar_jax.incentive import canonical
from templar_jax.incentive import evidence as records
from templar_jax.incentive.evidence import WORST_NATS, WindowEvidence
from templar_jax.incentive.rules import rules

PLAYERS = [HONEST] * 6 + [HALF, HALF, STALE, dataclasses.replace(HONEST, violates=(3,), lives=4)]
BOTH = pytest.mark.parametrize("name", ["default", "v213"])


@pytest.fixture(scope="module")
def story() -> list[WindowEvidence]:
    return [evidence(PLAYERS, window, seed=3) for window in range(8)]


def shuffled(seen: WindowEvidence, seed: int) -> WindowEvidence:
    rng = random.Random(seed)
    mixed = {
        name: tuple(rng.sample(getattr(seen, name), len(getattr(seen, name))))
        for name in ("registered", "peers", "pairs")
    }
    return dataclasses.replace(seen, **mixed)


@BOTH
def test_replay_gives_the_same_bits(name, story):
    """Live, from recorded lines, and resumed from a saved state in every window."""
    chosen = rules(name)
    live = replayed = chosen.init()
    for seen in story:
        live, scores = chosen.step(live, seen)
        resumed = chosen.decode(chosen.encode(replayed))
        assert resumed == replayed
        replayed, again = chosen.step(resumed, records.decode(records.encode(seen)))
        assert chosen.encode(replayed) == chosen.encode(live) and again == scores
        assert [w.hex() for w in chosen.weights(replayed).values()] == [w.hex() for w in chosen.weights(live).values()]


@BOTH
def test_order_of_peers_does_not_matter(name, story):
    chosen = rules(name)
    one = other = chosen.init()
    for seen in story:
        mixed = shuffled(seen, seed=seen.window)
        assert records.digest(mixed) == records.digest(seen)
        one, _ = chosen.step(one, seen)
        other, _ = chosen.step(other, mixed)
    assert chosen.encode(one) == chosen.encode(other)
    assert list(chosen.weights(one).items()) == list(chosen.weights(other).items())


@BOTH
def test_windows_go_forward_only(name, story):
    state, _ = rules(name).step(rules(name).init(), story[1])
    for seen in story[:2]:
        with pytest.raises(DataError, match="ascending"):
            rules(name).step(state, seen)


@BOTH
def test_states_of_other_rules_are_refused(name, story):
    other = rules("v213" if name == "default" else "default")
    state, _ = other.step(other.init(), story[0])
    for foreign in (state, other.init()):
        with pytest.raises(DataError):
            rules(name).decode(other.encode(foreign))


@hypothesis.given(st.floats(allow_nan=False, allow_infinity=False))
def test_every_float_survives(value):
    seen = dataclasses.replace(evidence(PLAYERS[:2], 0, 0), beta=value)
    assert records.decode(records.encode(seen)).beta.hex() == value.hex()


def test_numbers_that_are_not_finite():
    assert records.nats([1.5, float("nan"), float("inf"), -float("inf")]) == (1.5, WORST_NATS, WORST_NATS, WORST_NATS)
    with pytest.raises(DataError, match="finite"):
        records.encode(dataclasses.replace(evidence(PLAYERS[:2], 0, 0), beta=float("nan")))


@hypothesis.settings(max_examples=200)
@hypothesis.given(st.data())
def test_mutated_lines_are_refused_or_canonical(data):
    """Any line either decodes to something that encodes to it, or raises DataError; nothing else ever."""
    line = bytearray(records.encode(evidence(PLAYERS[:1], 0, 0))[:600])  # cut and whole lines, bytes changed
    whole = bytearray(records.encode(dataclasses.replace(evidence(PLAYERS[:3], 4, 0), peers=(), pairs=())))
    target = data.draw(st.sampled_from([line, whole]))
    for _ in range(data.draw(st.integers(0, 3))):
        target[data.draw(st.integers(0, len(target) - 1))] = data.draw(st.integers(0, 255))
    try:
        decoded = records.decode(bytes(target))
    except DataError:
        return
    assert records.encode(decoded) == target


@pytest.mark.parametrize(
    "line",
    [b"", b"null\n", b"[]\n", b"{}\n", b"[" * 100_000, b"\xff\n", b'{"run_id":1e999}\n', b"1" * 5000 + b"\n", b"NaN\n"],
)
def test_rubbish_is_refused(line):
    for kind in (WindowEvidence, type(rules("default").init())):
        with pytest.raises(DataError):
            canonical.decode(kind, line)


def test_contradictions_are_refused():
    seen = evidence(PLAYERS[:3], 0, 0)
    first = seen.peers[0]
    assert first.losses
    short = dataclasses.replace(first.losses, unassigned_after=(1.0,))
    for peers, registered in (
        ((first, first), seen.registered),
        ((first,), ()),
        ((dataclasses.replace(first, violations=("late",)),), seen.registered),
        ((dataclasses.replace(first, accepted=False),), seen.registered),
        ((dataclasses.replace(first, losses=short),), seen.registered),
    ):
        with pytest.raises(DataError):
            records.encode(dataclasses.replace(seen, peers=peers, registered=registered))
