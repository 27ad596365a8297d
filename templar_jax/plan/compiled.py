"""What XLA itself says: the programs of a window compiled for GPUs that are not there, in a process of its own.

Needs the CUDA plugin of the same version as jaxlib (`pip install --no-deps jax-cuda12-plugin jax-cuda12-pjrt`); neither
a GPU nor CUDA. A process of its own, because XLA's flags are read once and nothing of this may reach a miner.
"""

import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from templar_jax.config_check import fit_mesh
from templar_jax.plan.gpus import find, target_config
from templar_jax.plan.programs import lowered
from templar_jax.sharding import make_mesh

TIMEOUT = 900.0  # seconds for one compilation
FLAGS = "--xla_gpu_autotune_level=0 --xla_gpu_enable_triton_gemm=false"  # both would need the GPU


@dataclass(frozen=True)
class Program:
    """Bytes of one device by XLA's own account."""

    arguments: int
    outputs: int  # that are not arguments given up
    temporaries: int
    host: int  # temporaries in host memory


@dataclass(frozen=True)
class Compiled:
    """What was compiled: the programs by phase."""

    programs: dict[str, Program]
    gpu: str  # that they were compiled for
    attention: str
    seconds: float  # of compiling

    @property
    def temporaries(self) -> dict[str, int]:
        return {phase: program.temporaries for phase, program in self.programs.items()}


def compile_elsewhere(argv: Sequence[str], gpu: str, gpus: int, hosts: int = 1) -> tuple[Compiled | None, str]:
    """(what XLA says, "") or (None, why not) for the configuration that `argv` names (--config and overrides)."""
    if not any(importlib.util.find_spec(f"jax_cuda{version}_plugin") for version in (12, 13)):
        return None, "the CUDA plugin is not installed"
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": FLAGS, "TF_CPP_MIN_LOG_LEVEL": "3"}
    command = [sys.executable, "-m", "templar_jax.plan.compiled", gpu, str(gpus), str(hosts), *argv]
    try:
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=TIMEOUT)
    except (OSError, subprocess.TimeoutExpired) as error:
        return None, f"the compiler did not finish ({type(error).__name__})"
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        return None, (done.stderr.strip().splitlines() or ["the compiler ended without a word"])[-1][:200]
    found = json.loads(lines[-1])
    programs = {phase: Program(**sizes) for phase, sizes in found.pop("programs").items()}
    return Compiled(programs, **found), ""


def bytes_of(compiled: Any) -> Program:
    """XLA's own account of a compiled program."""
    stats = compiled.memory_analysis()
    outputs = stats.output_size_in_bytes - stats.alias_size_in_bytes
    return Program(
        stats.argument_size_in_bytes, outputs, stats.temp_size_in_bytes, getattr(stats, "host_temp_size_in_bytes", 0)
    )


def _topology(gpu: str, gpus: int, hosts: int) -> list[Any]:
    from jax.experimental import topologies

    described = topologies.get_topology_desc(
        platform="cuda", target_config=target_config(find(gpu)), topology=f"1x{hosts}x{gpus}"
    )
    return list(described.devices)


def _assume_cudnn(capability: tuple[int, int]) -> bool:
    """Lets jax lower cuDNN's attention without a cuDNN to ask for its version. False where jax has changed."""
    try:
        from jax._src.cudnn import fused_attention_stablehlo as fused  # this process only compiles

        for name in ("check_cudnn_version", "check_compute_capability", "is_cuda_compute_capability_equal"):
            getattr(fused, name)
    except (ImportError, AttributeError):
        return False
    text = f"{capability[0]}.{capability[1]}"
    fused.check_cudnn_version = lambda: 91_000  # type: ignore[assignment]
    fused.check_compute_capability = lambda least: float(least) <= float(text)  # type: ignore[assignment]
    fused.is_cuda_compute_capability_equal = lambda one: one == text  # type: ignore[assignment]
    return True


def main(argv: list[str]) -> int:
    """In the process of its own: prints one line of JSON."""
    import time

    from templar_jax.config_load import parse_cli

    gpu, gpus, hosts = argv[0], int(argv[1]), int(argv[2])
    cli = parse_cli(argv[3:], "")
    fitted = fit_mesh(cli.run, cli.node, hosts * gpus)
    used = fitted.fsdp * fitted.expert * fitted.tensor
    mesh = make_mesh(fitted, _topology(gpu, gpus if hosts > 1 else used, hosts))
    compute, started = cli.node.compute, time.monotonic()
    wanted = "cudnn" if compute.attention == "auto" and compute.dtype == "bfloat16" else compute.attention
    paths = ["cudnn", "blockwise"] if wanted == "cudnn" else ["xla" if wanted == "auto" else wanted]
    if paths[0] == "cudnn" and not _assume_cudnn(find(gpu).capability):
        paths.pop(0)
    for path in paths:
        try:
            programs = lowered(cli.run, dataclasses.replace(compute, attention=path), mesh)
            sizes = {phase: bytes_of(program.compile()) for phase, program in programs.items()}
        except Exception:
            if path == paths[-1]:
                raise
            continue
        print(json.dumps(dataclasses.asdict(Compiled(sizes, find(gpu).title, path, time.monotonic() - started))))
        return 0
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
