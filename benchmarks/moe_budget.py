"""Should an expert's budget follow its use? Energy that each rule would keep of one miner's pseudo-gradients.

    python scripts/bench.py moe_budget --json FILE

After each window of one miner the largest values of the experts' tiles, error feedback included, are chosen by four
rules with the same number of values a layer. Kept energy: sum of squares of the chosen over that of all. What is
chosen by `fixed` leaves the error feedback, as compress.expert_k does it.

Letters: L layers, E experts, T tiles of an expert's matrix, N elements of a tile.
"""

import argparse
from typing import Any

import jax
import numpy as np

from benchmarks.moe import CONFIG as CONFIG
from benchmarks.moe import contenders, machine
from templar_jax.compress.tiles import to_tiles
from templar_jax.model.llama import Llama
from templar_jax.model.placement import ALONE
from templar_jax.node.open import pin_data
from templar_jax.train.state import Params, init_params

MATRICES = ("layers/expert_gate", "layers/expert_up", "layers/expert_down")


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--windows", type=int, default=5, help="(default 5)")


def budgets(use_LE: np.ndarray, k: int) -> dict[str, np.ndarray]:
    """int [L, E] values a tile by each rule, k * E a layer. use: 1 is a fair share."""
    fixed = np.full(use_LE.shape, k)
    by_use = np.floor(k * use_LE).astype(int)
    skip = np.where(np.argsort(np.argsort(-use_LE, -1), -1) < use_LE.shape[1] // 2, 2 * k, 0)
    for of_layer, use_E in zip(by_use, use_LE, strict=True):
        missing = int(k * use_E.size - of_layer.sum())
        of_layer[np.argsort(of_layer - k * use_E)[:missing]] += 1
    return {"fixed": fixed, "by use": by_use, "nothing for the less used half": skip}


def kept(energy_LETN: np.ndarray, k_LE: np.ndarray) -> float:
    """Share of the energy in the k largest values of each tile; the energies descend along N."""
    chosen = np.arange(energy_LETN.shape[-1]) < k_LE[:, :, None, None]
    return float((energy_LETN * chosen).sum() / energy_LETN.sum())


def jointly(energy_LETN: np.ndarray, k: int) -> float:
    """The same for k * E values of the tiles in one place of all experts, wherever they are largest."""
    layers, experts, tiles, _ = energy_LETN.shape
    joint = -np.sort(-energy_LETN.transpose(0, 2, 1, 3).reshape(layers, tiles, -1), -1)
    return float(joint[..., : k * experts].sum() / energy_LETN.sum())


def run(args: argparse.Namespace) -> dict[str, Any]:
    pinned, pages = pin_data(args.run, args.node, lambda text: print(text, flush=True))
    config = contenders(pinned)["moe, equal bytes"]
    mesh, inner, compressor, *_ = machine(config, args.node.compute)

    def load(params: Params, ids: np.ndarray) -> jax.Array:
        stats = Llama(params, config.model, ALONE).hidden_and_stats(jax.numpy.asarray(ids))[1]
        assert stats is not None  # a mixture has routers
        return stats.load

    use_of = jax.jit(load)
    theta = init_params(config, mesh)
    opt, feedback, figures = inner.init(), compressor.init(), {}
    order = np.random.default_rng(0).permutation(pages.manifest.n_pages)
    k, size, need = config.compress.expert_k, config.inner.batch, config.pages_per_window
    for window in range(args.windows):
        sequences = np.asarray(pages.read(order[window * need : (window + 1) * need].tolist()))
        sequences = sequences.reshape(-1, config.data.sequence).astype(np.int32)
        params = jax.tree.map(lambda x: x.copy(), theta)
        for step in range(config.inner.steps):
            batch = sequences[step * size : (step + 1) * size]
            params, opt, _ = inner.step(params, opt, batch, window * config.inner.steps + step)
        use_LE = np.asarray(use_of(params, sequences[: 8 * size])) * config.model.experts
        shares: dict[str, list[float]] = {}
        for name in MATRICES:
            old, new, left = (np.asarray(tree[name]) for tree in (theta, params, feedback))
            pending = old - new + np.float32(config.compress.feedback_decay) * left
            tiles = np.asarray(to_tiles(jax.numpy.asarray(pending), (64, 64), 2))
            energy_LETN = -np.sort(-np.square(tiles.reshape(*tiles.shape[:2], -1, 4096)), -1)
            for rule, k_LE in budgets(use_LE, k).items():
                shares.setdefault(rule, []).append(kept(energy_LETN, k_LE))
            shares.setdefault("by magnitude, over all experts", []).append(jointly(energy_LETN, k))
        feedback, _ = compressor.update(feedback, theta, params)
        theta = params
        figures[f"use, window {window}"] = [round(float(use_LE.min()), 2), round(float(use_LE.max()), 2)]
        for rule, values in shares.items():
            figures[f"kept {rule}, window {window}"] = round(float(np.mean(values)), 4)
    return figures
