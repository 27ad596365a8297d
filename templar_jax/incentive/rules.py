"""The two sets of rules by name."""

from functools import partial
from typing import Literal

from templar_jax.incentive import default, v213
from templar_jax.incentive.config import IncentiveConfig
from templar_jax.incentive.state import Rules


def rules(name: Literal["default", "v213"], config: IncentiveConfig | None = None) -> Rules:
    """`default`: ours, by `config`. `v213`: the reference's, with its own constants."""
    if name == "v213":
        return Rules(name, v213.State, v213.step, v213.weights, v213.encode, v213.decode)
    config = config or IncentiveConfig()
    return Rules(
        name,
        default.State,
        partial(default.step, config),
        partial(default.weights, config),
        default.encode,
        default.decode,
    )
