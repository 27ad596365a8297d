"""The loss of step 0: the same on every honest machine, and not to be guessed; in a network, and by itself."""

import asyncio
import dataclasses
import math
from collections.abc import Callable

import jax
import numpy as np
import pytest
from models import SMALL, mesh_of, rough_params, small_run
from node_network import assert_one_history, events, open_run, play

from templar_jax.config import ComputeConfig
from templar_jax.incentive import evidence as evidences
from templar_jax.incentive.config import IncentiveConfig
from templar_jax.incentive.evidence import WORST_NATS
from templar_jax.node.craft import Craft, Trained, claim_of, seal_as
from templar_jax.node.receipt import difference
from templar_jax.node.seals import SavedSeal
from templar_jax.node.world import Node
from templar_jax.sharding import shardings
from templar_jax.simulate.network import Network, Role
from templar_jax.telemetry.events import Registered, Scored, Warned
from templar_jax.train.evaluate_peer import make_evaluate_peer
from templar_jax.train.inner import make_inner

WINDOWS = 4
TOLERANCE = IncentiveConfig().step0_tolerance


@pytest.fixture(scope="module")
def trained():
    """(run, parameters on the host after 80 steps, sixteen batches)."""
    run = small_run(SMALL, lr=3e-3, warmup=10)
    inner = make_inner(run, ComputeConfig(), mesh_of(1))
    rng = np.random.default_rng(0)
    chain = rng.permutation(run.model.vocab)

    def batch() -> np.ndarray:
        """Mostly a fixed successor of each token, so that there is something to be sure of."""
        rows = [rng.integers(0, run.model.vocab, 8)]
        for _ in range(63):
            rows.append(np.where(rng.random(8) < 0.7, chain[rows[-1]], rng.integers(0, run.model.vocab, 8)))
        return np.stack(rows, 1).astype(np.int32)

    params = rough_params(run)
    opt = inner.init()
    for step in range(80):
        params, opt, _ = inner.step(params, opt, batch(), step)
    return run, {name: np.asarray(x) for name, x in params.items()}, [batch() for _ in range(16)]


@pytest.mark.parametrize(
    ("mesh", "compute"),
    [
        ((1, 1), ComputeConfig()),
        ((1, 1), ComputeConfig(dtype="bfloat16")),
        ((2, 1), ComputeConfig(dtype="bfloat16", attention="xla", loss_chunk=16)),
    ],
    ids=["f32", "bf16", "bf16-mesh"],
)
def test_honest_machines_agree_far_within_the_tolerance(trained, mesh, compute):
    run, host, batches = trained
    inner, evaluate = make_inner(run, compute, mesh_of(*mesh)), make_evaluate_peer(run, ComputeConfig(), mesh_of(1))
    at = shardings(run, mesh_of(*mesh))
    mine = {name: jax.device_put(x, at[name]) for name, x in host.items()}
    opt = inner.init()
    off, own = [], []
    for batch in batches[: 16 if mesh == (1, 1) else 6]:
        copied = jax.tree.map(lambda x: x.copy(), (mine, opt))
        claimed = float(inner.step(*copied, batch, 0)[2].loss)
        own.append(float(evaluate.before({n: jax.device_put(x) for n, x in host.items()}, batch).sum()) / 8 / 63)
        found = difference(claimed, own[-1])
        assert found is not None
        off.append(abs(found))
    assert max(off) < (TOLERANCE / 4 if compute.dtype == "bfloat16" else 1e-5), max(off)
    assert np.std(own) / np.mean(own) > 3 * TOLERANCE  # another batch's loss is another number
    assert np.mean(own) < 0.9 * math.log(run.model.vocab)  # of a model that has learnt something


def test_differences_are_recorded_whatever_is_claimed():
    assert difference(2.02, 2.0) == pytest.approx(0.01) and difference(1.0, 2.0) == -0.5
    assert difference(math.nan, 2.0) == difference(math.inf, 2.0) == WORST_NATS
    assert difference(-3e38, 2.0) == -WORST_NATS
    assert difference(2.0, math.nan) is None and difference(2.0, 0.0) is None


def claiming(change: Callable[[float], float]) -> Role:
    """Works, and signs another loss of step 0."""

    async def seal(node: Node, window: int, trained: Trained, plaintext: bytes) -> SavedSeal:
        claim = await claim_of(node, window, trained.steps)
        return await seal_as(node, dataclasses.replace(claim, first_loss=change(claim.first_loss)), plaintext)

    return Role(craft=Craft(seal=seal))


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Network:
    opened = open_run(tmp_path_factory.mktemp("receipt"))
    roles = {2: claiming(lambda loss: 1.05 * loss), 3: claiming(lambda loss: math.nan)}

    async def scenario(network: Network) -> None:
        jobs = [network.node(f"peer-{n}", WINDOWS, *([roles[n]] if n in roles else [])) for n in range(4)]
        await asyncio.gather(network.validator("validator-0", WINDOWS), *jobs)

    return play(opened, scenario)


def test_who_claims_another_loss_is_found_and_nobody_else(network):
    assert_one_history(network)
    assert not events(network, Warned)
    uids = [events(network, Registered, f"peer-{n}")[0].uid for n in range(4)]
    for event in events(network, Scored):
        assert {uid for uid, names in event.findings.items() if "step0" in names} == set(uids[2:])
        assert event.evaluated == event.accepted == 4 and not event.violations
    last = events(network, Scored)[-1].weights
    assert max(last[uid] for uid in uids[2:]) < 0.25 * min(last[uid] for uid in uids[:2])


def test_the_evidence_says_how_far_off_it_was(network):
    records = network.disks["validator-0"].records
    for window in records.windows():
        seen = evidences.decode(records.load(window).evidence)
        off = [peer.step0 for peer in sorted(seen.peers, key=lambda peer: peer.uid)]
        uids = [events(network, Registered, f"peer-{n}")[0].uid for n in range(4)]
        found = {peer.uid: peer.step0 for peer in seen.peers}
        assert len(off) == 4 and all(abs(found[uid]) < 1e-5 for uid in uids[:2])
        assert found[uids[2]] == pytest.approx(0.05, abs=1e-4) and found[uids[3]] == WORST_NATS
