"""PeerTable: records and states are read without the owner's help, and unresponsive ranks are detected."""

import json
import threading
import time
from dataclasses import replace

import numpy as np
import pytest

from lsam_hpc import InputError
from lsam_hpc.rma import PeerTable, barrier
from lsam_hpc.rma.center import CHUNK_BYTES
from lsam_hpc.rma.peer_table import LEFT
from tests.helpers.mpis import ROOT, run
from tests.helpers.waiting import wait_until

ALL = pytest.mark.mpi(np=[1, 2, 4])
SEVERAL = pytest.mark.mpi(np=[2, 4])
CHUNK = CHUNK_BYTES // 4


@ALL
def test_records_at_the_start(comm):
    with PeerTable(comm) as peers:
        records = peers.records()
        assert records.shape == (comm.size,)
        for name in ("heartbeats", "step", "global_step"):
            assert (records[name] == 0).all()
        assert (records["rounds"] == 0).all()
        assert np.isnan(records["loss"]).all()
        assert np.isnan(records["results"]).all()
        assert len(peers.names) == comm.size
        assert all(peers.names)


@ALL
def test_every_rank_reads_the_records_of_all(comm):
    ranks = np.arange(comm.size)
    with PeerTable(comm) as peers:
        for step in range(1, 11 + comm.rank):
            peers.update(step, 100 * comm.rank + step, 1.0 / (1 + comm.rank) + step)
        records, failed = peers.rendezvous(30.0, [comm.rank + 0.1, -1e300])
        assert failed == []
        assert (records["heartbeats"] > 10 + ranks).all()  # a waiting rank sends heartbeats
        np.testing.assert_array_equal(records["step"], 10 + ranks)
        np.testing.assert_array_equal(records["global_step"], 101 * ranks + 10)
        np.testing.assert_array_equal(records["loss"], 1.0 / (1 + ranks) + 10 + ranks)
        assert (records["rounds"] == 2).all()
        np.testing.assert_array_equal(records["results"][:, 0], ranks + 0.1)
        np.testing.assert_array_equal(records["results"][:, 1], -1e300)
        assert np.isnan(records["results"][:, 2:]).all()
        barrier(comm)


@ALL
def test_heartbeats_become_visible(comm):
    # Each rank continues only when it has seen the same count of all ranks: a store that stays invisible would hang it.
    with PeerTable(comm) as peers:
        for count in range(1, 101):
            peers.update(count, count, 0.0)
            wait_until(lambda count=count: (peers.records()["heartbeats"] >= count).all(), f"heartbeat {count}")


@ALL
def test_published_states_are_read_unchanged(comm):
    for size in (1, 7, CHUNK, 2 * CHUNK + 5):
        with PeerTable(comm, size) as peers:
            out = np.full(size, np.nan, np.float32)
            assert [peers.states.read(rank, out) for rank in range(comm.size)] == [0] * comm.size
            barrier(comm)
            for count in (1, 2):
                peers.states.publish(np.arange(size, dtype=np.float32) + 1000 * comm.rank + count)
                barrier(comm)
                for rank in range(comm.size):
                    assert peers.states.read(rank, out) == count
                    np.testing.assert_array_equal(out, np.arange(size, dtype=np.float32) + 1000 * rank + count)
                barrier(comm)
            assert peers.states.torn_reads == 0


@ALL
def test_states_may_be_float64(comm):
    with PeerTable(comm, 5, "float64") as peers:
        peers.states.publish(np.full(5, comm.rank + 1e-12))
        barrier(comm)
        out = np.empty(5)
        for rank in range(comm.size):
            assert peers.states.read(rank, out) == 1
            assert (out == rank + 1e-12).all()
        barrier(comm)


@SEVERAL
def test_a_read_is_of_one_state_or_counted_as_torn(comm):
    # Rank 0 publishes states as fast as it can, all of whose elements equal their count; the others check their reads.
    size, rounds = 4 * CHUNK, 300
    with PeerTable(comm, size) as peers:
        if comm.rank == 0:
            for count in range(1, rounds + 1):
                peers.states.publish(np.full(size, count, np.float32))
        else:
            out, count, seen = np.empty(size, np.float32), 0, set()
            while count < rounds:
                torn = peers.states.torn_reads
                count = peers.states.read(0, out)
                if peers.states.torn_reads == torn:
                    assert out.min() == out.max() == count
                else:
                    assert out.max() >= count  # states published during the read are newer
                seen.add(count)
            assert sorted(seen)[-1] == rounds
        barrier(comm)


