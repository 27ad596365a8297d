"""Seconds of a window, before it has run: FLOPs at a stated MFU, the payload over a stated link, the timetable.

Everything is measured in seconds from S(w). What is assumed stands in `Assumed`, with where it comes from.
"""

import math
from dataclasses import dataclass

from templar_jax.compress.codec import expected_bytes
from templar_jax.compress.tiles import tilings
from templar_jax.config import NodeConfig, RunConfig
from templar_jax.model.flops import train_flops_per_token
from templar_jax.plan.gpus import Gpu
from templar_jax.sharding import table
from templar_jax.store.seal import sealed_bytes


@dataclass(frozen=True)
class Assumed:
    """What a plan cannot know. The host's rates are those of this program on one core (docs/decisions.md)."""

    mfu: float = 0.40  # model FLOP/s of training over the GPU's peak
    link: float = 1000e6  # bits/s, up and down alike
    fabric: float = 3200e9  # bits/s of a host to the others of its miner, each way: eight cards of 400 Gb/s
    fabric_share: float = 0.8  # of it that collectives reach
    peers: int = 20  # that contribute, this one included
    encode: float = 1.8e8  # kept values/s of the codec
    decode: float = 1.8e8
    crypto: float = 0.6e9  # bytes/s of sha256 or AES-GCM
    passes: int = 30  # times that compression, or adding one contribution's group, reads the parameters


@dataclass(frozen=True)
class Window:
    """Expected times of a window, seconds, and what goes over the link, bytes."""

    flops_per_step: float  # model FLOPs of one inner step
    step: float  # everything included, nothing overlapped
    streamed: float  # of it: parameters and moments that rest in host memory come and go
    between: float  # of it: weights, gradients and tokens between the hosts of this miner
    payload: int
    upload: float
    download: float
    finish: float  # compress, encode, seal, upload: from the last inner step to the commitment
    apply: float  # open, decode and add all contributions
    start: float  # of training, from S(w)
    room: int  # inner steps that there is time for
    wanted: int  # H
    length: float

    @property
    def steps(self) -> int:
        """Inner steps that a miner runs: at most H."""
        return min(self.wanted, self.room)

    @property
    def utilisation(self) -> float:
        """Share of a window in which inner steps run."""
        return self.steps * self.step / self.length


def host_copies(run: RunConfig, offload: tuple[str, ...]) -> tuple[int, int, int]:
    """f32 copies of the parameters that cross the host's bus: in an inner step, in compression, in an outer step.

    Nothing overlaps with anything. The outer step's include the copy that is trained next.
    """
    trained, start, feedback = (what in offload for what in ("parameters", "snapshot", "feedback"))
    moments = ("moments" in offload) * (2 if run.inner.optimizer == "adamw" else 1)
    momentum = bool(run.outer.momentum)
    return 3 * trained + 2 * moments, trained + start + 2 * feedback, (2 + 2 * momentum + 1) * start + trained


def plan_window(
    run: RunConfig, node: NodeConfig, gpu: Gpu, devices: int, assumed: Assumed, hosts: int = 1, fabric: int = 0
) -> Window:
    """The window of a miner with `devices` such GPUs in all.

    Args:
      hosts: that share the work on contributions among them.
      fabric: bytes that a host receives from the others in an inner step.
    """
    elements = sum(math.prod(param.shape) for param in table(run))
    kept = sum(tiling.kept for tiling in tilings(run).values())
    tokens = run.inner.batch * run.data.sequence
    flops = tokens * train_flops_per_token(run.model, run.data.sequence)
    peak = gpu.flops if node.compute.dtype == "bfloat16" else gpu.flops / 2  # float32 matmuls run as TF32
    over = 4 * elements / devices / gpu.host_link  # seconds for one f32 copy of the parameters
    streamed, compressed, applied = (over * copies for copies in host_copies(run, node.compute.offload))
    between = 8 * fabric / (assumed.fabric * assumed.fabric_share)
    step = flops / (peak * assumed.mfu * devices) + streamed + between

    payload = sealed_bytes(expected_bytes(run))
    others = max(0, min(assumed.peers, run.max_contributors) - 1)
    upload, download = 8 * payload / assumed.link, others * 8 * payload / assumed.link
    touch = assumed.passes * 4 * elements / devices / gpu.bandwidth
    seal = (kept / assumed.encode + 3 * payload / assumed.crypto) / hosts  # hash, encrypt, hash
    finish = touch + compressed + seal + upload
    one = touch / assumed.passes * 3 + (kept / assumed.decode + 3 * payload / assumed.crypto) / hosts
    apply = applied + (others + 1) * one

    w, seconds = run.window, node.network.block_seconds
    finality = node.network.finality
    length = w.blocks * seconds
    opened = max(w.keys * seconds, w.deadline * seconds + download)
    known = max((w.manifest + 1 + finality) * seconds, opened) + apply
    start = max(0.0, known - length)
    training = (w.deadline - w.commit_lead) * seconds - finish - start
    room = max(0, math.floor(training / step))
    return Window(
        flops_per_step=flops,
        step=step,
        streamed=streamed,
        between=between,
        payload=payload,
        upload=upload,
        download=download,
        finish=finish,
        apply=apply,
        start=start,
        room=room,
        wanted=run.inner.steps,
        length=length,
    )
