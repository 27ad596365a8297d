"""Rating: the shrunken mean of what a peer's contributions were worth, with fading memory."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from templar_jax.incentive.config import IncentiveConfig
from templar_jax.incentive.statistics import weighted_quantile


@dataclass(frozen=True)
class Rating:
    """Sums over windows, the older the less."""

    prior: float  # where the peer started
    total: float = 0.0
    squares: float = 0.0
    count: float = 0.0


def newcomer(config: IncentiveConfig, rated: Iterable[tuple[float, float]]) -> Rating:
    """Where somebody new starts: a low quantile of (mean, standing) of those who are rated, at most newcomer_most."""
    pairs = list(rated)
    low = weighted_quantile(pairs, config.newcomer_quantile) if pairs else config.newcomer_most
    return Rating(max(0.0, min(config.newcomer_most, low)))


def add(config: IncentiveConfig, rating: Rating, value: float) -> Rating:
    """Remembers the value of one more window."""
    keep = config.memory
    return Rating(
        rating.prior, keep * rating.total + value, keep * rating.squares + value * value, keep * rating.count + 1.0
    )


def mean(config: IncentiveConfig, rating: Rating) -> float:
    """What pay is made of."""
    weight = config.rating_prior_weight
    return (weight * rating.prior + rating.total) / (weight + rating.count)


def lower_bound(config: IncentiveConfig, rating: Rating) -> float:
    """The mean less `confidence` standard errors: for choosing who contributes, never for pay."""
    weight, centre = config.rating_prior_weight, mean(config, rating)
    deviations = rating.squares - 2.0 * centre * rating.total + centre * centre * rating.count
    variance = (weight * config.rating_prior_sd * config.rating_prior_sd + max(0.0, deviations)) / (
        weight + rating.count
    )
    return centre - config.confidence * math.sqrt(variance / (weight + rating.count))
