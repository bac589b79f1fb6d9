"""The delta filter: which deltas it accepts, and how its limit changes."""

import math
import statistics

import pytest

from lsam_hpc import InputError
from lsam_hpc.optim.delta_filter import MAX_REJECTIONS, MIN_NORMS, WINDOW, DeltaFilter


def filter_after(norms, max_delta_ratio=10.0):
    delta_filter = DeltaFilter(max_delta_ratio)
    for norm in norms:
        assert delta_filter.accepts(norm, 1e6)
    return delta_filter


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_rejects_and_does_not_record_norms_that_are_not_finite(wrong):
    delta_filter = filter_after([1.0] * 20, math.inf)
    before = delta_filter.state_dict()
    assert not delta_filter.accepts(wrong)
    assert delta_filter.state_dict() == before


def test_the_limit_is_ten_times_the_median_of_the_last_64_norms():
    norms = [1.0 + (i * 37 % 101) / 100 for i in range(200)]
    delta_filter = filter_after(norms)
    median = statistics.median(norms[-WINDOW:])
    assert delta_filter.accepts(10 * median * (1 - 1e-9))
    delta_filter = filter_after(norms)
    assert not delta_filter.accepts(10 * median * (1 + 1e-9))


def test_the_first_limit_is_the_norm_of_the_center():
    delta_filter = DeltaFilter()
    assert delta_filter.needs_reference
    assert not delta_filter.accepts(1e30, 50.0)
    assert not delta_filter.accepts(51.0, 50.0)
    assert delta_filter.accepts(49.0, 50.0)
    delta_filter = DeltaFilter()
    for _ in range(MIN_NORMS):
        delta_filter.accepts(1.0, 50.0)
    assert not delta_filter.needs_reference
    assert not delta_filter.accepts(11.0, 50.0)


def test_an_infinite_ratio_accepts_every_finite_norm():
    delta_filter = DeltaFilter(math.inf)
    assert all(delta_filter.accepts(norm, 1.0) for norm in (1.0, 1e30, 1e-30, 1e300))


def test_a_center_at_zero_accepts_the_first_delta():
    delta_filter = DeltaFilter()
    assert delta_filter.accepts(3.0, 0.0)
    assert not delta_filter.accepts(31.0, 0.0)


def test_longer_steps_are_accepted_after_enough_rejections():
    for longer, rejections in ((30.0, MAX_REJECTIONS), (3000.0, 3 * MAX_REJECTIONS)):
        delta_filter = filter_after([1.0] * WINDOW)
        assert [delta_filter.accepts(longer) for _ in range(rejections + 1)] == [False] * rejections + [True]


def test_isolated_bad_deltas_stay_rejected_even_as_the_majority():
    delta_filter = filter_after([1.0] * WINDOW)
    for i in range(3000):
        wild = i % 10 < 8
        assert delta_filter.accepts(1e30 if wild else 1.0) != wild


def test_deltas_of_norm_zero_are_not_recorded():
    delta_filter = filter_after([1.0] * 20 + [0.0] * WINDOW)
    assert delta_filter.accepts(9.0)
    assert not delta_filter.accepts(11.0)


def test_a_saved_state_restores_the_norms():
    delta_filter = filter_after([1.0] * 20)
    other = DeltaFilter()
    other.load_state_dict(delta_filter.state_dict())
    assert not other.needs_reference
    assert not other.accepts(11.0)


@pytest.mark.parametrize("wrong", [1.0, 0, -3, math.nan, True, "ten"])
def test_refuses_a_ratio_out_of_range(wrong):
    with pytest.raises(InputError, match="max_delta_ratio: expected a number > 1, found"):
        DeltaFilter(wrong)
