"""Peers: records and states that others read by themselves, and ranks that fall silent."""

import json
import threading
import time
from dataclasses import replace

import numpy as np
import pytest

from lsam_hpc import InputError
from lsam_hpc.rma import Peers, barrier
from lsam_hpc.rma.center import CHUNK_BYTES
from lsam_hpc.rma.peers import LEFT
from tests.helpers.mpis import ROOT, run

ALL = pytest.mark.mpi(np=[1, 2, 4])
SEVERAL = pytest.mark.mpi(np=[2, 4])
CHUNK = CHUNK_BYTES // 4


def until(condition, what, seconds=30.0):
    """Wait for a condition, with a deadline."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < seconds, f"not within {seconds} s: {what}"
        time.sleep(0.002)


@ALL
def test_records_at_the_start(comm):
    with Peers(comm) as peers:
        records = peers.records()
        assert records.shape == (comm.size,)
        for name in ("beats", "step", "total_step", "published"):
            assert (records[name] == 0).all()
        assert (records["meetings"] == 0).all()
        assert np.isnan(records["loss"]).all()
        assert np.isnan(records["results"]).all()
        assert len(peers.names) == comm.size
        assert all(peers.names)


@ALL
def test_every_rank_sees_what_the_others_told(comm):
    ranks = np.arange(comm.size)
    with Peers(comm, 3) as peers:
        for step in range(1, 11 + comm.rank):
            peers.beat(step, 100 * comm.rank + step, 1.0 / (1 + comm.rank) + step)
        for _ in range(comm.rank):
            peers.publish(np.ones(3, np.float32))
        records, lost = peers.meet(30.0, [comm.rank + 0.1, -1e300])
        assert lost == []
        assert (records["beats"] > 10 + ranks).all()  # a rank that waits beats
        np.testing.assert_array_equal(records["step"], 10 + ranks)
        np.testing.assert_array_equal(records["total_step"], 101 * ranks + 10)
        np.testing.assert_array_equal(records["loss"], 1.0 / (1 + ranks) + 10 + ranks)
        np.testing.assert_array_equal(records["published"], ranks)
        assert (records["meetings"] == 2).all()
        np.testing.assert_array_equal(records["results"][:, 0], ranks + 0.1)
        np.testing.assert_array_equal(records["results"][:, 1], -1e300)
        assert np.isnan(records["results"][:, 2:]).all()
        barrier(comm)


@ALL
def test_beats_are_seen_while_they_come(comm):
    # Each rank goes on only when it has seen every other at the same count: a store that stays unseen would hang it.
    with Peers(comm) as peers:
        for count in range(1, 101):
            peers.beat(count, count, 0.0)
            until(lambda count=count: (peers.records()["beats"] >= count).all(), f"beat {count}")


@ALL
def test_states_come_through(comm):
    for size in (1, 7, CHUNK, 2 * CHUNK + 5):
        with Peers(comm, size) as peers:
            out = np.full(size, np.nan, np.float32)
            assert [peers.read(rank, out) for rank in range(comm.size)] == [0] * comm.size
            barrier(comm)
            for count in (1, 2):
                peers.publish(np.arange(size, dtype=np.float32) + 1000 * comm.rank + count)
                barrier(comm)
                for rank in range(comm.size):
                    assert peers.read(rank, out) == count
                    np.testing.assert_array_equal(out, np.arange(size, dtype=np.float32) + 1000 * rank + count)
                barrier(comm)
            assert peers.torn == 0


@ALL
def test_states_may_be_float64(comm):
    with Peers(comm, 5, "float64") as peers:
        peers.publish(np.full(5, comm.rank + 1e-12))
        barrier(comm)
        out = np.empty(5)
        for rank in range(comm.size):
            assert peers.read(rank, out) == 1
            assert (out == rank + 1e-12).all()
        barrier(comm)


@SEVERAL
def test_a_read_is_whole_or_counted_as_torn(comm):
    # Rank 0 publishes states whose elements all equal their count as fast as it can; what the others read must agree.
    size, rounds = 4 * CHUNK, 300
    with Peers(comm, size) as peers:
        if comm.rank == 0:
            for count in range(1, rounds + 1):
                peers.publish(np.full(size, count, np.float32))
        else:
            out, count, seen = np.empty(size, np.float32), 0, set()
            while count < rounds:
                torn = peers.torn
                count = peers.read(0, out)
                if peers.torn == torn:
                    assert out.min() == out.max() == count
                else:
                    assert out.max() >= count  # what came during the read is newer
                seen.add(count)
            assert sorted(seen)[-1] == rounds
        barrier(comm)


@ALL
def test_a_rank_that_died_while_it_published_leaves_a_torn_state(comm):
    with Peers(comm, 4) as peers:
        peers.publish(np.full(4, comm.rank, np.float32))
        peers._sequence += 1  # as publish does before it writes
        peers._states.Sync()
        barrier(comm)
        out = np.empty(4, np.float32)
        for rank in range(comm.size):
            assert peers.read(rank, out) == 1
            assert (out == rank).all()
        assert peers.torn == comm.size
        barrier(comm)


@SEVERAL
def test_needs_no_help_from_a_rank_that_is_not_in_mpi(comm, tmp_path):
    # Rank 0 beats and publishes, both without MPI, until the others have read what they want: they leave files.
    with Peers(comm, 100_000) as peers:
        if comm.rank == 0:
            count = 0

            def go_on():
                nonlocal count
                count += 1
                peers.beat(count, count, 0.5)
                peers.publish(np.full(100_000, count, np.float32))
                return len(list(tmp_path.glob("done-*"))) == comm.size - 1

            until(go_on, "the others' reads")
        else:
            out = np.empty(100_000, np.float32)
            until(lambda: peers.read(0, out) >= 20 and peers.records()["beats"][0] >= 20, "20 states and beats")
            assert out.max() >= 20
            (tmp_path / f"done-{comm.rank}").touch()
        barrier(comm)


@SEVERAL
def test_silent_names_the_rank_that_stands_still_until_it_goes_on(comm, tmp_path):
    with Peers(comm) as peers:
        if comm.rank == 0:
            until(lambda: len(list(tmp_path.glob("silent-*"))) == comm.size - 1, "all others to notice")

            def go_on():
                peers.beat(1, 1, 1.0)
                return len(list(tmp_path.glob("alive-*"))) == comm.size - 1

            until(go_on, "all others to notice that it goes on")
        else:

            def look():
                peers.beat(1, 1, 1.0)
                return peers.silent(1.0)

            until(lambda: look() == [0], "rank 0 to be the only silent one")
            (tmp_path / f"silent-{comm.rank}").touch()
            until(lambda: look() == [], "rank 0 to be heard again")
            (tmp_path / f"alive-{comm.rank}").touch()

            def all_left():
                look()
                return len(list(tmp_path.glob("alive-*"))) == comm.size - 1

            until(all_left, "the others to have seen this one alive")
        barrier(comm)


@SEVERAL
def test_a_rank_that_has_left_is_never_silent(comm):
    with Peers(comm) as peers:
        if comm.rank == 0:
            peers._record["meetings"] = LEFT  # as `close` does
            peers.live()
        barrier(comm)
        others = [rank for rank in range(1, comm.size) if rank != comm.rank]
        until(lambda: peers.silent(0.05) == others, "all that have not finished to be silent")
        for _ in range(20):
            assert peers.silent(0.0) == others  # nothing stands still for less
        barrier(comm)


@SEVERAL
def test_beats_that_records_saw_first_count_for_silent(comm):
    # In step with each other: nobody beats between a rank's look at the records and its look for silent ranks.
    with Peers(comm) as peers:
        assert peers.silent(0.1) == []
        for step in range(4):
            barrier(comm)
            peers.beat(step, step, 0.0)
            barrier(comm)
            assert (peers.records()["beats"] == step + 1).all()
            time.sleep(0.1)
            assert peers.silent(0.1) == []
        barrier(comm)


@SEVERAL
def test_a_job_that_was_suspended_takes_nobody_for_dead(comm):
    with Peers(comm) as peers:
        others = [rank for rank in range(comm.size) if rank != comm.rank]
        assert peers.silent(0.4) == []
        time.sleep(1.0)  # nobody runs
        assert peers.silent(0.4) == []
        time.sleep(0.4)
        assert peers.silent(0.4) == others
        barrier(comm)


@ALL
def test_meet_waits_for_the_last_and_brings_the_results(comm):
    with Peers(comm) as peers:
        if comm.rank == 0:
            # The others wait for this rank; it sees them beat meanwhile.
            first = peers.records()["beats"][1:]

            def all_beat():
                peers.beat(1, 1, 1.0)
                return (peers.records()["beats"][1:] >= first + 5).all()

            until(all_beat, "the ranks that wait to beat")
        records, lost = peers.meet(30.0, [comm.rank, 2.5])
        assert lost == []
        assert (records["meetings"] >= 2).all()
        np.testing.assert_array_equal(records["results"][:, 0], np.arange(comm.size))
        assert (records["results"][:, 1] == 2.5).all()
        barrier(comm)


@SEVERAL
def test_meet_gives_up_on_a_silent_rank(comm, tmp_path):
    with Peers(comm) as peers:
        if comm.rank == 0:
            until(lambda: len(list(tmp_path.glob("done-*"))) == comm.size - 1, "the others to give up")
        else:
            records, lost = peers.meet(3.0, [comm.rank])
            assert lost == [0]
            assert records["meetings"].tolist() == [0] + [2] * (comm.size - 1)
            (tmp_path / f"done-{comm.rank}").touch()
        barrier(comm)


@SEVERAL
def test_a_late_rank_learns_that_it_was_given_up(comm, tmp_path):
    # Rank 0 comes when rank 1 has given it up; ranks that are more patient than rank 1 learn it too.
    with Peers(comm) as peers:
        if comm.rank == 0:
            until(lambda: peers.records()["lost"][1] == 1, "rank 1 to give this one up")
        _, lost = peers.meet(3.0 if comm.rank == 1 else 60.0)
        assert lost == [0]
        barrier(comm)


@ALL
def test_threads_may_share_it(comm):
    # A trainer that beats, an exchange thread that publishes and reads, and two that look.
    size = 50_000
    with Peers(comm, size) as peers:
        stop, errors = threading.Event(), []

        def exchange():
            out = np.empty(size, np.float32)
            for count in range(1, 201):
                peers.publish(np.full(size, count, np.float32))
                peers.read((comm.rank + 1) % comm.size, out)

        def look():
            while not stop.is_set():
                assert peers.silent(60.0) == []
                assert (peers.records()["beats"] >= 0).all()

        def keep(body):
            try:
                body()
            except BaseException as error:  # noqa: BLE001
                errors.append(error)

        threads = [threading.Thread(target=keep, args=(body,)) for body in (exchange, look, look)]
        for thread in threads:
            thread.start()
        step = 0
        while threads[0].is_alive():
            step += 1
            peers.beat(step, step, 0.0)
            time.sleep(0)
        stop.set()
        for thread in threads:
            thread.join()
        assert errors == []
        barrier(comm)
        records = peers.records()
        assert (records["published"] == 200).all()
        assert records["beats"][comm.rank] == step
        barrier(comm)


@ALL
def test_refuses_what_is_wrong(comm):
    with pytest.raises(InputError, match="peers: expected a size of 0 elements or more, found -1"):
        Peers(comm, -1)
    with Peers(comm, 4) as peers:
        for wrong in (np.ones(3, np.float32), np.ones(4), np.ones(8, np.float32)[::2]):
            with pytest.raises(InputError, match="publish: expected a contiguous float32 vector of 4 elements"):
                peers.publish(wrong)
            with pytest.raises(InputError, match="read: expected a contiguous float32 vector of 4 elements"):
                peers.read(0, wrong)
        with pytest.raises(InputError, match="meet: expected 16 results at most, found 17"):
            peers.meet(1.0, [0.0] * 17)
        assert (peers.records()["meetings"] == 0).all()
        barrier(comm)


@SEVERAL
def test_all_ranks_refuse_sizes_that_differ(comm):
    with pytest.raises(InputError, match="the peers' size: expected the same on every rank, found 4 on rank 0"):
        Peers(comm, 4 + comm.rank)


DYING = """
import json, os, signal, sys, time
from pathlib import Path
import numpy as np
from mpi4py import MPI
from lsam_hpc.rma import Peers

signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # MPICH sends it to the survivors
victim, folder, size = int(sys.argv[1]), Path(sys.argv[2]), 300_000
peers = Peers(MPI.COMM_WORLD, size)
me, state, step = peers.comm.rank, np.empty(size, np.float32), 0
deadline = time.monotonic() + 60
while not (silent := peers.silent(2.0)):
    if time.monotonic() > deadline:
        os._exit(5)
    step += 1
    peers.beat(step, 4 * step, 1.0)
    state[:] = step
    peers.publish(state)
    for rank in range(peers.comm.size):
        peers.read(rank, state)
    if me == victim and step == 20:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.01)
last = [peers.read(rank, state) for rank in range(peers.comm.size)]
records, lost = peers.meet(2.0, [me, step])
found = {"silent": silent, "lost": lost, "results": records["results"][:, 0].tolist(), "read": last}
(folder / f"{me}.tmp").write_text(json.dumps(found))
(folder / f"{me}.tmp").rename(folder / f"{me}.json")
peers.close(abandon=True)
os._exit(4)  # after a death MPI_Finalize never returns on Open MPI
"""
# mpiexec's flag that lets the others live, and its exit code: the survivors', or the signal that killed the victim.
SURVIVE = {"openmpi": ("--enable-recovery", 4), "mpich": ("-disable-auto-cleanup", 9)}


@pytest.mark.parametrize("victim", [0, 2])
def test_survivors_of_kill_9_name_the_dead_rank_and_leave(mpi, tmp_path, victim):
    script = tmp_path / "dying.py"
    script.write_text(DYING)
    flag, code = SURVIVE[mpi.name]
    words = (mpi.forked, "-m", "mpi4py", str(script), str(victim), str(tmp_path))
    surviving = replace(mpi, mpiexec=(*mpi.mpiexec, flag))
    done = run(surviving.command(4, *words), timeout=90, PYTHONPATH=str(ROOT))
    assert done.returncode == code, done.stdout + done.stderr
    survivors = [rank for rank in range(4) if rank != victim]
    if mpi.name == "openmpi":
        # It counts an exit code other than 0 as two ranks, and may return while the last one still leaves.
        until(lambda: len(list(tmp_path.glob("*.json"))) == len(survivors), "every survivor to tell")
    told = {int(file.stem): json.loads(file.read_text()) for file in tmp_path.glob("*.json")}
    # MPICH kills the survivors too, in one job of four; what those tell that it lets live is the same.
    assert set(told) <= set(survivors)
    for rank, found in told.items():
        assert found["silent"] == found["lost"] == [victim]
        assert [found["results"][other] for other in survivors] == survivors
        assert np.isnan(found["results"][victim])
        assert 19 <= found["read"][victim] <= 20
        assert found["read"][rank] > 20
