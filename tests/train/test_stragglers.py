"""Artificially slow ranks."""

import math
import time

import numpy as np
import pytest
import torch

from lsam_hpc.errors import InputError
from lsam_hpc.train.stragglers import Stragglers

CPU = torch.device("cpu")


@pytest.fixture
def clock(monkeypatch):
    """A clock that advances only by sleep or by hand, and records sleeps."""

    class Clock:
        now = 0.0
        slept: list[float]

    Clock.slept = []

    def sleep(seconds):
        Clock.slept.append(seconds)
        Clock.now += seconds

    monkeypatch.setattr(time, "sleep", sleep)
    monkeypatch.setattr(time, "perf_counter", lambda: Clock.now)
    return Clock


def passes(stragglers, clock, count, seconds):
    for _ in range(count):
        with stragglers.a_pass(CPU):
            clock.now += seconds


def test_a_slow_rank_takes_its_factor(clock):
    passes(Stragglers("1:3,-1:2", 1, 4, 0), clock, 5, 0.1)
    assert clock.now == pytest.approx(5 * 0.3)
    clock.slept.clear()
    passes(Stragglers("1:3,-1:2", 3, 4, 0), clock, 5, 0.1)  # -1: the last rank
    assert clock.slept == pytest.approx([0.1] * 5)


def test_the_others_do_not_sleep(clock):
    for rank in (0, 2):
        passes(Stragglers("1:3,-1:2", rank, 4, 0), clock, 5, 0.1)
    passes(Stragglers("none", 0, 1, 0), clock, 5, 0.1)
    assert clock.slept == []


def test_pauses_have_their_chance_and_mean(clock):
    count, chance, mean = 20_000, 0.1, 0.5
    passes(Stragglers(f"pause:{chance}:{mean}", 0, 1, 7), clock, count, 0.0)
    # 4.5 standard deviations: wrong once in 150,000 seeds.
    assert abs(len(clock.slept) - count * chance) < 4.5 * math.sqrt(count * chance * (1 - chance))
    assert abs(np.mean(clock.slept) - mean) < 4.5 * mean / math.sqrt(len(clock.slept))


def test_a_spread_is_drawn_once_for_each_rank_and_never_speeds_up():
    factors = np.array([Stragglers("spread:0.3", rank, 4000, 3).factor for rank in range(4000)])
    assert (factors >= 1).all()
    assert factors[5] == Stragglers("spread:0.3", 5, 4000, 3).factor
    # The mean of |z| is sqrt(2 / pi), its variance 1 - 2 / pi: 4.5 standard errors.
    assert abs(np.log(factors).mean() / 0.3 - math.sqrt(2 / math.pi)) < 4.5 * math.sqrt((1 - 2 / math.pi) / 4000)


@pytest.mark.parametrize(
    "text", ["fast", "4:2", "-5:2", "1:0.5", "1:nan", "1:inf", "1:2:3", "pause:0.1", "pause:2:1", "spread:-1", "1:", ""]
)
def test_bad_text_is_reported_in_one_line(text):
    with pytest.raises(InputError, match=r"--stragglers: expected .* found") as caught:
        Stragglers(text, 0, 4, 0)
    assert "\n" not in str(caught.value)
