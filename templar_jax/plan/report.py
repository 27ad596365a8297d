"""A plan for people and for programs: text, one row of a table, JSON."""

import math
from dataclasses import dataclass
from typing import Any

from jax.sharding import AbstractMesh

from templar_jax.config import NodeConfig, RunConfig
from templar_jax.plan.compiled import Compiled
from templar_jax.plan.fabric import fabric_bytes
from templar_jax.plan.gpus import USABLE, Gpu
from templar_jax.plan.knobs import find_knob
from templar_jax.plan.memory import Memory, plan_memory, plan_mesh
from templar_jax.plan.window import Assumed, Window, plan_window
from templar_jax.sharding import table

GIB, MIB = 2**30, 2**20
COLUMNS = (
    "config",
    "parameters",
    "GiB a GPU",
    "fits",
    "host GiB",
    "TFLOP a step",
    "s a step",
    "steps of H",
    "payload MiB",
    "link s",
    "used",
)
HEADER = f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}"


@dataclass(frozen=True)
class Plan:
    """Everything about one configuration on one kind of host."""

    run: RunConfig
    node: NodeConfig
    gpu: Gpu
    mesh: AbstractMesh
    hosts: int  # that the mesh uses
    fabric: dict[str, int]  # bytes that a host receives from the others in an inner step, by cause
    memory: Memory
    window: Window
    assumed: Assumed
    host_ram: int | None  # bytes; None: not asked
    knob: str
    compiled: Compiled | None
    why_not: str  # it was not compiled

    @property
    def devices(self) -> int:
        """That the mesh uses, of all hosts."""
        return self.mesh.size

    @property
    def host_bytes(self) -> int:
        """Of one host; each holds its own part."""
        return sum(self.memory.host.values()) // self.hosts

    @property
    def peak(self) -> int:
        """Bytes of one device in the phase that needs most."""
        return self.memory.peak(self.memory.worst)

    @property
    def fits(self) -> bool:
        return self.peak <= self.gpu.usable and (self.host_ram is None or self.host_bytes <= self.host_ram)


