"""Who contributes next where more want to than the outer step takes, and who is evaluated first."""

import hashlib
from collections.abc import Iterable

from templar_jax.incentive import default
from templar_jax.incentive.config import IncentiveConfig
from templar_jax.incentive.default import State
from templar_jax.incentive.evidence import Identity


def draw(seed: bytes, peer: Identity) -> bytes:
    """A number for each peer that nobody can choose: sha256(seed | hotkey | block of registration)."""
    return hashlib.sha256(seed + peer.hotkey.encode() + peer.registered.to_bytes(8, "little")).digest()


def contributors(
    config: IncentiveConfig, state: State, candidates: Iterable[Identity], count: int, seed: bytes
) -> tuple[Identity, ...]:
    """At most `count` of the candidates, ascending by identity.

    Most places go to the highest lower confidence bounds; `explore_share` of them to those evaluated longest
    ago, newcomers first, so that everybody is seen. Ties are drawn by `seed` (a block hash).
    """
    known = {one.peer: one for one in state.standings}
    pool = sorted(set(candidates), key=lambda peer: draw(seed, peer))
    if len(pool) <= count:
        return tuple(sorted(pool))
    explored = min(count, -int(-config.explore_share * count // 1))
    best = sorted(pool, key=lambda peer: -default.selection_bound(config, known[peer]) if peer in known else 0.0)
    chosen = best[: count - explored]
    return tuple(sorted(chosen + for_evaluation(state, (peer for peer in pool if peer not in chosen), seed)[:explored]))


def for_evaluation(state: State, candidates: Iterable[Identity], seed: bytes) -> list[Identity]:
    """The candidates in the order in which to evaluate them while time lasts: longest unseen first, ties drawn."""
    last = {one.peer: one.evaluated for one in state.standings}
    return sorted(set(candidates), key=lambda peer: (last.get(peer, -1), draw(seed, peer)))
