"""The state of a local chain as a function of a block: metagraph, who is replaced, and the epoch at each tempo.

Everything here reads rows of blocks <= the block asked about and nothing else, so that the answer is the same
whichever process asks, and whenever. Letters: N neurons, indexed by uid.
"""

import sqlite3

import numpy as np

from templar_jax.chain import yuma
from templar_jax.chain.ledger import Limits, Rules
from templar_jax.chain.port import Metagraph, Neuron

# Weights count from the block of registration on: a hotkey that comes back after it was replaced starts afresh.
NEURONS = """
SELECT uid, hotkey, registered,
       coalesce((SELECT stake FROM stakes s WHERE s.hotkey = n.hotkey AND s.block <= :block
                 ORDER BY s.block DESC LIMIT 1), 0.0),
       coalesce((SELECT block FROM weights w WHERE w.hotkey = n.hotkey AND w.block <= :block
                 AND w.block >= n.registered ORDER BY w.block DESC LIMIT 1), 0)
FROM neurons n WHERE registered <= :block AND (replaced IS NULL OR replaced > :block) ORDER BY uid
"""
LATEST_EPOCH = "SELECT block, incentive, dividends, emission FROM epochs WHERE block <= ? ORDER BY block DESC LIMIT 1"
NEWER_ROWS = """
SELECT EXISTS (SELECT 1 FROM neurons WHERE registered > :block) OR EXISTS (SELECT 1 FROM stakes WHERE block > :block)
    OR EXISTS (SELECT 1 FROM weights WHERE block > :block)
"""


def metagraph(db: sqlite3.Connection, limits: Limits, block: int) -> Metagraph:
    """State at the end of `block`. Permits follow stake at once (the real chain refreshes them each tempo)."""
    rows = db.execute(NEURONS, {"block": block}).fetchall()
    ranked = sorted((row for row in rows if row[3] > 0.0), key=lambda row: (-row[3], row[0]))
    permits = {row[0] for row in ranked[: limits.max_validators]}
    latest = db.execute(LATEST_EPOCH, (block,)).fetchone()
    paid_at = latest[0] if latest else -1
    shares = [np.frombuffer(column).tolist() for column in latest[1:]] if latest else [[], [], []]
    neurons = []
    for uid, hotkey, registered, stake, last_update in rows:
        paid = registered <= paid_at and uid < len(shares[0])  # else it took over the uid after the last payment
        incentive, dividends, emission = (share[uid] if paid else 0.0 for share in shares)
        neurons.append(
            Neuron(uid, hotkey, registered, stake, uid in permits, last_update, incentive, dividends, emission)
        )
    return Metagraph(block, tuple(neurons))


def replaceable(neurons: tuple[Neuron, ...], limits: Limits, block: int) -> Neuron | None:
    """Who makes room for a registration in `block` of a full subnet: the lowest paid, those past immunity first.

    Ties: the earliest registration, then the lowest uid. None if all were registered in this very block.
    """
    older = [neuron for neuron in neurons if neuron.registered < block]
    key = lambda n: (block - n.registered < limits.immunity, n.emission, n.registered, n.uid)  # noqa: E731
    return min(older, key=key, default=None)