def make_plan(
    run: RunConfig,
    node: NodeConfig,
    gpu: Gpu,
    gpus: int,
    assumed: Assumed = Assumed(),  # noqa: B008 - frozen
    host_ram: int | None = None,
    compiled: Compiled | None = None,
    why_not: str = "",
    hosts: int = 1,
) -> Plan:
    """The plan for `hosts` hosts of `gpus` GPUs.

    `compiled`: XLA's account of the inner step, else temporaries are estimated, `why_not` says why.

    Raises:
      ConfigError: no mesh of so many GPUs for this configuration.
    """
    mesh = plan_mesh(run, node, hosts * gpus)
    found = None
    if compiled is not None:
        found = compiled.temporaries, f"by XLA, compiled for {compiled.gpu}, attention {compiled.attention}"
    memory = plan_memory(run, node, mesh, found)
    if compiled is None and why_not:
        memory = Memory(**{**memory.__dict__, "source": f"estimated, on the high side: {why_not}"})
    used, fabric = -(-mesh.size // gpus), fabric_bytes(run, node, mesh, gpus)
    window = plan_window(run, node, gpu, mesh.size, assumed, used, sum(fabric.values()))
    fits = memory.peak(memory.worst) <= gpu.usable
    knob = "" if fits else find_knob(run, node, gpu, hosts * gpus, gpus)
    return Plan(run, node, gpu, mesh, used, fabric, memory, window, assumed, host_ram, knob, compiled, why_not)


def figures(plan: Plan) -> dict[str, Any]:
    """For --json. Units stand in the names; `bytes_per_gpu` by phase and class."""
    window, memory = plan.window, plan.memory
    return {
        "gib_per_gpu": plan.peak / GIB,
        "fits": plan.fits,
        "tflops_per_step": window.flops_per_step / 1e12,
        "payload_mib": window.payload / MIB,
        "seconds_comm": window.upload + window.download,
        "utilisation": window.utilisation,
        "gib_usable": plan.gpu.usable / GIB,
        "gpus": plan.devices,
        "hosts": plan.hosts,
        "knob": plan.knob or None,
        "temporaries_from": memory.source,
        "argument_bytes_of_programs": memory.arguments,
        "bytes_per_gpu": {
            phase: {**classes, "temporaries": memory.temporaries[phase]} for phase, classes in memory.state.items()
        },
        "host_gib": plan.host_bytes / GIB,
        "seconds_step": window.step,
        "seconds_step_host_link": window.streamed,
        "seconds_step_between_hosts": window.between,
        "bytes_between_hosts_per_step": plan.fabric,
        "seconds_window": window.length,
        "seconds_idle": window.length * (1 - window.utilisation),
        "steps": window.steps,
        "steps_wanted": window.wanted,
    }


def parameters(run: RunConfig) -> str:
    """Number of parameters for people, e.g. "70.55 B"."""
    count = sum(math.prod(param.shape) for param in table(run))
    if count >= 1e12:
        return f"{count / 1e12:.2f} T"
    return f"{count / 1e9:.2f} B" if count >= 1e9 else f"{count / 1e6:.1f} M"


def lines(plan: Plan) -> list[str]:
    """The whole plan as text."""
    return [*_memory_lines(plan), *_window_lines(plan), *_verdict_lines(plan)]


def _memory_lines(plan: Plan) -> list[str]:
    memory, worst = plan.memory, plan.memory.worst
    out = [f"{plan.run.name}: {parameters(plan.run)} parameters on {plan.devices} x {plan.gpu.title}{_on(plan)}", ""]
    out.append(f"memory of one GPU, phase {worst} (needs most), GiB")
    rows = [(name, size) for name, size in memory.state[worst].items() if size]
    rows.append(("temporaries", memory.temporaries[worst]))
    out += [f"  {name:<62}{size / GIB:>9.2f}" for name, size in rows]
    out.append(f"  {'together':<62}{plan.peak / GIB:>9.2f}   of {plan.gpu.usable / GIB:.2f} usable ({USABLE:.0%})")
    out.append(f"  temporaries: {memory.source}")
    out += [f"    {name:<60}{size / GIB:>9.2f}" for name, size in memory.parts.items()]
    others = [f"{phase} {memory.peak(phase) / GIB:.2f}" for phase in memory.state if phase != worst]
    out.append(f"  other phases: {', '.join(others)}; set XLA_PYTHON_CLIENT_MEM_FRACTION={USABLE}")
    host = ", ".join(f"{name} {size / GIB:.1f}" for name, size in memory.host.items())
    shares = f", of {plan.hosts} hosts; {plan.host_bytes / GIB:,.0f} each" if plan.hosts > 1 else ""
    out.append(f"host memory, GiB: {host}; together {sum(memory.host.values()) / GIB:,.0f}{shares}")
    return out


def _on(plan: Plan) -> str:
    mesh = " x ".join(f"{axis} {extent}" for axis, extent in plan.mesh.shape.items() if extent > 1)
    return f" in {plan.hosts} hosts, mesh {mesh}" if plan.hosts > 1 else ""


def _window_lines(plan: Plan) -> list[str]:
    w, a = plan.window, plan.assumed
    return [
        "",
        f"inner step: {w.flops_per_step / 1e12:,.1f} model TFLOPs, {w.step:.2f} s at {a.mfu:.0%} MFU (assumed)"
        + (f", of them {w.streamed:.2f} s between host and GPU, nothing overlapped" if w.streamed else ""),
        *_between_lines(plan),
        f"window: {w.length:,.0f} s; {w.steps} of at most {w.wanted} steps ({w.room} would fit), "
        f"{w.utilisation:.1%} of the time in them",
        f"contribution: at most {w.payload / MIB:,.1f} MiB; {w.upload:.1f} s up, {w.download:.1f} s down from "
        f"{a.peers - 1} peers at {a.link / 1e6:,.0f} Mb/s",
        f"beside the steps: {w.start:.0f} s until training starts, {w.finish:.0f} s from the last step to the "
        f"commitment, {w.apply:.0f} s to open and apply (host rates of one core)",
    ]


def _between_lines(plan: Plan) -> list[str]:
    """What the hosts of one miner send each other."""
    if plan.hosts == 1:
        return []
    w, a = plan.window, plan.assumed
    causes = ", ".join(f"{cause} {size / 1e12:,.2f}" for cause, size in plan.fabric.items() if size)
    return [
        f"  and {w.between:.2f} s between hosts at {a.fabric / 1e9:,.0f} Gb/s a host, {a.fabric_share:.0%} of it "
        f"reached (assumed), nothing overlapped; TB into a host: {causes}"
    ]


def _verdict_lines(plan: Plan) -> list[str]:
    out = [""]
    if plan.peak <= plan.gpu.usable:
        out.append("fits")
    else:
        out.append(f"does not fit: {(plan.peak - plan.gpu.usable) / GIB:.1f} GiB too many on each GPU")
        out.append(f"  what would fit: {plan.knob or 'no setting that exists; a GPU with more memory'}")
    if plan.host_ram is not None and plan.host_bytes > plan.host_ram:
        out.append(
            f"host memory does not suffice: {plan.host_bytes / GIB:.0f} GiB of {plan.host_ram / GIB:.0f}: lower "
            "max_contributors, or take a host with more"
        )
    w = plan.window
    if w.room < w.wanted:
        out.append(f"only {w.room} of {w.wanted} inner steps fit: lower inner.steps, lengthen the window, or add GPUs")
    elif w.room > 1.1 * w.wanted:
        out.append(f"there is time for {w.room} inner steps: inner.steps is {w.wanted}")
    return out


def row(plan: Plan) -> str:
    """One row of the table under HEADER."""
    w = plan.window
    cells = [
        plan.run.name,
        parameters(plan.run),
        _short(plan.peak / GIB),
        "yes" if plan.fits else "no",
        _short(plan.host_bytes / GIB),
        _short(w.flops_per_step / 1e12),
        _short(w.step),
        f"{w.steps} of {w.wanted}",
        _short(w.payload / MIB),
        _short(w.upload + w.download),
        f"{w.utilisation:.1%}",
    ]
    return f"| {' | '.join(cells)} |"


def _short(value: float) -> str:
    """Two digits at least, no more than matter."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2g}"
