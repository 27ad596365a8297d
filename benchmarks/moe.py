"""Dense against mixtures of experts at equal active FLOPs and equal bytes: a few windows of several peers, for real.

    python scripts/bench.py moe --seeds 3 --runs docs/benchmarks/moe.json --picture docs/moe.png

Every run is inner steps, compression, codec, outer step and held-out loss as a network does them, without the network.
A run that stands in the file is not repeated, so that an interrupted study goes on; a study with other settings
needs another file. Differences are within a seed, which fixes theta_0 and who trains on what.
"""

import argparse
import dataclasses
import functools
import json
from pathlib import Path
from statistics import mean
from typing import Any

import jax
import numpy as np

from benchmarks.study.bounds import interval
from templar_jax.compress import codec
from templar_jax.compress.feedback import make_compressor
from templar_jax.config import ComputeConfig, MeshConfig, ModelConfig, NodeConfig, RunConfig
from templar_jax.data.pages import Pages
from templar_jax.model.flops import active_parameters, forward_flops_per_token, parameters
from templar_jax.node.open import pin_data
from templar_jax.sharding import make_mesh
from templar_jax.train.evaluate import make_evaluate
from templar_jax.train.inner import make_inner
from templar_jax.train.outer import make_outer
from templar_jax.train.state import init_params

CONFIG = str(Path(__file__).with_suffix(".toml"))
HELDOUT = 256  # sequences


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seeds", type=int, default=3, help="runs of each model (default 3)")
    parser.add_argument("--windows", type=int, default=8, help="of each run (default 8)")
    parser.add_argument("--peers", type=int, default=2, help="of each window (default 2)")
    parser.add_argument("--picture", type=Path, metavar="PNG", help="draw the held-out losses there")
    parser.add_argument("--runs", type=Path, default=Path("moe_runs.json"), help="file of the runs, added to")


