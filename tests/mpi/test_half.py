"""HalfPrecisionCenter: reads are rounded to 16 bits, and error feedback keeps the sum exact."""

import threading
import time
from itertools import chain

import ml_dtypes
import numpy as np
import pytest

from lsam_hpc import InputError
from lsam_hpc.rma import Center, barrier
from lsam_hpc.rma.half_precision import HalfPrecisionCenter
from tests.helpers import tearing

ALL = pytest.mark.mpi(np=[1, 2, 4])
MANY = pytest.mark.mpi(np=[2, 4])
WIRES = {"bfloat16": ml_dtypes.bfloat16, "float16": np.float16}
NEVER = 1e6  # seconds between rounds of the helper thread, so that it does nothing


def _until(condition, seconds=30.0):
    """Compute outside MPI until a condition holds; fail after `seconds`."""
    a = np.random.default_rng(0).standard_normal((64, 64))
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < seconds, f"the condition does not hold after {seconds} s"
        a = np.tanh(a @ a)


def _masters(comm, center):
    """Return the owners' y on every rank, with all inboxes applied."""
    barrier(comm)
    return np.concatenate([shard for shard, _, _ in comm.allgather(center.master())])


def _integers(rng, size, limit):
    """Return a delta of integers: sums below 2^24 are exact in float32, in any order."""
    return rng.integers(-limit, limit + 1, size).astype(np.float32)


@ALL
def test_starts_at_start_and_reads_rounded_to_nearest(comm):
    start = np.random.default_rng(0).standard_normal(1001).astype(np.float32)
    for wire, dtype in WIRES.items():
        with HalfPrecisionCenter(comm, 1001, wire, start) as center:
            out = np.empty(1001, np.float32)
            assert center.read(out) == center.version == 0
            np.testing.assert_array_equal(out, start.astype(dtype).astype(np.float32))
            np.testing.assert_array_equal(_masters(comm, center), start)
            shard, low, high = center.master()
            np.testing.assert_array_equal(shard, start[low:high])


@pytest.mark.mpi(np=[4])
def test_elements_are_read_atomically(comm):
    with HalfPrecisionCenter(comm, tearing.SIZE, "bfloat16", tearing.START, interval=1e-4) as center:
        tearing.check_elements_are_whole(comm, center)


