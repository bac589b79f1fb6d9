"""How often states are sketched."""

import pytest

from lsam_hpc.options.logging import LoggingOptions
from lsam_hpc.rundir.runlog import sketch_interval


@pytest.mark.parametrize(
    ("steps", "period", "limit", "every", "expected"),
    [
        (5_000, 4, 1000, 1, 1),  # 1,250 exchanges of two sketches of 16 kB
        (5_000, 4, 1000, 7, 7),
        (39_789, 4, 1000, 1, 14),  # 9,947 exchanges, 326 MB; the tenth of the limit has room for 3,051
        (39_789, 4, 4000, 1, 1),
        (10_000_000, 100, 1000, 1, 3278),
    ],
)
def test_all_sketches_get_at_most_a_tenth_of_the_logs_limit(steps, period, limit, every, expected):
    options = LoggingOptions(sketch_every=every, log_limit=limit)
    interval = sketch_interval(options, 4, steps, period)
    assert interval == expected
    assert steps / max(period, interval) * 2 * 4 * 1024 * 4 <= 1e5 * limit + 1
