"""A configuration that no single host can hold, on several clusters: a section of the page, as Markdown."""

import dataclasses
from collections.abc import Iterator

from templar_jax.config import NodeConfig, RunConfig
from templar_jax.model.flops import active_parameters
from templar_jax.plan.gpus import find
from templar_jax.plan.report import GIB, Plan, make_plan, parameters
from templar_jax.plan.window import Assumed

NAME = "moe-1t"  # the configuration that is planned so
GPUS_OF_A_HOST = 8
# (hosts, GPU, extent of the axis expert, micro-batch, Gb/s between the hosts, Mb/s to other miners)
CLUSTERS = (
    (32, "h100-80", 8, 256, 3200, 10_000),
    (32, "h100-80", 8, 256, 3200, 1000),
    (32, "h100-80", 8, 256, 800, 10_000),
    (16, "h100-80", 8, 128, 3200, 10_000),
    (32, "h100-80", 64, 256, 3200, 10_000),
    (32, "h200-141", 8, 512, 3200, 10_000),
    (32, "b200-180", 8, 1024, 3200, 10_000),
)
COLUMNS = (
    "hosts",
    "GPU",
    "expert",
    "micro-batch",
    "fabric Gb/s",
    "link Mb/s",
    "GiB a GPU",
    "fits",
    "host GiB",
    "s a step",
    "compute",
    "between hosts",
    "steps of H",
    "link s",
    "computing",
)


def sketch(run: RunConfig, node: NodeConfig) -> list[str]:
    """Lines of the section."""
    plans = [(cluster, _plan(run, node, *cluster)) for cluster in CLUSTERS]
    first = plans[0][1]
    return [
        f"## {run.name} on many hosts",
        "",
        f"{parameters(run)} parameters, {active_parameters(run.model) / 1e9:.1f} B of them active for a token; a miner "
        "is a cluster. On paper: nobody has trained it, and a mesh over several hosts is not tried at this size. "
        f"`python scripts/plan.py --config {run.name} --hosts 32 --link 10000` prints the first row in full.",
        "",
        "Exact: bytes of a GPU that are state, the payload, FLOPs. Counted from the sharding, and found so in the "
        "program that XLA compiles for the first row: what crosses between hosts (each layer's weights twice and its "
        "gradients once a micro-batch; tokens where the axis expert spans hosts). "
        f"Assumed: {first.assumed.mfu:.0%} MFU, {first.assumed.fabric_share:.0%} of the fabric's rate, nothing "
        "overlapped, 20 peers, contributions encoded and opened by all hosts of a miner in equal parts. Temporaries "
        "are estimated, on the high side: of the experts for the case that all tokens of the axis choose one GPU's.",
        "",
        f"| {' | '.join(COLUMNS)} |",
        f"|{'---|' * len(COLUMNS)}",
        *(_row(cluster, plan) for cluster, plan in plans),
        "",
        "Computing: share of a window in which GPUs multiply for the inner steps. The rest of a step is the fabric.",
        "",
        *_told(plans),
    ]


def _plan(
    run: RunConfig, node: NodeConfig, hosts: int, gpu: str, expert: int, micro: int, fabric: int, link: int
) -> Plan:
    mesh = dataclasses.replace(node.mesh, fsdp=hosts * GPUS_OF_A_HOST // expert, expert=expert)
    compute = dataclasses.replace(node.compute, micro_batch=micro)
    changed = dataclasses.replace(node, mesh=mesh, compute=compute)
    assumed = Assumed(fabric=fabric * 1e9, link=link * 1e6)
    return make_plan(run, changed, find(gpu), GPUS_OF_A_HOST, assumed, hosts=hosts)


def _row(cluster: tuple, plan: Plan) -> str:
    hosts, gpu, expert, micro, fabric, link = cluster
    w = plan.window
    compute = w.step - w.streamed - w.between
    cells = [
        f"{hosts} x {GPUS_OF_A_HOST}",
        gpu,
        f"{expert}",
        f"{micro}",
        f"{fabric:,}",
        f"{link:,}",
        f"{plan.peak / GIB:.1f} of {plan.gpu.usable / GIB:.1f}",
        "yes" if plan.fits else "no",
        f"{plan.host_bytes / GIB:,.0f}",
        f"{w.step:.1f}",
        f"{compute:.1f}",
        f"{w.between:.1f}",
        f"{w.steps} of {w.wanted}",
        f"{w.upload + w.download:,.0f}",
        f"{w.steps * compute / w.length:.1%}",
    ]
    return f"| {' | '.join(cells)} |"


def _told(plans: list[tuple[tuple, Plan]]) -> Iterator[str]:
    """What keeps each cluster that does not fit from it."""
    for cluster, plan in plans:
        if not plan.fits:
            cause = max(plan.memory.parts, key=lambda part: plan.memory.parts[part])
            knob = f"what would fit: {plan.knob}" if plan.knob else "no setting that exists fits"
            yield (
                f"{cluster[0]} hosts of {cluster[1]}, expert {cluster[2]}: {(plan.peak - plan.gpu.usable) / GIB:.1f} "
                f"GiB too many, the largest temporary is {cause} ({plan.memory.parts[cause] / GIB:.1f} GiB); {knob}."
            )
            yield ""
