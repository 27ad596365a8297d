"""Contenders take turns: what stays comparable on a machine that does other work."""

import time
from collections.abc import Callable, Mapping
from statistics import median


def take_turns(contenders: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each contender in each of `rounds` rounds; one round runs each once, in turned-about order.

    A contender is called once beforehand, outside the clock, and must return only when its work is done.
    """
    for contender in contenders.values():
        contender()
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(rounds):
        names = list(contenders) if number % 2 == 0 else list(contenders)[::-1]
        for name in names:
            start = time.perf_counter()
            contenders[name]()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def ratio(baseline: list[float], ours: list[float]) -> float:
    """How many times faster than the baseline: the median over the rounds of the quotient within a round."""
    return median(b / o for b, o in zip(baseline, ours, strict=True))
