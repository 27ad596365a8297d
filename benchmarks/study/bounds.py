"""Confidence bounds of a few measured values."""

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

from scipy import stats


class Interval(NamedTuple):
    mean: float
    low: float
    high: float


def upper(values: Sequence[float], share: float = 0.95) -> float:
    """One-sided upper bound of the mean; infinity of a single value, or where one is infinite."""
    if len(values) < 2 or math.inf in values:
        return math.inf
    return statistics.fmean(values) + _reach(values, share)


def interval(values: Sequence[float], share: float = 0.95) -> Interval:
    """Two-sided interval of the mean; the whole line of a single value, or where one is infinite."""
    mean = statistics.fmean(values)
    if len(values) < 2 or math.inf in values:
        return Interval(mean, -math.inf, math.inf)
    reach = _reach(values, (1.0 + share) / 2.0)
    return Interval(mean, mean - reach, mean + reach)


def _reach(values: Sequence[float], share: float) -> float:
    """Standard error of the mean times Student's t."""
    return float(stats.t.ppf(share, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))


def of_rate(hits: int, trials: int, share: float = 0.95) -> Interval:
    """Wilson's interval of a rate. https://www.jstor.org/stable/2276774"""
    found = stats.binomtest(hits, trials).proportion_ci(share, method="wilson")
    return Interval(hits / trials, float(found.low), float(found.high))
