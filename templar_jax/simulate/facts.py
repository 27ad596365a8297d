"""What happened in a simulation, apart from pay: small, written as JSON, and the same whatever the rules.

With the recorded evidence it is all that figures need, so changed rules are applied to old simulations in seconds.
Nodes are counted by owner: hotkeys that one owner registers one after the other are one peer.
"""

import dataclasses
import json
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np

from templar_jax.simulate.network import Entry, Outcome, digest, owner, roots
from templar_jax.telemetry.events import Alarm, ManifestApplied, Registered, StepDone

HELDOUT_SEQUENCES = 512  # of the final loss, or all where there are fewer


@dataclass(frozen=True)
class Peer:
    """One miner. Lists over windows are in the order of `Facts.windows`."""

    node: str
    role: str
    uids: list[int]  # that it had, in the order in which it got them
    steps: list[int]  # inner steps that it really ran in each window, under whatever hotkey
    accepted: int  # windows in which a manifest took a contribution of its
    refused: dict[str, int]  # reason -> windows


@dataclass(frozen=True)
class Facts:
    """One simulation. Losses are nats per token."""

    events: int
    log_sha256: str
    seconds: float  # virtual
    state_roots_equal: bool
    windows: list[int]
    empty_windows: int  # nobody's contribution was taken
    losses: list[float | None]  # training loss of each window, mean over all steps
    heldout: float | None  # loss of the last global model on held-out text
    validators: dict[str, str]  # name -> role
    alarms: list[tuple[str, int, str, int]]  # (node that raised it, window, kind, uid)
    peers: list[Peer]
    owners: dict[str, str]  # hotkey -> `Peer.node`


def facts(outcome: Outcome, heldout: float | None = None) -> Facts:
    """The facts of a simulation. `heldout`: as from `heldout_loss`."""
    log = outcome.log
    found, verdicts = roots(log), _verdicts(log)
    windows = sorted(found)
    steps, losses = _steps(log), _losses(log)
    nodes = outcome.roles or {entry.node: "honest" for entry in log}
    validators = {name: role for name, role in nodes.items() if name.startswith("validator")}
    peers = []
    for node, role in nodes.items():
        if node in validators:
            continue
        uids = list(dict.fromkeys(uid for _, who, uid in _registered(log) if who == node))
        accepted, refused = _of_peer(log, verdicts, node)
        run = [steps.get((node, window), 0) for window in windows]
        peers.append(Peer(node, role, uids, run, accepted, refused))
    return Facts(
        events=len(log),
        log_sha256=digest(log),
        seconds=log[-1].time if log else 0.0,
        state_roots_equal=bool(found) and all(len(each) == 1 for each in found.values()),
        windows=windows,
        empty_windows=sum(not entry.event.accepted for entry in verdicts.values()),
        losses=[losses.get(window) for window in windows],
        heldout=heldout,
        validators=validators,
        alarms=[(e.node, e.event.window, e.event.kind, e.event.uid) for e in log if isinstance(e.event, Alarm)],
        peers=sorted(peers, key=lambda peer: peer.node),
        owners={hotkey: owner(node) for hotkey, node in outcome.hotkeys.items()},
    )


def heldout_loss(outcome: Outcome) -> float | None:
    """Loss of the last global model of one honest miner on held-out sequences, nats per token."""
    from templar_jax.node.engine import heldout_nats  # needs a device

    for (name, role), node in zip(outcome.roles.items(), outcome.nodes, strict=False):
        if node is not None and role == "honest" and not name.startswith("validator"):
            size, manifest = node.run.inner.batch, node.pages.manifest
            count = min(HELDOUT_SEQUENCES, manifest.n_heldout_pages * manifest.page) // size * size
            if not count:
                return None
            tokens_NS, _ = node.pages.read_heldout(count)
            total = heldout_nats(node.engine, node.state.params, np.asarray(tokens_NS))
            return total / (count * (tokens_NS.shape[1] - 1))
    return None


def encode(known: Facts) -> str:
    return json.dumps(dataclasses.asdict(known))


def decode(text: str) -> Facts:
    fields: dict[str, Any] = json.loads(text)
    peers = [Peer(**peer) for peer in fields.pop("peers")]
    alarms = [tuple(alarm) for alarm in fields.pop("alarms")]
    return Facts(**fields, peers=peers, alarms=alarms)  # type: ignore[arg-type]


def _verdicts(log: tuple[Entry, ...]) -> dict[int, Any]:
    """The first entry about each window's outer step."""
    verdicts: dict[int, Entry] = {}
    for entry in log:
        if isinstance(entry.event, ManifestApplied):
            verdicts.setdefault(entry.event.window, entry)
    return verdicts


def _registered(log: tuple[Entry, ...]) -> list[tuple[float, str, int]]:
    return [(e.time, owner(e.node), e.event.uid) for e in log if isinstance(e.event, Registered)]


def _of_peer(log: tuple[Entry, ...], verdicts: dict[int, Any], node: str) -> tuple[int, dict[str, int]]:
    """In how many windows something of its was taken, and why not in the others; each window once."""
    registered, accepted, refused = _registered(log), 0, Counter[str]()
    for entry in verdicts.values():
        holders = {uid: who for time, who, uid in registered if time <= entry.time}  # the last holder of a uid has it
        mine = {uid for uid, who in holders.items() if who == node}
        reasons = [reason for uid, reason in entry.event.refused if uid in mine]
        if mine & set(entry.event.accepted):
            accepted += 1
        elif reasons:
            refused[reasons[0]] += 1
    return accepted, dict(sorted(refused.items()))


def _steps(log: tuple[Entry, ...]) -> Counter[tuple[str, int]]:
    return Counter((owner(entry.node), entry.event.window) for entry in log if isinstance(entry.event, StepDone))


def _losses(log: tuple[Entry, ...]) -> dict[int, float]:
    by_window: dict[int, list[float]] = {}
    for entry in log:
        if isinstance(entry.event, StepDone):
            by_window.setdefault(entry.event.window, []).append(entry.event.loss)
    return {window: sum(losses) / len(losses) for window, losses in by_window.items()}