@ALL
def test_a_rank_that_died_while_it_published_leaves_a_torn_state(comm):
    with PeerTable(comm, 4) as peers:
        peers.states.publish(np.full(4, comm.rank, np.float32))
        peers.states._sequence += 1  # as publish does before it writes
        peers.states._window.Sync()
        barrier(comm)
        out = np.empty(4, np.float32)
        for rank in range(comm.size):
            assert peers.states.read(rank, out) == 1
            assert (out == rank).all()
        assert peers.states.torn_reads == comm.size
        barrier(comm)


@SEVERAL
def test_needs_no_help_from_a_rank_outside_mpi(comm, tmp_path):
    # Rank 0 sends heartbeats and publishes, both without MPI, until the others have finished: they write files.
    with PeerTable(comm, 100_000) as peers:
        if comm.rank == 0:
            count = 0

            def publish_next():
                nonlocal count
                count += 1
                peers.update(count, count, 0.5)
                peers.states.publish(np.full(100_000, count, np.float32))
                return len(list(tmp_path.glob("done-*"))) == comm.size - 1

            wait_until(publish_next, "the others' reads")
        else:
            out = np.empty(100_000, np.float32)
            wait_until(lambda: peers.states.read(0, out) >= 20 and peers.records()["heartbeats"][0] >= 20, "20 of each")
            assert out.max() >= 20
            (tmp_path / f"done-{comm.rank}").touch()
        barrier(comm)


@SEVERAL
def test_unresponsive_names_a_rank_until_its_next_heartbeat(comm, tmp_path):
    with PeerTable(comm) as peers:
        if comm.rank == 0:
            wait_until(lambda: len(list(tmp_path.glob("noticed-*"))) == comm.size - 1, "all others to notice")

            def resume():
                peers.update(1, 1, 1.0)
                return len(list(tmp_path.glob("alive-*"))) == comm.size - 1

            wait_until(resume, "all others to notice the new heartbeats")
        else:

            def check():
                peers.update(1, 1, 1.0)
                return peers.unresponsive(1.0)

            wait_until(lambda: check() == [0], "rank 0 to be the only unresponsive rank")
            (tmp_path / f"noticed-{comm.rank}").touch()
            wait_until(lambda: check() == [], "rank 0 to be responsive again")
            (tmp_path / f"alive-{comm.rank}").touch()

            def all_done():
                check()
                return len(list(tmp_path.glob("alive-*"))) == comm.size - 1

            wait_until(all_done, "the others to notice rank 0")
        barrier(comm)


@SEVERAL
def test_a_closed_rank_is_never_unresponsive(comm):
    with PeerTable(comm) as peers:
        if comm.rank == 0:
            peers._record["rounds"] = LEFT  # as `close` does
            peers.heartbeat()
        barrier(comm)
        others = [rank for rank in range(1, comm.size) if rank != comm.rank]
        wait_until(lambda: peers.unresponsive(0.05) == others, "all ranks that have not closed to be unresponsive")
        for _ in range(20):
            assert peers.unresponsive(0.0) == others  # the shortest time limit
        barrier(comm)


@SEVERAL
def test_heartbeats_read_by_records_count_for_unresponsive(comm):
    # Barriers ensure that no rank sends a heartbeat between `records` and `unresponsive`.
    with PeerTable(comm) as peers:
        assert peers.unresponsive(0.1) == []
        for step in range(4):
            barrier(comm)
            peers.update(step, step, 0.0)
            barrier(comm)
            assert (peers.records()["heartbeats"] == step + 1).all()
            time.sleep(0.1)
            assert peers.unresponsive(0.1) == []
        barrier(comm)


