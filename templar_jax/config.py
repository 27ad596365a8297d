"""Configuration of a run and of a node, as frozen dataclasses.

`RunConfig` is what every participant must agree on; its hash is the run's name on the chain (`run_id`).
`NodeConfig` is what each machine decides for itself and is never hashed. Reading TOML files, dotted overrides
and cross-field checks live in `config_load.py`.
"""

import dataclasses
import functools
import hashlib
import json
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class ModelConfig:
    """A Llama-shaped decoder, dense or with a mixture of experts in every layer. All widths in elements."""

    vocab: int = 320  # padded to a multiple of 64
    dim: int = 128
    layers: int = 4
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 32
    ffn_dim: int = 384  # of the network that every token passes; beside experts it is the shared expert, 0: none
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-5
    tied: bool = True  # output head shares the embedding
    experts: int = 0  # routed experts of a layer; 0: a dense model
    experts_per_token: int = 2  # experts that the router picks for a token
    expert_ffn_dim: int = 0  # of one routed expert
    load_balance: float = 0.01  # coefficient of the load-balancing loss
    z_loss: float = 1e-3  # coefficient of the router's z-loss


@dataclass(frozen=True)
class WindowConfig:
    """The timetable of a window: offsets in blocks from the window's first block S(w)."""

    blocks: int = 36  # blocks per window
    seed_lookback: int = 3  # assignment seed = hash of block S(w) - seed_lookback
    deadline: int = 28  # D(w): the sealed object's hash stands on chain at or before this block
    commit_lead: int = 2  # a miner aims to commit this many blocks before D(w)
    keys: int = 30  # K(w): keys are published between D(w) and here
    evaluate: int = 2  # F: evaluation seed = hash of block K(w) + F, which no leader's wait for keys may reach
    manifest: int = 31  # M(w): the leader of rank 0 may commit its manifest from here
    leader_slot: int = 3  # g: width of each leader's time slot
    leaders: int = 3  # n: number of ranks that get a slot; then the window is empty


@dataclass(frozen=True)
class InnerConfig:
    """A miner's own optimiser: what it does with its pages before it compresses."""

    steps: int = 60  # H: at most so many inner steps a window
    batch: int = 16  # sequences of one inner step
    optimizer: Literal["adamw", "muon"] = "adamw"
    lr: float = 1e-3
    warmup: int = 60  # inner steps of linear warm-up
    decay_steps: int = 20_000  # inner step at which the cosine ends
    min_lr_ratio: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.1
    clip: float = 1.0  # global gradient norm


@dataclass(frozen=True)
class OuterConfig:
    """The step that every node applies to the global parameters from a manifest."""

    lr: float = 1.0
    momentum: float = 0.0
    nesterov: bool = False
    mean: Literal["peers", "contributors"] = "peers"  # divide by R, or by the senders of each index
    clip: bool = True  # clip each contribution, per unit, to the lower-median norm
    standing: float = 0.25  # of the median incentive: who earns less on the chain is paid, but not added; 0: all are


@dataclass(frozen=True)
class CompressConfig:
    """How a pseudo-gradient becomes a contribution."""

    tile: int = 64  # edge of a square tile; 1-D units are cut into runs of this length
    k: int = 64  # values kept per tile (all of them where a tile has no more)
    expert_k: int = 0  # the same of a routed expert's tiles; 0: k
    feedback_decay: float = 0.95
    quantizer: Literal["sign1", "v213"] = "sign1"
    dct: bool = False  # select in the discrete cosine domain of each tile


@dataclass(frozen=True)
class DataConfig:
    """What the run trains on. `manifest` pins it; empty until the pages are known."""

    tokenizer: str = "bytes"  # "bytes", or the sha256 of a tokenizer.json
    sequence: int = 256  # tokens of a sequence, S
    page: int = 64  # sequences of a page
    slots: int = 16  # uids that the corpus must be able to serve at once
    manifest: str = ""  # sha256 of the data manifest, hex