def contenders(run: RunConfig) -> dict[str, RunConfig]:
    """The dense run, and mixtures of the same active FLOPs; at equal bytes experts keep fewer values a tile."""
    m = run.model
    mixture = dataclasses.replace(m, ffn_dim=0, experts=8, experts_per_token=2, expert_ffn_dim=m.ffn_dim // 2)
    return {
        "dense": run,
        "moe, equal bytes": equal_bytes(run, mixture),
        "moe, equal k": dataclasses.replace(run, model=mixture),
    }


def equal_bytes(run: RunConfig, model: ModelConfig) -> RunConfig:
    """The run with another model, and the values kept of an expert's tile for which contributions are as large."""

    def of(k: int) -> RunConfig:
        return dataclasses.replace(run, model=model, compress=dataclasses.replace(run.compress, expert_k=k))

    target = codec.expected_bytes(run)
    return of(min(range(1, run.compress.k), key=lambda k: abs(codec.expected_bytes(of(k)) - target)))


@functools.cache
def machine(run: RunConfig, compute: ComputeConfig) -> tuple:
    """What computes a run, compiled once for all seeds."""
    mesh = make_mesh(MeshConfig(fsdp=1), jax.local_devices()[:1])
    inner, outer = make_inner(run, compute, mesh), make_outer(run, mesh)
    return mesh, inner, make_compressor(run, mesh), outer, make_evaluate(run, compute, mesh)


def one(run: RunConfig, node: NodeConfig, pages: Pages, seed: int, windows: int, peers: int) -> dict[str, Any]:
    """{"losses": nats per token on held-out text after each window, "bytes": of a mean contribution}."""
    mesh, inner, compressor, outer, evaluate = machine(run, node.compute)
    heldout, _ = pages.read_heldout(HELDOUT)
    theta = init_params(dataclasses.replace(run, seed=seed), mesh)
    opts, feedbacks = [inner.init() for _ in range(peers)], [compressor.init() for _ in range(peers)]
    rng, size, losses, lengths = np.random.default_rng(seed), run.inner.batch, [], []
    order = rng.permutation(pages.manifest.n_pages)
    for window in range(windows):
        sent = {}
        for peer in range(peers):
            first = (window * peers + peer) * run.pages_per_window + np.arange(run.pages_per_window)
            sequences = np.asarray(pages.read(order[first % len(order)].tolist())).reshape(-1, run.data.sequence)
            sequences = rng.permutation(sequences).astype(np.int32)
            params = jax.tree.map(lambda x: x.copy(), theta)
            for step in range(run.inner.steps):
                batch = sequences[step * size : (step + 1) * size]
                index = window * run.inner.steps + step
                params, opts[peer], _ = inner.step(params, opts[peer], batch, index)
            feedbacks[peer], packed = compressor.update(feedbacks[peer], theta, params)
            data = codec.encode(run, packed)
            lengths.append(len(data))
            sent[peer] = codec.decode(run, data)
        theta, _ = outer.apply(theta, {}, sent)
        losses.append(float(np.mean(evaluate(theta, heldout))) / (run.data.sequence - 1))
    return {"losses": losses, "bytes": mean(lengths)}


def run(args: argparse.Namespace) -> dict[str, Any]:
    pinned, pages = pin_data(args.run, args.node, lambda text: print(text, flush=True))
    setting = {"run": pinned.run_id, "windows": args.windows, "peers": args.peers}
    kept = json.loads(args.runs.read_text()) if args.runs.exists() else {"setting": setting, "runs": []}
    if kept["setting"] != setting:
        raise SystemExit(f"{args.runs} holds runs of another setting: choose another file with --runs")
    runs = {(each["name"], each["seed"]): each for each in kept["runs"]}
    for seed in range(args.seeds):
        for name, config in contenders(pinned).items():
            if (name, seed) in runs:
                continue
            found = one(config, args.node, pages, seed, args.windows, args.peers)
            runs[name, seed] = {"name": name, "seed": seed, **found}
            args.runs.parent.mkdir(parents=True, exist_ok=True)
            args.runs.write_text(json.dumps({"setting": setting, "runs": list(runs.values())}, indent=1) + "\n")
            print(f"seed {seed}, {name}: {found['losses'][-1]:.4f} nats, {found['bytes']:.0f} bytes", flush=True)
    if args.picture:
        draw(contenders(pinned), runs, args.seeds, args.picture)
    return summary(pinned, runs, args.seeds)


def draw(configs: dict[str, RunConfig], runs: dict, seeds: int, out: Path) -> None:
    """Writes a PNG: held-out loss after each window, one line a run."""
    import matplotlib.figure  # slow to import, and only needed here

    figure = matplotlib.figure.Figure(figsize=(8, 4.5), dpi=110, layout="constrained")
    axes = figure.subplots()
    for number, name in enumerate(configs):
        for seed in range(seeds):
            losses = runs[name, seed]["losses"]
            label = f"{name} ({runs[name, 0]['bytes'] / 1000:.1f} kB a contribution)" if seed == 0 else None
            axes.plot(range(1, len(losses) + 1), losses, color=f"C{number}", alpha=0.8, linewidth=1.2, label=label)
    axes.set_xlabel("window")
    axes.set_ylabel("held-out loss, nats per byte")
    axes.grid(alpha=0.3)
    axes.legend()
    draft = out.with_suffix(".part.png")
    figure.savefig(draft, metadata={"Software": None})
    draft.replace(out)


def summary(pinned: RunConfig, runs: dict, seeds: int) -> dict[str, Any]:
    figures: dict[str, Any] = {"seeds": seeds}
    final = {key: each["losses"][-1] for key, each in runs.items()}
    for name, config in contenders(pinned).items():
        figures[f"loss, {name}"] = mean(final[name, seed] for seed in range(seeds))
        figures[f"bytes, {name}"] = mean(runs[name, seed]["bytes"] for seed in range(seeds))
        figures[f"forward FLOPs per token, {name}"] = forward_flops_per_token(config.model, config.data.sequence)
        figures[f"parameters, {name}"] = parameters(config.model)
        figures[f"active parameters, {name}"] = active_parameters(config.model)
        figures[f"expert_k, {name}"] = config.compress.expert_k
        if name != "dense":
            less = [final["dense", seed] - final[name, seed] for seed in range(seeds)]
            figures[f"nats below dense, {name}"] = mean(less)
            figures[f"95 % interval, {name}"] = list(interval(less))[1:]
    return figures