@SEVERAL
def test_a_resumed_job_takes_no_rank_for_dead(comm):
    with PeerTable(comm) as peers:
        others = [rank for rank in range(comm.size) if rank != comm.rank]
        assert peers.unresponsive(0.4) == []
        time.sleep(1.0)  # as if the job were suspended
        assert peers.unresponsive(0.4) == []
        time.sleep(0.4)
        assert peers.unresponsive(0.4) == others
        barrier(comm)


@ALL
def test_rendezvous_waits_for_the_last_rank_and_returns_all_results(comm):
    with PeerTable(comm) as peers:
        if comm.rank == 0:
            # The others wait for this rank and send heartbeats.
            first = peers.records()["heartbeats"][1:]

            def all_sent():
                peers.update(1, 1, 1.0)
                return (peers.records()["heartbeats"][1:] >= first + 5).all()

            wait_until(all_sent, "heartbeats of the waiting ranks")
        records, failed = peers.rendezvous(30.0, [comm.rank, 2.5])
        assert failed == []
        assert (records["rounds"] >= 2).all()
        np.testing.assert_array_equal(records["results"][:, 0], np.arange(comm.size))
        assert (records["results"][:, 1] == 2.5).all()
        barrier(comm)


@SEVERAL
def test_rendezvous_returns_its_results_also_when_the_others_are_in_the_next_one(comm):
    with PeerTable(comm) as peers:
        unresponsive = peers.unresponsive

        def late(after):  # in the second round, rank 0 looks when the others have begun the next rendezvous
            if peers.records()["rounds"][0] == 2:
                wait_until(lambda: (peers.records()["rounds"][1:] == 3).all(), "the next rendezvous")
            return unresponsive(after)

        if comm.rank == 0:
            peers.unresponsive = late
        for number in (1, 2):
            records, failed = peers.rendezvous(30.0, [number])
            assert failed == []
            assert (records["results"][:, 0] == number).all()


@SEVERAL
def test_rendezvous_gives_up_an_unresponsive_rank(comm, tmp_path):
    with PeerTable(comm) as peers:
        if comm.rank == 0:
            wait_until(lambda: len(list(tmp_path.glob("done-*"))) == comm.size - 1, "the others to give up")
        else:
            records, failed = peers.rendezvous(3.0, [comm.rank])
            assert failed == [0]
            assert records["rounds"].tolist() == [0] + [2] * (comm.size - 1)
            (tmp_path / f"done-{comm.rank}").touch()
        barrier(comm)


@SEVERAL
def test_a_late_rank_learns_that_it_was_given_up(comm, tmp_path):
    # Rank 0 comes after rank 1 has given it up; ranks with a longer time limit than rank 1's learn it too.
    with PeerTable(comm) as peers:
        if comm.rank == 0:
            wait_until(lambda: peers.records()["failed"][1] == 1, "rank 1 to give rank 0 up")
        _, failed = peers.rendezvous(3.0 if comm.rank == 1 else 60.0)
        assert failed == [0]
        barrier(comm)


@ALL
def test_threads_may_share_it(comm):
    # The training thread sends heartbeats, an exchange thread publishes and reads, two threads read records.
    size = 50_000
    with PeerTable(comm, size) as peers:
        stop, errors = threading.Event(), []

        def exchange():
            out = np.empty(size, np.float32)
            for count in range(1, 201):
                peers.states.publish(np.full(size, count, np.float32))
                peers.states.read((comm.rank + 1) % comm.size, out)

        def read_records():
            while not stop.is_set():
                assert peers.unresponsive(60.0) == []
                assert (peers.records()["heartbeats"] >= 0).all()

        def keep(body):
            try:
                body()
            except BaseException as error:  # noqa: BLE001
                errors.append(error)

        threads = [threading.Thread(target=keep, args=(body,)) for body in (exchange, read_records, read_records)]
        for thread in threads:
            thread.start()
        step = 0
        while threads[0].is_alive():
            step += 1
            peers.update(step, step, 0.0)
            time.sleep(0)
        stop.set()
        for thread in threads:
            thread.join()
        assert errors == []
        barrier(comm)
        records = peers.records()
        assert all(peers.states.read(rank, np.empty(size, np.float32)) == 200 for rank in range(comm.size))
        assert records["heartbeats"][comm.rank] == step
        barrier(comm)


