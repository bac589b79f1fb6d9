"""Points distributed over ranks: each evaluated once, with the same values for any number of ranks."""

import time

import numpy as np
import pytest

from lsam_hpc import InputError
from lsam_hpc.landscape.geometry.surface import Settings, scan
from lsam_hpc.landscape.workqueue import evaluate, read_points
from tests.helpers.landscapes import classifier, images, quadratic

ALL = pytest.mark.mpi(np=[1, 2, 4])


def value(index):
    return (index / 3, np.sqrt(index))


EXPECTED = np.array([value(i) for i in range(40)])


def shared(comm, tmp_path):
    """Return one folder for all ranks."""
    return comm.bcast(tmp_path) / "part"


@ALL
def test_each_point_once(comm, tmp_path):
    seen = []

    def work(index):
        seen.append(index)
        time.sleep(0.001)  # so that other ranks get points too
        return value(index)

    values = evaluate(work, 40, 2, shared(comm, tmp_path), {"a": 1}, comm=comm)
    np.testing.assert_array_equal(values, EXPECTED)
    assert sorted(index for part in comm.allgather(seen) for index in part) == list(range(40))


@ALL
def test_all_ranks_resume_the_work_of_one(comm, tmp_path):
    folder = shared(comm, tmp_path)
    if comm.rank == 0:
        evaluate(value, 25, 2, folder, {"a": 1})
        (folder / "points-0000.bin").rename(folder / "points-0007.bin")
        with open(folder / "points-0007.bin", "r+b") as file:
            file.truncate(24 * 28 + 5)  # the last record is incomplete
    comm.barrier()
    seen = []
    values = evaluate(lambda i: seen.append(i) or value(i), 40, 2, folder, {"a": 1}, comm=comm)
    np.testing.assert_array_equal(values, EXPECTED)
    assert sorted(index for part in comm.allgather(seen) for index in part) == list(range(24, 40))
    assert sorted(read_points(folder, 2, 40)) == list(range(40))


@ALL
def test_an_error_on_one_rank_is_raised_on_all(comm, tmp_path):
    def work(index):
        if index == 7:
            raise InputError("point 7: bad")
        return value(index)

    with pytest.raises(InputError, match="point 7: bad"):
        evaluate(work, 40, 2, shared(comm, tmp_path), {"a": 1}, comm=comm)
    with pytest.raises(InputError, match="expected points of the same options"):
        evaluate(work, 40, 2, shared(comm, tmp_path), {"a": 2}, comm=comm)


@ALL
def test_a_slow_rank_gets_fewer_points(comm):
    seen = []

    def work(index):
        seen.append(index)
        time.sleep(0.05 if comm.rank == comm.size - 1 else 0.001)
        return value(index)

    evaluate(work, 60, 2, comm=comm)
    counts = comm.allgather(len(seen))
    assert sum(counts) == 60
    assert comm.size == 1 or counts[-1] < 60 / comm.size / 2


@ALL
def test_a_surface_equals_that_of_one_rank_to_the_bit(comm):
    import torch

    from lsam_hpc.landscape.objective import Objective

    torch.manual_seed(0)
    f, _, _ = quadratic()
    g = Objective(classifier(), images())
    axis = np.linspace(-1, 1, 5)
    settings = Settings(("loss", "sam", "smoothed"), rho=0.1, samples=3)
    for objective in (f, g):
        directions = np.random.default_rng(0).standard_normal((2, objective.size))
        words = (objective, objective.start(), directions, axis, axis)
        alone, together = (scan(*words, settings=settings, comm=ranks) for ranks in (None, comm))
        for name, values in alone.values.items():
            assert values.tobytes() == together.values[name].tobytes()
