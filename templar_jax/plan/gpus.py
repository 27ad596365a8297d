"""The GPUs that a plan knows: data sheets, and what XLA must be told to compile for one that is not there."""

import difflib
from dataclasses import dataclass

from templar_jax.errors import ConfigError

USABLE = 0.95  # share of the memory that JAX may take (XLA_PYTHON_CLIENT_MEM_FRACTION); CUDA and NCCL need the rest


@dataclass(frozen=True)
class Gpu:
    """One GPU. FLOP/s dense, without sparsity; memory as its driver reports it, rounded down."""

    name: str
    memory: int  # bytes
    flops: float  # FLOP/s in bfloat16
    bandwidth: float  # bytes/s of its memory
    capability: tuple[int, int]  # CUDA compute capability
    cores: int  # streaming multiprocessors
    shared: int  # bytes of shared memory of one
    l2: int  # bytes
    clock: float  # GHz
    host_link: float  # bytes/s between pinned host memory and the GPU, each way: about 80 % of PCIe 4 or 5 x16
    title: str

    @property
    def usable(self) -> int:
        """Bytes that a program may use."""
        return int(self.memory * USABLE)


_GIB = 2**30
_A100, _H100 = "NVIDIA A100-SXM4-80GB", "NVIDIA H100 80GB HBM3"
_H200, _B200 = "NVIDIA H200", "NVIDIA B200"
# NVIDIA's data sheets of the SXM versions: A100 (2021), H100 (2023), H200 (2024), HGX B200 (2025).
GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu("a100-80", int(79.1 * _GIB), 312e12, 2.04e12, (8, 0), 108, 167_936, 40 * 2**20, 1.41, 25e9, _A100),
        Gpu("h100-80", int(79.1 * _GIB), 989e12, 3.35e12, (9, 0), 132, 233_472, 50 * 2**20, 1.98, 50e9, _H100),
        Gpu("h200-141", int(139.8 * _GIB), 989e12, 4.8e12, (9, 0), 132, 233_472, 50 * 2**20, 1.98, 50e9, _H200),
        Gpu("b200-180", int(178.3 * _GIB), 2250e12, 7.7e12, (10, 0), 148, 233_472, 126 * 2**20, 1.97, 50e9, _B200),
    )
}


def find(name: str) -> Gpu:
    """Raises ConfigError for a name that is none."""
    if name not in GPUS:
        near = difflib.get_close_matches(name, GPUS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"choose one of {', '.join(GPUS)}"
        raise ConfigError(f"no figures for the GPU {name!r}: {hint}")
    return GPUS[name]


def target_config(gpu: Gpu) -> str:
    """XLA's description of the GPU (text form of stream_executor's GpuTargetConfigProto)."""
    info = {
        "threads_per_block_limit": 1024,
        "threads_per_warp": 32,
        "shared_memory_per_block": 49_152,
        "shared_memory_per_block_optin": gpu.shared - 1024,
        "shared_memory_per_core": gpu.shared,
        "threads_per_core_limit": 2048,
        "core_count": gpu.cores,
        "fpus_per_core": 64 if gpu.capability == (8, 0) else 128,
        "block_dim_limit_x": 2**31 - 1,
        "block_dim_limit_y": 65_535,
        "block_dim_limit_z": 65_535,
        "memory_bandwidth": int(gpu.bandwidth),
        "l2_cache_size": gpu.l2,
        "clock_rate_ghz": gpu.clock,
        "device_memory_size": gpu.memory,
        "registers_per_core_limit": 65_536,
        "registers_per_block_limit": 65_536,
    }
    fields = " ".join(f"{key}: {value}" for key, value in info.items())
    major, minor = gpu.capability
    return (
        f"gpu_device_info {{ {fields} cuda_compute_capability {{ major: {major} minor: {minor} }} }} "
        f'platform_name: "CUDA" dnn_version_info {{ major: 9 minor: 10 }} '
        f'runtime_version {{ major: 12 minor: 9 }} device_description_str: "{gpu.title}"'
    )
