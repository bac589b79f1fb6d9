"""Which states are logged, and how often."""

import numpy as np
import pytest
import torch

from lsam_hpc.optim.center import LocalCenter
from lsam_hpc.optim.lsam import LocalLSAM
from lsam_hpc.options.logging import LoggingOptions
from lsam_hpc.rundir.runlog import RunLog, sketch_interval
from lsam_hpc.trajectory import Earlier, Run
from tests.helpers.logs import attributes


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


def train(path, steps, options, earlier=None, state=None):
    """Log a chain's steps, with an exchange at every third; return the run and the chain's state."""
    path.mkdir()
    (path / "config.json").write_text("{}")
    x = torch.nn.Parameter(torch.arange(3.0))
    with RunLog(path, 0, [("x", (3,))], attributes(), options, earlier=earlier) as log:
        base, center = torch.optim.SGD([x], lr=0.1), LocalCenter(torch.arange(3.0))
        opt = LocalLSAM(base, center, pull=0.5, period=3, state_callback=log.state_callback)
        if state is not None:
            opt.load_state_dict(state)
        log.first_states(opt)

        def closure():
            opt.zero_grad()
            loss = x.sum()
            loss.backward()
            return loss

        for _ in range(steps):
            opt.step(closure)
        log.last_states(opt)
    return Run(path), opt.state_dict()


@pytest.mark.parametrize("more", [{}, {"sketch_every": 0}])
def test_the_initial_state_is_kept_and_once_only(tmp_path, more):
    options = LoggingOptions(snapshot_every="log", sketch_buckets=8, **more)
    run, state = train(tmp_path / "first", 14, options)
    for name in ("sample", "center"):
        np.testing.assert_array_equal(run.snapshots(0, name)["iteration"], [0, 3, 6, 9, 14])
        np.testing.assert_array_equal(run.snapshot(0, 0, name), np.arange(3))
    assert run.snapshots(0)["version"][0] == 0
    if not more:
        np.testing.assert_array_equal(run.sketch(0)["iteration"], [0, 3, 6, 9, 12, 14])
        np.testing.assert_array_equal(run.sketch(0)["values"][0], run.sketcher(np.arange(3)).sum(0))
    resumed, _ = train(tmp_path / "resumed", 2, options, Earlier(run.log(0), steps=14), state)
    np.testing.assert_array_equal(resumed.snapshots(0)["iteration"], [0, 3, 6, 9, 14, 16])
    without_log, _ = train(tmp_path / "lost", 2, options, None, state)
    assert without_log.snapshots(0)["iteration"][0] == 15


def test_a_run_without_states_has_no_initial_one(tmp_path):
    run, _ = train(tmp_path / "run", 3, LoggingOptions(sketch_every=0))
    assert not [table for table in run.log(0).tables if "/" in table]
