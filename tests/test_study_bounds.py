"""Bounds of measured values, against tables of Student's t and of Wilson's interval."""

import math

import pytest

from benchmarks.study import bounds


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
