"""Checkpoints and failures against Daly's closed form."""

import math

import pytest

from lsam_hpc.errors import InputError
from lsam_hpc.simulate.lifetime import Faults, live


def test_without_failures_only_checkpoints_are_added():
    life = live(1000.0, 8, Faults(every=100.0, checkpoint=3.0))
    assert life.wall == pytest.approx(1000 + 9 * 3)  # none after the last segment
    assert (life.failures, life.lost, life.queued) == (0, 0, 0)
    assert live(1000.0, 8, Faults()).wall == 1000.0


def test_failures_cost_what_daly_says():
    # Daly 2006, "A higher order estimate of the optimum checkpoint interval", eq. 9 and before: a segment of T seconds
    # takes (1 / l + R) (exp(l T) - 1) on average, with failures at rate l and R seconds to start again.
    rate, every, checkpoint, requeue, segments = 1 / 500.0, 200.0, 10.0, 60.0, 20
    faults = Faults(node_mtbf=4 / rate, every=every, checkpoint=checkpoint, requeue=requeue)
    life = live(segments * every, 4, faults, seed=3, repeats=4000)

    def segment(length):
        return (1 / rate + requeue) * (math.exp(rate * length) - 1)

    expected = (segments - 1) * segment(every + checkpoint) + segment(every)
    # The standard deviation of a run is below half of its mean: 4 sigmas of 4,000 runs.
    assert life.wall == pytest.approx(expected, rel=4 * 0.5 / math.sqrt(4000))
    assert life.queued == pytest.approx(life.failures * requeue, rel=0.05)
    total = segments * every + life.lost + life.checkpoints + life.queued
    assert life.wall == pytest.approx(total, rel=1e-9)
    assert life.held == pytest.approx(life.wall - life.queued)


@pytest.mark.parametrize(
    ("faults", "text"),
    [
        (Faults(node_mtbf=0.0), "node_mtbf: expected seconds > 0, found 0.0"),
        (Faults(checkpoint=-1.0), "checkpoint: expected seconds >= 0, found -1.0"),
        (Faults(node_mtbf=10.0), "every: expected checkpoints at most 30 s .12 failures. apart"),
    ],
)
def test_invalid_numbers_are_errors(faults, text):
    with pytest.raises(InputError, match=text):
        live(1e6, 4, faults)
