"""A loop of your own keeps a run directory: every number in it is one that the loop has seen."""

import json
import time

import numpy as np
import pytest
import torch

from lsam_hpc import LSAM, InputError
from lsam_hpc.rundir import open_log
from lsam_hpc.trajectory import Run, verify
from tests.helpers.problems import batches, closure_of, flat, network

STATES = "sample,center,perturbation"


@pytest.mark.mpi(np=[1, 2])
def test_the_log_of_an_own_loop_holds_what_the_loop_saw(comm, tmp_path):
    model, losses, moved = network(), [], []
    wanted = {"snapshot_every": "2", "snapshot_states": STATES, "sketch_buckets": 16}
    with open_log(tmp_path / "run", model, comm, config={"network": "small"}, seed=4, **wanted) as log:
        base = torch.optim.SGD(model.parameters(), lr=0.1)
        options = {"rho": 0.5, "pull": 0.25, "period": 2, "mode": "lockstep", "comm": comm}
        with LSAM(base, on_exchange=log.exchange, state_callback=log.state_callback, **options) as opt:
            log.first_states(opt)
            data = batches(6, seed=comm.rank)
            for step in opt.steps(6 * comm.size):
                x, closure = flat(model), closure_of(model, opt, *next(data))

                def at(x=x, closure=closure):
                    if opt.perturbation.active:
                        moved.append((flat(model) - x).numpy())
                    return closure()

                losses.append(float(opt.step(at)))
                log.step(opt, step, losses[-1])
            log.last_states(opt)
            log.close(opt.stats())
            with opt.center(model):
                center = flat(model).numpy()
        if comm.rank:
            time.sleep(0.3)  # rank 0, which holds the lock, is at the end of the context by now
        assert (tmp_path / "run" / "job.lock").exists()
    comm.Barrier()
    assert not (tmp_path / "run" / "job.lock").exists()
    run, rank = Run(tmp_path / "run"), comm.rank
    assert run.config == {"seed": 4, "network": "small"}
    assert json.loads((tmp_path / "run" / "config.json").read_text()) == run.config
    assert [(name, shape) for name, shape, _ in run.layout] == [
        (n, tuple(p.shape)) for n, p in model.named_parameters()
    ]
    assert run.log(rank).attributes["seed"] == 4
    np.testing.assert_array_equal(run.steps(rank)["loss"], np.float32(losses))
    np.testing.assert_array_equal(run.exchanges(rank)["iteration"], [2, 4, 6])
    np.testing.assert_array_equal(run.snapshots(rank)["iteration"], [0, 2, 4, 6, 6])
    np.testing.assert_array_equal(run.snapshot(rank, -1), flat(model).float())
    np.testing.assert_array_equal(run.snapshot(rank, -1, "center"), np.float32(center))
    for row, step in enumerate((2, 4, 6)):
        np.testing.assert_allclose(run.snapshot(rank, row, "perturbation"), moved[step - 1], rtol=0, atol=1e-6)
    assert run.result(rank)["exchanges"] == 3
    assert verify(run) == []
    with (
        pytest.raises(InputError, match="expected a directory without a run"),
        open_log(tmp_path / "run", model, comm, **wanted),
    ):
        pass
    with open_log(tmp_path / "run", model, comm, overwrite=True):
        pass
    comm.Barrier()
    assert Run(tmp_path / "run").config == {"seed": 0}


@pytest.mark.mpi(np=[2])
def test_options_that_have_no_meaning_make_no_directory(comm, tmp_path):
    model = network()
    for options, text in (
        ({"snapshots": 3}, "open_log: expected options of the logs, found snapshots"),
        ({"snapshot_every": "often"}, "snapshot_every: expected a number of steps"),
        ({"config": {"device": torch.device("cpu")}}, "config: expected values that JSON can hold"),
    ):
        with pytest.raises(InputError, match=text), open_log(tmp_path / "run", model, comm, **options):
            pass
    comm.Barrier()
    assert not (tmp_path / "run").exists()