@ALL
def test_y_and_the_residuals_are_the_sum_of_all_deltas(comm):
    # All numbers are integers below 2^24, so the sum is exact to the bit; a delta needs 14 bits, more than either type.
    # Two threads of each rank add and read at the same time as the helper thread.
    for wire in WIRES:
        with HalfPrecisionCenter(comm, 10_007, wire, interval=1e-4) as center:
            deltas = np.zeros((2, center.size))

            def work(thread, center=center, deltas=deltas):
                rng = np.random.default_rng([comm.rank, thread])
                out = np.empty(center.size, np.float32)
                for _ in range(100):
                    delta = _integers(rng, center.size, 1 << 13)
                    deltas[thread] += delta
                    center.add(delta)
                    center.read(out)

            threads = [threading.Thread(target=work, args=(thread,)) for thread in range(2)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            expected = comm.allreduce(deltas.sum(0))
            assert abs(expected).max() < 1 << 24
            owed = comm.allreduce(center.residual.astype(np.float64))
            np.testing.assert_array_equal(_masters(comm, center) + owed, expected)
            assert comm.size == 1 or abs(owed).max() > 0
            exact = np.empty(center.size, np.float32)
            assert center.gather(exact) == 200 * comm.size
            np.testing.assert_array_equal(exact, expected)
            assert not center.residual.any()
            assert (center.versions() == 200 * comm.size).all()


@ALL
def test_fractions_add_up_to_rounding(comm):
    # A float32 sum of n terms errs by at most n * 2^-24 * (sum of their magnitudes), in the shard and in residuals.
    for wire in WIRES:
        with HalfPrecisionCenter(comm, 3001, wire) as center:
            rng = np.random.default_rng(comm.rank)
            deltas = 1e-3 * rng.standard_normal((200, center.size)).astype(np.float32)
            for delta in deltas:
                center.add(delta)
            expected = comm.allreduce(deltas.sum(0, dtype=np.float64))
            bound = 2 * 200 * comm.size * 2**-24 * comm.allreduce(abs(deltas).sum(0, dtype=np.float64))
            owed = comm.allreduce(center.residual.astype(np.float64))
            assert (abs(_masters(comm, center) + owed - expected) <= bound).all()
            exact = np.empty(center.size, np.float32)
            center.gather(exact)
            assert (abs(exact - expected) <= bound).all()


@ALL
def test_is_exact_if_shards_and_chunks_do_not_divide_the_size(comm):
    for size in (1, 2, 3, 5, (1 << 19) * comm.size + 7):
        with HalfPrecisionCenter(comm, size, "bfloat16") as center:
            delta = np.arange(size, dtype=np.float32) % 1000
            for _ in range(3):
                center.add(delta)
            out = np.empty(size, np.float32)
            assert center.gather(out) == 3 * comm.size
            np.testing.assert_array_equal(out, 3 * comm.size * delta)
            center.read(out)
            np.testing.assert_array_equal(out, (3 * comm.size * delta).astype(ml_dtypes.bfloat16).astype(np.float32))


SMALL = np.float32(838 * 2**-23)  # 1e-4, halfway between two bfloat16; adding it to 1 is exact in float32 below 2


def _error_of_small_deltas(comm, feedback):
    """Add SMALL to ones 301 times on each rank; return the error of y's worst element."""
    delta = np.full(64, SMALL)
    with HalfPrecisionCenter(comm, 64, "bfloat16", np.ones(64, np.float32)) as center:
        for _ in range(301):
            _until(lambda: not center._owner.cells.values(comm.rank).any())  # until the last one is applied
            center.add(delta)
            if not feedback:
                center._residual[:] = 0
        y = _masters(comm, center)
    return abs(y - (1 + 301 * comm.size * np.float64(SMALL))).max()


@ALL
def test_small_deltas_are_not_rounded_away(comm):
    # The missing part is in the residuals: each is the rounding error of one number of about SMALL.
    bound = comm.size * 2**-8 * 1.01 * SMALL
    assert _error_of_small_deltas(comm, feedback=True) <= bound


@MANY
def test_small_deltas_are_rounded_away_without_feedback(comm):
    # Validates the test above: without feedback the rounding errors of all adds by others accumulate.
    one_error = abs(np.float64(SMALL.astype(ml_dtypes.bfloat16)) - np.float64(SMALL))
    error = _error_of_small_deltas(comm, feedback=False)
    assert error == 301 * (comm.size - 1) * one_error
    assert error > 50 * comm.size * 2**-8 * 1.01 * SMALL
    # A sum in bfloat16 would not change at all.
    one = np.ones(1, ml_dtypes.bfloat16)
    assert one + SMALL.astype(ml_dtypes.bfloat16) == one


@ALL
def test_counts_versions(comm):
    with HalfPrecisionCenter(comm, 10, "float16") as center:
        before = [center.add(np.ones(10, np.float32)) for _ in range(5)]
        assert before == sorted(set(before))
        barrier(comm)
        assert center.version == 5 * comm.size
        assert sorted(chain.from_iterable(comm.allgather(before))) == list(range(5 * comm.size))


@ALL
def test_a_read_returns_a_lower_bound_of_the_version(comm):
    # Every add raises all elements by one, so no element of a read is below the version that it returns. Integers up
    # to 256 are exact in bfloat16.
    with HalfPrecisionCenter(comm, 300_000, "bfloat16") as center:
        ones, out = np.ones(300_000, np.float32), np.empty(300_000, np.float32)
        latest = 0
        for _ in range(20):
            center.add(ones)
            version = center.read(out)
            assert out.min() >= version
            assert latest <= version <= center.version
            latest = version
        assert comm.size > 1 or latest == 20


@MANY
def test_a_full_inbox_blocks_no_rank_and_loses_nothing(comm):
    # Without the helper, rank 0's inboxes are emptied only by its own calls. Integers up to 255 are exact in bfloat16.
    with HalfPrecisionCenter(comm, 1000, "bfloat16", interval=NEVER) as center:
        shard = slice(*center._layout.bounds(0))
        rng = np.random.default_rng(comm.rank)
        deltas = [_integers(rng, 1000, 63) for _ in range(4)]
        if comm.rank > 0:
            for delta in deltas[:3]:
                center.add(delta)
            np.testing.assert_array_equal(center.residual[shard], (deltas[1] + deltas[2])[shard])
        barrier(comm)
        assert center.versions()[0] == 0
        barrier(comm)
        sent = comm.reduce(deltas[0] if comm.rank > 0 else 0 * deltas[0])
        if comm.rank == 0:
            np.testing.assert_array_equal(center.master()[0], sent[shard])
            assert center.versions()[0] == comm.size - 1
        barrier(comm)
        if comm.rank > 0:
            center.add(deltas[3])
            assert not center.residual[shard].any()
        barrier(comm)
        sent = comm.reduce(sum(deltas) if comm.rank > 0 else 0 * deltas[0])
        if comm.rank == 0:
            np.testing.assert_array_equal(center.master()[0], sent[shard])
            assert center.versions()[0] == center.version == 4 * (comm.size - 1)


@MANY
def test_a_rank_outside_mpi_applies_adds_of_others(comm, tmp_path):
    # Rank 0 computes until the others have seen all their adds in its shard.
    with HalfPrecisionCenter(comm, 100_000, "bfloat16") as center:
        if comm.rank == 0:
            _until(lambda: len(list(tmp_path.glob("seen-*"))) == comm.size - 1)
        else:
            out = np.empty(100_000, np.float32)
            for _ in range(10):
                center.add(np.ones_like(out))
                center.read(out)

            def all_applied():
                if center.residual[0] > 0:  # the inbox was full at an add
                    center.add(np.zeros_like(out))
                center.read(out)
                return out[0] == 10 * (comm.size - 1)

            _until(all_applied)
            (tmp_path / f"seen-{comm.rank}").touch()


@ALL
def test_gathers_between_adds_are_exact(comm):
    for size in (1, 777):
        with HalfPrecisionCenter(comm, size, "float16", interval=1e-4) as center:
            rng = np.random.default_rng(comm.rank)
            total, out = np.zeros(size), np.empty(size, np.float32)
            for turn in range(1, 31):
                for _ in range(3):
                    delta = _integers(rng, size, 1 << 13)
                    total += delta
                    center.add(delta)
                assert center.gather(out) == 3 * turn * comm.size
                np.testing.assert_array_equal(out, comm.allreduce(total))


@ALL
def test_float16_carries_values_beyond_its_range_over(comm):
    with HalfPrecisionCenter(comm, 8, "float16") as center:
        delta = np.float32([1e5, -1e5, 65504, -65520, 2e5, 1, 0, -7e4])
        for turn in range(5):
            center.add(delta * (turn == 0))
            master = _masters(comm, center)
        expected = np.full((comm.size, 8), delta).sum(0)
        np.testing.assert_array_equal(master, expected)
        assert not center.residual.any()
        out = np.empty(8, np.float32)
        center.read(out)
        np.testing.assert_array_equal(out, np.clip(expected, -65504, 65504).astype(np.float16).astype(np.float32))


class _Recorder:
    """Records the calls of an object's methods as (name, arguments)."""

    def __init__(self, target, calls):
        self._target, self._calls = target, calls

    def __getattr__(self, name):
        def call(*arguments):
            self._calls.append((name, arguments))
            return getattr(self._target, name)(*arguments)

        return call


@ALL
def test_transfers_half_the_bytes(comm):
    with HalfPrecisionCenter(comm, 1003, "bfloat16") as center:
        center._owner.window = _Recorder(center._owner.window, calls := [])
        vector = np.ones(1003, np.float32)
        center.read(vector)
        center.add(vector)
        low, high = center._layout.bounds(comm.rank)
        read = sum(arguments[1][0].nbytes for call, arguments in calls if call == "Get_accumulate")
        assert read == 2 * 1003
        assert sum(arguments[0][0].nbytes for call, arguments in calls if call == "Put") == 2 * (1003 - (high - low))
        assert center.wire_bytes == 2 * 1003
    with Center(comm, 1003) as single:
        assert single.wire_bytes == 2 * center.wire_bytes


@pytest.mark.mpi(np=[2])
def test_counts_an_add_first_and_sets_the_flag_last(comm):
    # On one node data arrives at once, so the sums would not reveal a flag that is set too early.
    with HalfPrecisionCenter(comm, (1 << 20) + 2, "bfloat16", interval=NEVER) as center:
        calls = []
        owner = center._owner
        owner.window, owner.cells = _Recorder(owner.window, calls), _Recorder(owner.cells, calls)
        center.add(np.ones(center.size, np.float32))
        me, other = comm.rank, 1 - comm.rank
        assert calls[0] == ("add", (0, owner.total))
        assert [name for name, _ in calls[-4:]] == ["Put", "Put", "Flush_all", "put"]
        assert calls[-1][1] == (me, {other: 1})


@ALL
def test_set_discards_pending_adds(comm):
    with HalfPrecisionCenter(comm, 100, "bfloat16", interval=NEVER) as center:
        for _ in range(3):
            center.add(np.full(100, 1.001, np.float32))
        barrier(comm)
        saved = np.arange(100, dtype=np.float32)
        center.set(saved, 17)
        barrier(comm)
        assert not center.residual.any()
        out = np.empty(100, np.float32)
        assert center.read(out) == center.version == 17
        np.testing.assert_array_equal(out, saved)
        barrier(comm)
        center.add(np.ones(100, np.float32))
        assert center.gather(out) == center.version == 17 + comm.size
        np.testing.assert_array_equal(out, saved + comm.size)


@ALL
def test_close_applies_full_inboxes(comm):
    center = HalfPrecisionCenter(comm, 500, "bfloat16", interval=NEVER)
    delta = _integers(np.random.default_rng(comm.rank), 500, 255)
    center.add(delta)
    center.close()
    master = np.concatenate([shard for shard, _, _ in comm.allgather(center.master())])
    np.testing.assert_array_equal(master + comm.allreduce(center.residual), comm.allreduce(delta))
    center.close()
    assert "lsam-progress" not in [thread.name for thread in threading.enumerate()]


@ALL
def test_refuses_wrong_vectors(comm):
    with HalfPrecisionCenter(comm, 4, "bfloat16") as center:
        for wrong in (np.ones(3, np.float32), np.ones(4), np.ones(8, np.float32)[::2]):
            for call in (center.add, center.read, center.gather, lambda vector: center.set(vector, 1)):
                with pytest.raises(InputError, match="expected a contiguous float32 vector of 4 elements"):
                    call(wrong)
        assert center.version == 0


@ALL
def test_refuses_wrong_starts(comm):
    for wrong, message in (
        ({"size": 0}, "center: expected a size of 1 element or more, found 0"),
        ({"start": np.ones(3, np.float32)}, r"center: expected start of shape \(4,\), found \(3,\)"),
        ({"start": np.ones(4)}, "center: expected start of float32 for wire_dtype bfloat16, found float64"),
        ({"wire_dtype": "int8"}, "wire_dtype: expected bfloat16 or float16"),
    ):
        with pytest.raises(InputError, match=message):
            HalfPrecisionCenter(comm, **{"size": 4, "wire_dtype": "bfloat16", **wrong})


@MANY
def test_all_ranks_refuse_arguments_that_differ(comm):
    first = comm.rank == 0
    start = np.ones(4, np.float32 if first else np.float64)
    for size, wire, start_here, message in (
        (4 + comm.rank, "float16", None, "the center's size: expected the same on every rank"),
        (4, "float16" if first else "bfloat16", None, "the center's dtype: expected the same on every rank"),
        (4, "float16" if first else "int8", None, "rank 1: wire_dtype: expected bfloat16 or float16"),
        (4, "float16", start, "the dtype of the center's start: expected the same on every rank"),
    ):
        with pytest.raises(InputError, match=message):
            HalfPrecisionCenter(comm, size, wire, start_here)
