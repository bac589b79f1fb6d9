"""Consistent reads of the center contain complete adds only, and no rank waits for ever."""

import os
import signal
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest

from lsam_hpc.rma import Center, Counter, barrier
from lsam_hpc.rma.snapshot_lock import ADDING, WAITING
from tests.helpers.mpis import run
from tests.helpers.waiting import wait_until


@pytest.mark.mpi(np=[2, 3, 4])
def test_consistent_reads_contain_complete_adds(comm):
    # Half of the ranks add ones repeatedly, the others take snapshots: all elements must equal the version.
    size = (5 << 17) * comm.size + 7  # two chunks and a half in each shard
    done = Counter(comm)
    with Center(comm, size) as center:
        ones, out = np.ones(size, np.float32), np.empty(size, np.float32)
        adds = 0
        if comm.rank % 2 == 0:
            while done.value < comm.size // 2:
                center.add(ones)
                adds += 1
        else:
            seen = []
            while len(set(seen)) < 10:
                seen.append(center.read(out, consistent=True))
                assert out.min() == out.max() == seen[-1]
            assert seen == sorted(seen)
            done.add()
        barrier(comm)
        total = sum(comm.allgather(adds))
        assert center.read(out) == total
        assert (out == total).all()
    done.close()


@pytest.mark.mpi(np=[2, 4])
def test_repeated_snapshots_do_not_starve_adds(comm):
    done = Counter(comm)
    with Center(comm, 1000) as center:
        ones, out = np.ones(1000, np.float32), np.empty(1000, np.float32)
        if comm.rank == 0:
            for _ in range(50):
                center.add(ones)
            done.add()
        while done.value == 0:
            version = center.read(out, consistent=True)
            assert (out == version).all()
        barrier(comm)
        assert center.version == 50
    done.close()


@pytest.mark.mpi(np=[2, 4])
def test_a_waiting_add_precedes_the_next_snapshot(comm):
    turns, first = Counter(comm), []
    with Center(comm, 100) as center:
        ones, out = np.ones(100, np.float32), np.empty(100, np.float32)

        def until_rank_0_waits(out):
            turns.add()
            wait_until(lambda: center._lock._cells.value(0, ADDING) >= WAITING)
            return 0

        # A rank that loses its core before it takes the lock adds after the snapshot; that must not happen three times.
        for adds in (1, 2, 3):
            if comm.rank == 1:
                with patch.object(center, "_read", until_rank_0_waits):
                    center.read(out, consistent=True)
                version = center.read(out, consistent=True)
                assert (out == version).all()
                first.append(version == adds)
            elif comm.rank == 0:
                wait_until(lambda adds=adds: turns.value >= adds)
                center.add(ones)
            barrier(comm)
        assert any(first) or comm.rank != 1
    turns.close()


@pytest.mark.mpi(np=[2, 3])
def test_an_endless_snapshot_blocks_adds_for_twice_the_patience(comm):
    turns = Counter(comm)
    with Center(comm, 100, patience=1.0) as center:
        ones, out = np.ones(100, np.float32), np.empty(100, np.float32)
        if comm.rank == 1:

            def wait_for_rank_0(out):
                turns.add()
                wait_until(lambda: turns.value >= 2)
                return 0

            with (
                patch.object(center, "_read", wait_for_rank_0),
                pytest.raises(TimeoutError, match=r"expected an end within 2 s \(twice the patience\)"),
            ):
                center.read(out, consistent=True)
        elif comm.rank == 0:
            wait_until(lambda: turns.value >= 1)
            with pytest.warns(UserWarning, match="rank 1 has blocked adds for a snapshot for 2 s; adds continue"):
                center.add(ones)
            center.add(ones)  # without waiting
            assert center.read(out, consistent=True) == 2  # the next snapshot does not wait for rank 1's
            assert (out == 2).all()
            turns.add()
        barrier(comm)
        assert center.read(out, consistent=True) == 2
    turns.close()


@pytest.mark.mpi(np=[2, 4])
def test_a_snapshot_names_the_rank_of_an_endless_add(comm):
    turns = Counter(comm)
    with Center(comm, 100, patience=1.0) as center:
        ones, out = np.ones(100, np.float32), np.empty(100, np.float32)
        if comm.rank == 1:
            with center._lock.shared():
                turns.add()
                wait_until(lambda: turns.value >= 2)
        elif comm.rank == 0:
            wait_until(lambda: turns.value >= 1)
            with pytest.raises(TimeoutError, match="rank 1 has been in an add for 1 s"):
                center.read(out, consistent=True)
            turns.add()
        else:
            center.add(ones)  # the failed snapshot blocks no add
        barrier(comm)
        assert center.read(out, consistent=True) == comm.size - 2
    turns.close()


@pytest.mark.parametrize("mode", ["shared", "exclusive"])
def test_a_killed_rank_blocks_the_others_for_a_limited_time(mpi, mode, tmp_path):
    if mpi.name == "mpich":
        pytest.skip("MPICH sometimes ends the other ranks too, even with -disable-auto-cleanup")
    recovering = replace(mpi, mpiexec=(*mpi.mpiexec, "--enable-recovery"))
    body = f"from tests.mpi.test_snapshots import outlive; outlive({mode!r}, {str(tmp_path)!r})"
    done = run(recovering.command(3, mpi.forked, "-m", "mpi4py", "-c", body), timeout=60)
    results = {path.name: path.read_text() for path in tmp_path.iterdir()}
    expected = {"shared": "snapshot: rank 1 has been in an add for 1 s", "exclusive": "2.0"}[mode]
    assert set(results) == {"0", "2"}, done.stdout + done.stderr
    assert all(text.startswith(expected) for text in results.values()), results


def outlive(mode, folder):
    """Kill rank 1 while it holds the lock; the others add, take a snapshot and write the result to a file."""
    from mpi4py import MPI

    comm = MPI.COMM_WORLD
    center, turns = Center(comm, 100, patience=1.0), Counter(comm)
    ones, out = np.ones(100, np.float32), np.empty(100, np.float32)
    if comm.rank == 1:
        with getattr(center._lock, mode)():
            turns.add()
            os.kill(os.getpid(), signal.SIGKILL)
    wait_until(lambda: turns.value >= 1)
    center.add(ones)
    turns.add()
    wait_until(lambda: turns.value >= 3)
    try:
        center.read(out, consistent=True)
        result = str(out.max())
    except TimeoutError as error:
        result = str(error)
    (Path(folder) / str(comm.rank)).write_text(result)
    turns.add()
    wait_until(lambda: turns.value >= 5)
    os._exit(0)  # MPI_Finalize would wait for rank 1
