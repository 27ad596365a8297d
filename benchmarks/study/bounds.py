"""Confidence bounds of a few measured values, without a statistics library."""

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple


class Interval(NamedTuple):
    mean: float
    low: float
    high: float


def t_below(t: float, freedom: int) -> float:
    """P(T <= t) of Student's t with whole degrees of freedom: Abramowitz and Stegun, 26.7.3 and 26.7.4."""
    angle = math.atan(t / math.sqrt(freedom))
    sine, square = math.sin(angle), math.cos(angle) ** 2
    if freedom % 2:
        total, term = 0.0, math.cos(angle)
        for step in range(1, freedom - 1, 2):
            total += term
            term *= square * (step + 1) / (step + 2)
        within = 2.0 / math.pi * (angle + sine * total)
    else:
        total, term = 0.0, 1.0
        for step in range(0, freedom - 1, 2):
            total += term
            term *= square * (step + 1) / (step + 2)
        within = sine * total
    return 0.5 * (1.0 + within)


def t_quantile(share: float, freedom: int) -> float:
    """The t with P(T <= t) = share, for 0.5 <= share < 1."""
    low, high = 0.0, 1.0
    while t_below(high, freedom) < share:
        high *= 2.0
    for _ in range(100):
        middle = (low + high) / 2.0
        low, high = (middle, high) if t_below(middle, freedom) < share else (low, middle)
    return high


def upper(values: Sequence[float], share: float = 0.95) -> float:
    """One-sided upper bound of the mean; infinity of a single value, or where one is infinite."""
    if len(values) < 2 or math.inf in values:
        return math.inf
    error = statistics.stdev(values) / math.sqrt(len(values))
    return statistics.fmean(values) + t_quantile(share, len(values) - 1) * error


def interval(values: Sequence[float], share: float = 0.95) -> Interval:
    """Two-sided interval of the mean; the whole line of a single value, or where one is infinite."""
    mean = statistics.fmean(values)
    if len(values) < 2 or math.inf in values:
        return Interval(mean, -math.inf, math.inf)
    error = statistics.stdev(values) / math.sqrt(len(values))
    reach = t_quantile((1.0 + share) / 2.0, len(values) - 1) * error
    return Interval(mean, mean - reach, mean + reach)


def of_rate(hits: int, trials: int, share: float = 0.95) -> Interval:
    """Wilson's interval of a rate. https://www.jstor.org/stable/2276774"""
    z = statistics.NormalDist().inv_cdf((1.0 + share) / 2.0)
    rate, spread = hits / trials, z * z / trials
    centre = (rate + spread / 2.0) / (1.0 + spread)
    reach = z / (1.0 + spread) * math.sqrt(rate * (1.0 - rate) / trials + spread / (4.0 * trials))
    return Interval(rate, max(0.0, centre - reach), min(1.0, centre + reach))
