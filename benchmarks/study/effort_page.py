"""The part of docs/attacks.md about groups that do all, half and a quarter of the steps."""

from collections.abc import Mapping, Sequence

from benchmarks.study import bounds, effort
from benchmarks.study.verdict import Result


def is_of(result: Result) -> bool:
    return effort.is_of(result["job"])


def text(results: Mapping[str, Sequence[Result]]) -> str:
    if not any(results.get(kind) for kind in effort.KINDS):
        return ""
    head = f"""## Effort

Fifteen peers: {effort.RESIDENTS} residents that do all steps, and {effort.GROUP} each that do all, a half and a quarter
of them and claim all. Ordered: the groups' mean pay (default rules) stands in the order of their work. Pairs: part of
all pairs of single peers in which who does more is paid more, for all against half, half against a quarter, all against
a quarter. "Join 20" is the evidence of the same simulations without the groups' first 20 windows: the rules meet them
at window 20, in a network that knows the residents.

"""
    lines = ["| | seeds | ordered | pairs | mean pay relative to all steps |", "| --- | --- | --- | --- | --- |"]
    for kind in effort.KINDS:
        of = [result["effort"] for result in results.get(kind, [])]
        for when in of[0] if of else ():
            means = [each[when]["means"] for each in of]
            ordered = sum(full > half > quarter for full, half, quarter in means)
            pairs = [sum(each[when]["pairs"][place] for each in of) / len(of) for place in range(3)]
            total = [sum(group[place] for group in means) / len(means) for place in range(3)]
            low = bounds.of_rate(ordered, len(of)).low
            lines.append(
                f"| {kind.removeprefix('effort-')}, {when} | {len(of)} | {ordered} of {len(of)} (rate >= {low:.2f}) | "
                f"{' / '.join(f'{rate:.2f}' for rate in pairs)} | "
                f"{' / '.join(f'{value / total[0]:.2f}' if total[0] else '–' for value in total)} |"
            )
    return head + "\n".join(lines) + "\n"
