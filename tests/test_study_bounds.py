"""Bounds of measured values against tables."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.study import bounds

T_TABLE = {  # (share, degrees of freedom): quantile, from any table of Student's t
    (0.95, 1): 6.3138,
    (0.95, 2): 2.9200,
    (0.95, 8): 1.8595,
    (0.95, 30): 1.6973,
    (0.975, 1): 12.7062,
    (0.975, 2): 4.3027,
    (0.975, 9): 2.2622,
    (0.975, 120): 1.9799,
}


@pytest.mark.parametrize("where", T_TABLE)
def test_t_quantiles_are_those_of_the_tables(where):
    assert bounds.t_quantile(*where) == pytest.approx(T_TABLE[where], abs=1e-4)


@given(st.floats(-8, 8), st.integers(1, 60))
def test_t_is_symmetric_and_grows(t: float, freedom: int):
    assert bounds.t_below(t, freedom) + bounds.t_below(-t, freedom) == pytest.approx(1.0)
    assert bounds.t_below(t, freedom) < bounds.t_below(t + 0.5, freedom)


def test_bounds_of_a_mean():
    values = [1.0, 2.0, 3.0, 4.0]  # mean 2.5, standard error 0.6455
    assert bounds.upper(values) == pytest.approx(2.5 + 2.3534 * 0.6455, abs=1e-3)
    assert bounds.interval(values) == pytest.approx((2.5, 2.5 - 3.1824 * 0.6455, 2.5 + 3.1824 * 0.6455), abs=1e-3)


@pytest.mark.parametrize("values", [[1.0], [1.0, math.inf]])
def test_nothing_bounds_one_value_or_an_infinite_one(values: list[float]):
    assert bounds.upper(values) == math.inf
    assert bounds.interval(values).high == math.inf


def test_rates_have_wilsons_interval():
    assert bounds.of_rate(10, 100) == pytest.approx((0.1, 0.0552, 0.1744), abs=1e-4)
    assert bounds.of_rate(0, 100) == pytest.approx((0.0, 0.0, 0.0370), abs=1e-4)
    assert bounds.of_rate(100, 100).high == 1.0
