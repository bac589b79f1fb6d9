"""ProgressThread: it makes busy ranks' windows accessible, and `close` ends it."""

import threading
import time
import warnings
from contextlib import nullcontext
from unittest.mock import Mock, patch

import numpy as np
import pytest
from mpi4py import MPI

from lsam_hpc import InputError
from lsam_hpc.rma import barrier
from lsam_hpc.rma.progress import ProgressThread, why_progress_needed
from tests.helpers.mpis import run

ALL = pytest.mark.mpi(np=[1, 2, 4])


def _compute_until(condition, seconds):
    """Compute outside MPI until a condition holds; return False if it does not hold after `seconds`."""
    a = np.random.default_rng(0).standard_normal((64, 64))
    began = time.monotonic()
    while not condition():
        if time.monotonic() - began > seconds:
            return False
        a = np.tanh(a @ a)
    return True


def _progress_threads():
    return [thread for thread in threading.enumerate() if thread.name == "lsam-progress"]


def _accessed_while_busy(comm, folder, helped, seconds):
    """Let rank 0 get from rank 1, which computes; return on rank 1 whether the get completed before it entered MPI."""
    memory = np.full(1000, comm.rank, np.float32)
    window = MPI.Win.Create(memory, 4, comm=comm)  # in private memory, so that the target must help
    window.Lock_all(MPI.MODE_NOCHECK)
    accessed = None
    with ProgressThread(comm) if helped else nullcontext():
        barrier(comm)
        if comm.rank == 0:
            received = np.empty_like(memory)
            assert _compute_until((folder / "busy").exists, 30)
            (folder / "begun").touch()
            window.Get(received, 1)
            window.Flush(1)
            (folder / "done").touch()
            assert (received == 1).all()
        if comm.rank == 1:
            (folder / "busy").touch()
            assert _compute_until((folder / "begun").exists, 30)
            accessed = _compute_until((folder / "done").exists, seconds)
    window.Unlock_all()
    window.Free()
    return accessed


@pytest.mark.mpi(np=[2, 4])
def test_a_busy_rank_is_accessible_with_the_thread(comm, tmp_path):
    assert _accessed_while_busy(comm, tmp_path, helped=True, seconds=30) is not False


@pytest.mark.mpi(np=[2, 4])
def test_a_busy_rank_is_not_accessible_without_it(comm, tmp_path):
    # Validates the test above.
    assert _accessed_while_busy(comm, tmp_path, helped=False, seconds=1) is not True


@ALL
def test_serves_while_the_rank_computes_and_ends_at_close(comm):
    served = []
    progress = ProgressThread(comm, serve=lambda: served.append(threading.current_thread().name))
    assert _compute_until(lambda: len(served) >= 10, 30)
    assert set(served) == {"lsam-progress"}
    assert len(_progress_threads()) == 1
    progress.close()
    assert not _progress_threads()
    count = len(served)
    progress.close()
    assert len(served) == count


@ALL
def test_a_rank_that_closes_first_serves_until_all_ranks_close(comm):
    served = []
    progress = ProgressThread(comm, serve=lambda: served.append(None))
    if comm.rank == comm.size - 1:  # the others wait in close
        assert _compute_until(lambda: len(served) >= 100, 30)
    progress.close()
    assert len(served) >= 50


@ALL
def test_opens_and_closes_many_times(comm):
    # Duplicates that are not freed would exhaust MPI's communicators: MPICH has 2048, Open MPI has no such limit.
    for cycle in range(2500 if MPI.get_vendor()[0] == "MPICH" else 300):
        with ProgressThread(comm, interval=1e-4 if cycle % 2 else 10.0):
            pass
    assert not _progress_threads()


@ALL
def test_an_error_in_the_thread_warns_once_and_is_raised_at_close(comm):
    def serve():
        raise KeyError("broken")

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        progress = ProgressThread(comm, serve=serve)
        assert _compute_until(lambda: progress.error is not None and caught, 30)
        assert len(_progress_threads()) == 1  # the thread continues: the other ranks need its probes
        with pytest.raises(KeyError, match="broken"):
            progress.close()
    assert len(caught) == 1
    assert "the progress thread failed: KeyError('broken')" in str(caught[0].message)
    assert not _progress_threads()
    progress.close()  # raises only once
    with ProgressThread(comm):
        pass


@ALL
def test_no_thread_is_needed_on_one_node(comm):
    assert why_progress_needed(comm) is None


@ALL
def test_ranks_on_several_nodes_need_it(comm):
    # An emulated cluster: each rank is alone on its node.
    scattered = Mock(size=comm.size, Split_type=lambda kind: MPI.COMM_SELF.Dup(), allreduce=comm.allreduce)
    expected = f"ranks span nodes: {comm.size} ranks, 1 on the emptiest node" if comm.size > 1 else None
    assert why_progress_needed(scattered) == expected


@ALL
def test_an_mpi_without_passive_progress_needs_it(comm):
    with patch.object(MPI, "get_vendor", lambda: ("MPICH", (4, 0, 2))):
        assert why_progress_needed(comm) == "MPICH 4.0.2 does not reach a busy rank's window"
    with patch.object(MPI, "get_vendor", lambda: ("MPICH", (4, 1, 0))):
        assert why_progress_needed(comm) is None


@ALL
def test_refuses_intervals_that_are_not_positive(comm):
    for wrong in (0, -1.0, float("nan")):
        with pytest.raises(InputError, match="progress interval: expected more than 0 seconds, found"):
            ProgressThread(comm, interval=wrong)
    assert not _progress_threads()


def test_refuses_mpi_thread_serialized(mpi):
    code = (
        "import mpi4py; mpi4py.rc.thread_level = 'serialized'; from mpi4py import MPI;"
        "from lsam_hpc.rma.progress import ProgressThread; ProgressThread(MPI.COMM_WORLD)"
    )
    done = run(mpi.command(1, mpi.forked, "-c", code), timeout=60)
    assert "expected MPI_THREAD_MULTIPLE for the progress thread, found MPI_THREAD_SERIALIZED" in done.stderr


def test_the_thread_of_a_rank_that_never_closes_ends_before_mpi_does(mpi):
    # Python runs exit handlers in reverse order of registration, and finalizes MPI after all of them.
    code = (
        "import atexit, threading; from mpi4py import MPI;"
        "atexit.register(lambda: print([t.name for t in threading.enumerate()], MPI.Is_finalized()));"
        "from lsam_hpc.rma.progress import ProgressThread; ProgressThread(MPI.COMM_WORLD)"
    )
    done = run(mpi.command(1, mpi.forked, "-c", code), timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "['MainThread'] False\n"
