"""The shared center: exact sums, versions and reads, on 1 to 4 ranks."""

import time
from itertools import chain

import numpy as np
import pytest

from lsam_hpc import InputError
from lsam_hpc.rma import Center, Counter, barrier
from tests.helpers import tearing

ALL = pytest.mark.mpi(np=[1, 2, 3, 4])


@ALL
def test_starts_at_start_and_each_rank_initializes_its_shard(comm):
    start = np.arange(1001, dtype=np.float32)
    with Center(comm, 1001, start=start) as center:
        out = np.empty(1001, np.float32)
        assert center.read(out) == 0
        np.testing.assert_array_equal(out, start)


@ALL
def test_counts_versions(comm):
    with Center(comm, 10) as center:
        before = [center.add(np.ones(10, np.float32)) for _ in range(5)]
        assert before == sorted(set(before))  # versions are unique and increase
        barrier(comm)
        assert center.version == 5 * comm.size
        assert center.versions().tolist() == [5 * comm.size] * comm.size
        seen = comm.allgather(before)
        assert sorted(chain.from_iterable(seen)) == list(range(5 * comm.size))


@ALL
def test_set_replaces_the_vector_and_all_versions(comm):
    with Center(comm, 11, start=np.ones(11, np.float32)) as center:
        center.add(np.ones(11, np.float32))
        barrier(comm)
        center.set(np.arange(11, dtype=np.float32), 7)
        barrier(comm)
        out = np.empty(11, np.float32)
        assert center.read(out) == center.version == 7
        np.testing.assert_array_equal(out, np.arange(11))
        assert center.versions().tolist() == [7] * comm.size


@ALL
def test_a_read_returns_a_lower_bound_of_the_version(comm):
    # Every add raises all elements by one, so no element of a read is below the version that it returns.
    with Center(comm, 300_000) as center:
        ones, out = np.ones(300_000, np.float32), np.empty(300_000, np.float32)
        for _ in range(20):
            center.add(ones)
            version = center.read(out)
            assert out.min() >= version
        barrier(comm)
        assert center.read(out) == 20 * comm.size
        assert (out == 20 * comm.size).all()


@pytest.mark.mpi(np=[4])
def test_elements_are_read_atomically(comm):
    with Center(comm, tearing.SIZE, start=tearing.START) as center:
        tearing.check_elements_are_whole(comm, center)


@pytest.mark.mpi(np=[4])
def test_adds_of_ones_to_ten_million_elements_are_exact(comm):
    size, adds = 10_000_000, 50
    with Center(comm, size) as center:
        ones = np.ones(size, np.float32)
        for _ in range(adds):
            center.add(ones)
        barrier(comm)
        out = np.empty(size, np.float32)
        center.read(out)
        assert (out == adds * comm.size).all()
        assert center.version == adds * comm.size


@ALL
def test_is_exact_if_shards_and_chunks_do_not_divide_the_size(comm):
    for size in (1, 2, 3, 5, (1 << 18) + 1, (1 << 19) * comm.size + 7):
        with Center(comm, size) as center:
            delta = np.arange(size, dtype=np.float32) % 1000
            center.add(delta)
            barrier(comm)
            out = np.empty(size, np.float32)
            center.read(out)
            np.testing.assert_array_equal(out, delta * comm.size)


@ALL
def test_supports_float64(comm):
    with Center(comm, 7, "float64", np.full(7, 1e-9)) as center:
        center.add(np.ones(7))
        barrier(comm)
        out = np.empty(7)
        center.read(out)
        np.testing.assert_allclose(out, comm.size + 1e-9, rtol=0, atol=1e-15)


@ALL
def test_refuses_wrong_vectors(comm):
    with Center(comm, 4) as center:
        for wrong in (np.ones(3, np.float32), np.ones(4), np.ones(8, np.float32)[::2]):
            with pytest.raises(InputError, match="expected a contiguous float32 vector of 4 elements"):
                center.add(wrong)
            with pytest.raises(InputError, match="expected a contiguous float32 vector of 4 elements"):
                center.read(wrong)
        assert center.version == 0


@pytest.mark.mpi(np=[2, 3])
def test_all_ranks_refuse_sizes_that_differ(comm):
    with pytest.raises(
        InputError, match="the center's size: expected the same on every rank, found 4 on rank 0, 5 on rank 1"
    ):
        Center(comm, 4 + comm.rank)


@pytest.mark.slow("a million adds")
@pytest.mark.mpi(np=[4])
def test_a_million_small_adds_are_exact(comm):
    size, adds, pool = 64, 250_000, 1_000
    rng = np.random.default_rng(comm.rank)
    deltas = rng.integers(-3, 4, (pool, size)) * rng.integers(0, 2, (pool, size))
    deltas[np.arange(pool), rng.integers(0, size, pool)] += 1  # so that no delta is all zeros
    deltas = deltas.astype(np.float64)
    with Center(comm, size, "float64") as center:
        before = np.array([center.add(deltas[i % pool]) for i in range(adds)])
        barrier(comm)
        out = np.empty(size)
        assert center.read(out) == adds * comm.size
        assert center.versions().tolist() == [adds * comm.size] * comm.size
    np.testing.assert_array_equal(out, sum(comm.allgather(deltas.sum(0))) * (adds // pool))
    everything = np.sort(np.concatenate(comm.allgather(before)))
    np.testing.assert_array_equal(everything, np.arange(adds * comm.size))


@pytest.mark.mpi(np=[2, 4])
def test_needs_no_help_from_a_rank_outside_mpi(comm, tmp_path):
    # Rank 0 stays outside MPI until the others have done all their reads and adds: it waits for the files they write.
    with Center(comm, 1_000_000) as center:
        if comm.rank == 0:
            began = time.monotonic()
            while time.monotonic() - began < 2 or len(list(tmp_path.glob("done-*"))) < comm.size - 1:
                assert time.monotonic() - began < 30, f"only {[p.name for p in tmp_path.glob('done-*')]} finished"
                time.sleep(0.01)
        else:
            out = np.empty(1_000_000, np.float32)
            for _ in range(50):
                center.read(out)
                center.add(np.ones_like(out))
            center.read(out, consistent=True)
            assert out.min() == out.max()
            (tmp_path / f"done-{comm.rank}").touch()


@ALL
def test_counter_returns_each_number_once(comm):
    counter = Counter(comm, start=3)
    drawn = [counter.add() for _ in range(200)]
    everything = sorted(chain.from_iterable(comm.allgather(drawn)))
    assert everything == list(range(3, 3 + 200 * comm.size))
    assert counter.value == 3 + 200 * comm.size
    counter.close()
