"""The guard: what is refused, what is let in, and how it learns."""

import math
import statistics

import pytest

from lsam_hpc import InputError
from lsam_hpc.optim.guard import FEW, PATIENCE, WINDOW, Guard


def taught(lengths, max_jump=10.0):
    guard = Guard(max_jump)
    for length in lengths:
        assert guard.accepts(length, 1e6)
    return guard


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_refuses_what_is_not_finite_and_learns_nothing_from_it(wrong):
    guard = taught([1.0] * 20, math.inf)
    before = guard.state_dict()
    assert not guard.accepts(wrong)
    assert guard.state_dict() == before


def test_the_limit_is_ten_medians_of_the_last_64():
    lengths = [1.0 + (i * 37 % 101) / 100 for i in range(200)]
    guard = taught(lengths)
    median = statistics.median(lengths[-WINDOW:])
    assert guard.accepts(10 * median * (1 - 1e-9))
    guard = taught(lengths)
    assert not guard.accepts(10 * median * (1 + 1e-9))


def test_at_first_the_center_s_norm_is_the_measure():
    guard = Guard()
    assert guard.needs_reference
    assert not guard.accepts(1e30, 50.0)
    assert not guard.accepts(51.0, 50.0)
    assert guard.accepts(49.0, 50.0)
    guard = Guard()
    for _ in range(FEW):
        guard.accepts(1.0, 50.0)
    assert not guard.needs_reference
    assert not guard.accepts(11.0, 50.0)


def test_without_a_jump_all_that_is_finite_is_let_in():
    guard = Guard(math.inf)
    assert all(guard.accepts(length, 1.0) for length in (1.0, 1e30, 1e-30, 1e300))


def test_a_center_at_zero_lets_the_first_delta_in():
    guard = Guard()
    assert guard.accepts(3.0, 0.0)
    assert not guard.accepts(31.0, 0.0)


def test_a_chain_whose_steps_became_longer_is_let_in_again():
    for longer, refusals in ((30.0, PATIENCE), (3000.0, 3 * PATIENCE)):
        guard = taught([1.0] * WINDOW)
        assert [guard.accepts(longer) for _ in range(refusals + 1)] == [False] * refusals + [True]


def test_stray_numbers_are_never_let_in_even_if_most_are():
    guard = taught([1.0] * WINDOW)
    for i in range(3000):
        wild = i % 10 < 8
        assert guard.accepts(1e30 if wild else 1.0) != wild


def test_deltas_of_nothing_say_nothing():
    guard = taught([1.0] * 20 + [0.0] * WINDOW)
    assert guard.accepts(9.0)
    assert not guard.accepts(11.0)


def test_keeps_its_lengths_through_a_state():
    guard = taught([1.0] * 20)
    other = Guard()
    other.load_state_dict(guard.state_dict())
    assert not other.needs_reference
    assert not other.accepts(11.0)


@pytest.mark.parametrize("wrong", [1.0, 0, -3, math.nan, True, "ten"])
def test_refuses_a_jump_that_is_no_jump(wrong):
    with pytest.raises(InputError, match="max_jump: expected a number > 1, found"):
        Guard(wrong)