@ALL
def test_refuses_wrong_arguments(comm):
    with pytest.raises(InputError, match="peers: expected a size of 0 elements or more, found -1"):
        PeerTable(comm, -1)
    with PeerTable(comm, 4) as peers:
        for wrong in (np.ones(3, np.float32), np.ones(4), np.ones(8, np.float32)[::2]):
            with pytest.raises(InputError, match="publish: expected a contiguous float32 vector of 4 elements"):
                peers.states.publish(wrong)
            with pytest.raises(InputError, match="read: expected a contiguous float32 vector of 4 elements"):
                peers.states.read(0, wrong)
        with pytest.raises(InputError, match="rendezvous: expected 16 results at most, found 17"):
            peers.rendezvous(1.0, [0.0] * 17)
        assert (peers.records()["rounds"] == 0).all()
        barrier(comm)


@SEVERAL
def test_all_ranks_refuse_sizes_that_differ(comm):
    with pytest.raises(InputError, match="the peers' size: expected the same on every rank, found 4 on rank 0"):
        PeerTable(comm, 4 + comm.rank)


DYING = """
import json, os, signal, sys, time
from pathlib import Path
import numpy as np
from mpi4py import MPI
from lsam_hpc.rma import PeerTable

signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # MPICH sends it to the survivors
victim, folder, size = int(sys.argv[1]), Path(sys.argv[2]), 300_000
peers = PeerTable(MPI.COMM_WORLD, size)
me, state, step = peers.comm.rank, np.empty(size, np.float32), 0
deadline = time.monotonic() + 60
while not (unresponsive := peers.unresponsive(2.0)):
    if time.monotonic() > deadline:
        os._exit(5)
    step += 1
    peers.update(step, 4 * step, 1.0)
    state[:] = step
    peers.states.publish(state)
    for rank in range(peers.comm.size):
        peers.states.read(rank, state)
    if me == victim and step == 20:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.01)
last = [peers.states.read(rank, state) for rank in range(peers.comm.size)]
records, failed = peers.rendezvous(2.0, [me, step])
report = {"unresponsive": unresponsive, "failed": failed, "results": records["results"][:, 0].tolist(), "read": last}
(folder / f"{me}.tmp").write_text(json.dumps(report))
(folder / f"{me}.tmp").rename(folder / f"{me}.json")
peers.close(abandon=True)
os._exit(4)  # after the death of a rank Open MPI's MPI_Finalize never returns
"""
# mpiexec's flag for surviving a rank's death, and its exit code: the survivors', or the signal that killed the victim.
SURVIVE = {"openmpi": ("--enable-recovery", 4), "mpich": ("-disable-auto-cleanup", 9)}


@pytest.mark.parametrize("victim", [0, 2])
def test_survivors_of_kill_9_name_the_dead_rank_and_exit(mpi, tmp_path, victim):
    script = tmp_path / "dying.py"
    script.write_text(DYING)
    flag, code = SURVIVE[mpi.name]
    words = (mpi.forked, "-m", "mpi4py", str(script), str(victim), str(tmp_path))
    surviving = replace(mpi, mpiexec=(*mpi.mpiexec, flag))
    done = run(surviving.command(4, *words), timeout=90, PYTHONPATH=str(ROOT))
    assert done.returncode == code, done.stdout + done.stderr
    survivors = [rank for rank in range(4) if rank != victim]
    if mpi.name == "openmpi":
        # mpirun counts an exit code other than 0 as two ranks, and may return before the last rank has ended.
        wait_until(lambda: len(list(tmp_path.glob("*.json"))) == len(survivors), "the reports of all survivors")
    reports = {int(file.stem): json.loads(file.read_text()) for file in tmp_path.glob("*.json")}
    # MPICH kills survivors too, in one job of four; the others must report the same.
    assert set(reports) <= set(survivors)
    for rank, report in reports.items():
        assert report["unresponsive"] == report["failed"] == [victim]
        assert [report["results"][other] for other in survivors] == survivors
        assert np.isnan(report["results"][victim])
        assert 19 <= report["read"][victim] <= 20
        assert report["read"][rank] > 20
