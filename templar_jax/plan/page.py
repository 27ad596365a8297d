"""The page of all shipped configurations, as Markdown."""

from collections.abc import Sequence

from templar_jax.plan.gpus import GPUS, find
from templar_jax.plan.report import GIB, HEADER, Plan, make_plan, row

LARGE = 10**9  # bytes of arguments of a step on a device: below, every GPU of the list has room to spare


def page(plans: Sequence[Plan], gpus: int, gpu: str) -> list[str]:
    """Lines: a table of the plans, what each needs, and the large ones on every kind of GPU."""
    assumed = plans[0].assumed
    return [
        f"# Plan for {gpus} x {plans[0].gpu.title}",
        "",
        f"Made by `python scripts/plan.py --table --gpus {gpus} --gpu {gpu}`: {assumed.mfu:.0%} MFU, "
        f"{assumed.link / 1e6:,.0f} Mb/s and {assumed.peers} peers are assumed. The GiB are those of the phase "
        "that needs most. Host GiB: what is offloaded, copies of a checkpoint being written, opened contributions.",
        "",
        HEADER,
        *map(row, plans),
        "",
        *(f"{plan.run.name}: {_told(plan)}. Temporaries {plan.memory.source}.\n" for plan in plans),
        f"## On {gpus} of each kind of GPU",
        "",
        "Temporaries as above: the kind of GPU changes XLA's kernels, hardly its buffers. GiB needed / usable, seconds "
        "of a step, share of a window in inner steps.",
        "",
        f"| config | {' | '.join(GPUS)} |",
        f"|{'---|' * (1 + len(GPUS))}",
        *(_on_each(plan, gpus) for plan in plans if plan.memory.arguments["gradients"] >= LARGE // 2),
    ]


def _told(plan: Plan) -> str:
    if plan.fits:
        return "fits"
    return f"what would fit: {plan.knob}" if plan.knob else "no setting that exists fits"


def _on_each(plan: Plan, gpus: int) -> str:
    cells = []
    for name in GPUS:
        other = make_plan(
            plan.run, plan.node, find(name), gpus, plan.assumed, plan.host_ram, plan.compiled, plan.why_not
        )
        verdict = "fits" if other.fits else "no"
        step, used = other.window.step, other.window.utilisation
        cells.append(f"{verdict}: {other.peak / GIB:.1f} / {other.gpu.usable / GIB:.1f}, {step:.1f} s, {used:.0%}")
    return f"| {plan.run.name} | {' | '.join(cells)} |"