def run_epochs(db: sqlite3.Connection, rules: Rules, first: int, last: int) -> None:
    """Every epoch (at each multiple of the tempo) in blocks first..last, in order. Inside a transaction."""
    tempo = rules.tempo
    block = max(1, -(-first // tempo)) * tempo
    while block <= last:
        settled_until = _run_epoch(db, rules, block)
        block += tempo
        if settled_until is not None and block <= last:  # a chain that slept for days wakes up in milliseconds
            block = max(block, -(-min(settled_until, last + 1) // tempo) * tempo)


def _run_epoch(db: sqlite3.Connection, rules: Rules, block: int) -> int | None:
    """The epoch at the end of `block`; stored where it differs from the one before.

    Returns: None, or the first block at which an epoch can differ from this one as things stand (it is a fixed point:
    same bonds, same shares, nothing that changes with time before that block).
    """
    limits = rules.limits
    neurons = metagraph(db, limits, block).neurons
    n = max((neuron.uid for neuron in neurons), default=-1) + 1
    stake_N, registered_N, moved_N = np.zeros(n), np.full(n, block), np.full(n, -1)
    permit_N = np.zeros(n, bool)
    for neuron in neurons:
        stake_N[neuron.uid], registered_N[neuron.uid] = neuron.stake, neuron.registered
        permit_N[neuron.uid] = neuron.permit
        moved_N[neuron.uid] = max(neuron.registered, neuron.last_update)
    quiet_from_N = moved_N + limits.activity_cutoff + 1  # first block at which a neuron is inactive
    active_N = quiet_from_N > block
    recent_N = registered_N >= block - rules.tempo
    before_NN = _load_bonds(db, n)
    kept_NN = np.where(recent_N[:, None] | recent_N[None, :], 0.0, before_NN)
    result = yuma.epoch(
        stake_N,
        _load_weights(db, neurons, registered_N),
        kept_NN,
        permit_N=permit_N,
        active_N=active_N,
        emission=limits.emission * rules.tempo,
    )
    shares = (result.incentive_N.tobytes(), result.dividends_N.tobytes(), result.emission_N.tobytes())
    latest = db.execute(LATEST_EPOCH, (block,)).fetchone()
    if latest is None or latest[1:] != shares:
        db.execute("INSERT INTO epochs VALUES (?, ?, ?, ?)", (block, *shares))
    elif np.array_equal(result.bonds_NN, before_NN) and not recent_N.any():
        if not db.execute(NEWER_ROWS, {"block": block}).fetchone()[0]:
            return int(min(quiet_from_N[active_N], default=np.iinfo(np.int64).max))
    db.execute("UPDATE bonds SET bonds = ?", (result.bonds_NN.tobytes(),))
    return None


def _load_bonds(db: sqlite3.Connection, n: int) -> np.ndarray:
    """float64 [n, n] of the epoch before, zero where the subnet has grown since."""
    stored = np.frombuffer(db.execute("SELECT bonds FROM bonds").fetchone()[0])
    size = int(round(len(stored) ** 0.5))
    bonds_NN = np.zeros((max(n, size), max(n, size)))
    bonds_NN[:size, :size] = stored.reshape(size, size)
    return bonds_NN[:n, :n]


def _load_weights(db: sqlite3.Connection, neurons: tuple[Neuron, ...], registered_N: np.ndarray) -> np.ndarray:
    """float64 [N, N]: the newest weights of each neuron, without those set before the target registered."""
    weights_NN = np.zeros((len(registered_N), len(registered_N)))
    for neuron in neurons:
        if neuron.last_update:
            for uid, weight in weights_of(db, neuron).items():
                weights_NN[neuron.uid, uid] = weight
            weights_NN[neuron.uid, registered_N >= neuron.last_update] = 0.0
    return weights_NN


def weights_of(db: sqlite3.Connection, neuron: Neuron) -> dict[int, int]:
    """The weights that a neuron set at its `last_update`."""
    query = "SELECT weights FROM weights WHERE hotkey = ? AND block = ?"
    rows = unpack_weights(db.execute(query, (neuron.hotkey, neuron.last_update)).fetchone()[0])
    return dict(rows.tolist())


def pack_weights(weights: dict[int, int]) -> bytes:
    return np.array(sorted(weights.items()), "<u2").tobytes()


def unpack_weights(data: bytes) -> np.ndarray:
    """int64 [n, 2]: uid, weight."""
    return np.frombuffer(data, "<u2").reshape(-1, 2).astype(np.int64)


def pack_fields(fields: tuple[bytes, ...]) -> bytes:
    return b"".join(bytes([len(field)]) + field for field in fields)


def unpack_fields(data: bytes) -> tuple[bytes, ...]:
    fields, at = [], 0
    while at < len(data):
        fields.append(data[at + 1 : at + 1 + data[at]])
        at += 1 + data[at]
    return tuple(fields)
