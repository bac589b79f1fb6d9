"""Consistent reads of the center: whole adds only, and nobody waits for ever."""

import os
import signal
import time
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest

from lsam_hpc.rma import Center, Counter, barrier
from lsam_hpc.rma.gate import ADDING, WAITING
from tests.helpers.mpis import run


@pytest.mark.mpi(np=[2, 3, 4])
def test_consistent_reads_hold_whole_adds(comm):
    # Half of the ranks add ones all the time, the others take snapshots: all elements alike, as many as versions.
    size = (5 << 17) * comm.size + 7  # two chunks and a half in each shard
    done = Counter(comm)
    with Center(comm, size) as center:
        ones, out = np.ones(size, np.float32), np.empty(size, np.float32)
        mine = 0
        if comm.rank % 2 == 0:
            while done.value < comm.size // 2:
                center.add(ones)
                mine += 1
        else:
            seen = []
            while len(set(seen)) < 10:
                seen.append(center.read(out, consistent=True))
                assert out.min() == out.max() == seen[-1]
            assert seen == sorted(seen)
            done.add()
        barrier(comm)
        total = sum(comm.allgather(mine))
        assert center.read(out) == total
        assert (out == total).all()
    done.close()


@pytest.mark.mpi(np=[2, 4])
def test_adds_go_on_between_snapshots_without_end(comm):
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
def test_an_add_that_waits_goes_before_the_next_snapshot(comm):
    turns, first = Counter(comm), []
    with Center(comm, 100) as center:
        ones, out = np.ones(100, np.float32), np.empty(100, np.float32)

        def until_rank_0_waits(out):
            turns.add()
            wait_until(lambda: center._gate._cells.value(0, ADDING) >= WAITING)
            return 0

        # A rank that loses its core between its turn and its look at the gate goes after the snapshot: not three times.
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
def test_a_snapshot_that_does_not_end_is_not_waited_for_longer_than_patience(comm):
    turns = Counter(comm)
    with Center(comm, 100, patience=1.0) as center:
        ones, out = np.ones(100, np.float32), np.empty(100, np.float32)
        if comm.rank == 1:

            def sleep_over_it(out):
                turns.add()
                wait_until(lambda: turns.value >= 2)
                return 0

            with (
                patch.object(center, "_read", sleep_over_it),
                pytest.raises(TimeoutError, match="done within 2 s, twice the patience"),
            ):
                center.read(out, consistent=True)
        elif comm.rank == 0:
            wait_until(lambda: turns.value >= 1)
            with pytest.warns(UserWarning, match="rank 1 has held up adds for a snapshot for 2 s; they go on"):
                center.add(ones)
            center.add(ones)  # at once
            assert center.read(out, consistent=True) == 2  # and the next snapshot gets past rank 1's
            assert (out == 2).all()
            turns.add()
        barrier(comm)
        assert center.read(out, consistent=True) == 2
    turns.close()


@pytest.mark.mpi(np=[2, 4])
def test_a_snapshot_names_the_rank_whose_add_does_not_end(comm):
    turns = Counter(comm)
    with Center(comm, 100, patience=1.0) as center:
        ones, out = np.ones(100, np.float32), np.empty(100, np.float32)
        if comm.rank == 1:
            with center._gate.change():
                turns.add()
                wait_until(lambda: turns.value >= 2)
        elif comm.rank == 0:
            wait_until(lambda: turns.value >= 1)
            with pytest.raises(TimeoutError, match="rank 1 has been in an add for 1 s"):
                center.read(out, consistent=True)
            turns.add()
        else:
            center.add(ones)  # the snapshot that failed holds up nobody
        barrier(comm)
        assert center.read(out, consistent=True) == comm.size - 2
    turns.close()


@pytest.mark.parametrize("where", ["change", "snapshot"])
def test_a_killed_rank_holds_up_nobody_for_ever(mpi, where, tmp_path):
    if mpi.name == "mpich":
        pytest.skip("MPICH ends the other ranks too, now and then even with -disable-auto-cleanup")
    recovering = replace(mpi, mpiexec=(*mpi.mpiexec, "--enable-recovery"))
    body = f"from tests.mpi.test_snapshots import outlive; outlive({where!r}, {str(tmp_path)!r})"
    done = run(recovering.command(3, mpi.forked, "-m", "mpi4py", "-c", body), timeout=60)
    told = {path.name: path.read_text() for path in tmp_path.iterdir()}
    expected = {"change": "snapshot: rank 1 has been in an add for 1 s", "snapshot": "2.0"}[where]
    assert set(told) == {"0", "2"}, done.stdout + done.stderr
    assert all(text.startswith(expected) for text in told.values()), told


def outlive(where, folder):
    """Rank 1 is killed while it adds or takes a snapshot; the others add, take a snapshot, and say how it went."""
    from mpi4py import MPI

    comm = MPI.COMM_WORLD
    center, turns = Center(comm, 100, patience=1.0), Counter(comm)
    ones, out = np.ones(100, np.float32), np.empty(100, np.float32)
    if comm.rank == 1:
        with getattr(center._gate, where)():
            turns.add()
            os.kill(os.getpid(), signal.SIGKILL)
    wait_until(lambda: turns.value >= 1)
    center.add(ones)
    turns.add()
    wait_until(lambda: turns.value >= 3)
    try:
        center.read(out, consistent=True)
        found = str(out.max())
    except TimeoutError as error:
        found = str(error)
    (Path(folder) / str(comm.rank)).write_text(found)
    turns.add()
    wait_until(lambda: turns.value >= 5)
    os._exit(0)  # MPI's own end would wait for rank 1


def wait_until(done, seconds=30):
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline, f"not done after {seconds} s"
        time.sleep(0.001)