@dataclass(frozen=True)
class RunConfig:
    """Everything that all participants of a run must share."""

    name: str = "tiny"
    seed: int = 0
    start: str = ""  # state root, in hex, of the published model that it goes on from; empty: drawn from the seed
    model: ModelConfig = field(default_factory=ModelConfig)
    window: WindowConfig = field(default_factory=WindowConfig)
    inner: InnerConfig = field(default_factory=InnerConfig)
    outer: OuterConfig = field(default_factory=OuterConfig)
    compress: CompressConfig = field(default_factory=CompressConfig)
    data: DataConfig = field(default_factory=DataConfig)
    max_contributors: int = 20  # R: contributions that one outer step takes at most
    audit_bytes_max: int = 0  # a picked miner uploads at most so much for a full audit; too little for it: no audits

    @property
    def pages_per_window(self) -> int:
        """M: pages assigned to one uid in one window, enough for H inner steps."""
        sequences = self.inner.steps * self.inner.batch
        return -(-sequences // self.data.page)

    @functools.cached_property
    def run_id(self) -> str:
        """First 32 hex digits of the sha256 of the canonical JSON of this configuration.

        Without an empty `start` and an `audit_bytes_max` of 0: such a run is what it was before there were any.
        """
        values = dataclasses.asdict(self)
        for name in ("start", "audit_bytes_max"):
            if not values[name]:
                del values[name]
        text = json.dumps(values, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:32]


@dataclass(frozen=True)
class MeshConfig:
    """Devices of this node. 0 means: all that are left."""

    fsdp: int = 0
    tensor: int = 1
    expert: int = 1  # devices that share the routed experts of a layer among them
    cpu_devices: int = 0  # number of CPU devices to make on a CPU host; 0: one per core


@dataclass(frozen=True)
class ComputeConfig:
    """How this node computes; changes speed and memory, never what is agreed upon."""

    dtype: Literal["float32", "bfloat16"] = "float32"  # of activations and matmuls; parameters stay float32
    attention: Literal["auto", "xla", "blockwise", "cudnn"] = "auto"
    remat: Literal["none", "full", "save-names", "offload-names"] = "none"
    offload: tuple[str, ...] = ()  # rest in pinned host memory: "parameters", "moments", "feedback", "snapshot"
    micro_batch: int = 0  # sequences of one forward pass; 0: the whole inner batch
    loss_chunk: int = 512  # sequence positions of one cross-entropy chunk


@dataclass(frozen=True)
class HostsConfig:
    """Several processes, each with devices of its own, that are one miner. Only process 0 is seen by the network."""

    count: int = 1  # processes
    index: int = 0  # of this one
    coordinator: str = ""  # "host:port" of process 0; the port after it carries the calls
    key: str = ""  # file with the secret that all of them share; empty: hosts.key under `home`, made by process 0
    heartbeat_seconds: int = 60  # a process that is silent for so long is lost (one that ends is missed at once)


@dataclass(frozen=True)
class NetworkConfig:
    """Where the chain and the buckets are. Paths are relative to `NodeConfig.home`."""

    chain: str = "local"  # "local" for the SQLite chain under `home`; else a Bittensor network or ws:// URL
    netuid: int = 1
    block_seconds: float = 1.0  # of a local chain that is created here
    finality: int = 1  # blocks until a local block is final
    bucket: str = ""  # own bucket's locator; empty: a folder under `home`


@dataclass(frozen=True)
class NodeConfig:
    """What one machine decides for itself; never hashed."""

    home: str = ".templar"
    hotkey: str = ""  # name under home/wallet, made on first use; empty: first of miner-0, miner-1, ... that is free
    data: str = ""  # prepared pages; empty: the standard library's source, prepared under home
    start: str = ""  # Hugging Face folder of the model whose state root the run's `start` is
    mesh: MeshConfig = field(default_factory=MeshConfig)
    hosts: HostsConfig = field(default_factory=HostsConfig)
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    network: NetworkConfig = field(default_factory=NetworkConfig)
    checkpoint_every: int = 4  # windows
    checkpoint_keep: int = 3
    keep_windows: int = 20  # windows of objects that stay in the own bucket
    eval_sequences: int = 128  # held-out sequences of the evaluation after each outer step
    score_sequences: int = 64  # a validator evaluates each contribution on so many, assigned and unassigned
    weights_blocks: int = 100  # between two times that a validator sets weights: the chain's rate limit
    profile_window: int = -1  # of this window a trace is written under home/profile
    sinks: tuple[str, ...] = ()  # beside JSONL: "wandb", "tensorboard"
