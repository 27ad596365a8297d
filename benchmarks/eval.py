"""A validator's evaluation of its peers, beside the plain way: a changed copy of the model, four loss calls a peer.

Both see the same contributions and sequences in the same micro-batches, and their losses are checked to agree.
"""

import argparse
import os
from statistics import median

import jax
import numpy as np

from benchmarks.compress import drift
from benchmarks.turns import ratio, take_turns
from templar_jax.compress.aggregate import clip_factors
from templar_jax.compress.feedback import make_compressor
from templar_jax.config import ComputeConfig, MeshConfig, NodeConfig, RunConfig
from templar_jax.model.flops import parameters
from templar_jax.sharding import make_mesh, shardings
from templar_jax.train.evaluate import make_evaluate
from templar_jax.train.evaluate_peer import make_evaluate_peer
from templar_jax.train.outer import make_outer
from templar_jax.train.state import Params, init_params

BETA = 0.2


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rounds", type=int, default=3, help="turns of each contender (default 3)")
    parser.add_argument("--peers", type=int, default=4, help="contributions of a turn (default 4)")


class Validator:
    """What both contenders evaluate: one window's contributions, and sequences a side."""

    def __init__(self, run: RunConfig, compute: ComputeConfig, sequences: int, peers: int) -> None:
        mesh = make_mesh(MeshConfig(), jax.local_devices())
        self.params, self.size = init_params(run, mesh), compute.micro_batch or run.inner.batch
        compressor, where = make_compressor(run, mesh), shardings(run, mesh)
        self.contributions = {}
        for uid in range(peers):
            end = {name: jax.device_put(self.params[name] - x, where[name]) for name, x in drift(run, uid).items()}
            self.contributions[uid] = compressor.update(compressor.init(), self.params, end)[1]
        self.factors = clip_factors(run, self.contributions)
        rng, shape = np.random.default_rng(0), (sequences, run.data.sequence)
        self.assigned, self.others = (rng.integers(0, run.model.vocab, shape, dtype=np.int32) for _ in range(2))
        self.peers, self.outer = make_evaluate_peer(run, compute, mesh), make_outer(run, mesh)
        self.losses = make_evaluate(run, compute, mesh)

    def ours(self) -> np.ndarray:
        """f32 [peers, 4, sequences]: before and after, on either side."""
        before, found = self.peers.before(self.params, self.others), []
        for uid, one in self.contributions.items():
            self.params, got = self.peers.peer(self.params, one, self.factors[uid], BETA, self.assigned, self.others)
            found.append([got.assigned_before, got.assigned_after, before, got.unassigned_after])
        return np.array(found)

    def plain(self) -> np.ndarray:
        """The same by four calls a peer and a second model."""
        found = []
        for uid, one in self.contributions.items():
            changed = self.outer.trial(self.params, one, self.factors[uid], BETA)
            sides = ((self.params, self.assigned), (changed, self.assigned))
            sides += ((self.params, self.others), (changed, self.others))
            found.append([self._all(params, tokens) for params, tokens in sides])
        return np.array(found)

    def _all(self, params: Params, tokens: np.ndarray) -> np.ndarray:
        parts = [self.losses(params, tokens[at : at + self.size]) for at in range(0, len(tokens), self.size)]
        return np.concatenate([np.asarray(part) for part in parts])


def run(args: argparse.Namespace) -> dict[str, float | int | str]:
    """Figures: peers evaluated a second, and the ratio over four loss calls a peer; see scripts/bench.py."""
    config: RunConfig = args.run
    node: NodeConfig = args.node
    jax.config.update("jax_num_cpu_devices", node.mesh.cpu_devices or os.cpu_count() or 1)  # before the first use
    sequences = node.score_sequences
    validator = Validator(config, node.compute, sequences, args.peers)
    np.testing.assert_allclose(validator.ours(), validator.plain(), rtol=1e-5)
    seconds = take_turns({"ours": validator.ours, "plain": validator.plain}, args.rounds)
    return {
        "parameters": parameters(config.model),
        "peers": args.peers,
        "sequences": sequences,
        "devices": len(jax.local_devices()),
        "platform": jax.local_devices()[0].platform,
        "peers_per_s": args.peers / median(seconds["ours"]),
        "plain_peers_per_s": args.peers / median(seconds["plain"]),
        "ratio_eval": ratio(seconds["plain"], seconds["ours"]),
    }
