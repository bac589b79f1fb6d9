"""The logs of chains whose ranks hold shards of the model."""

import h5py
import numpy as np
import pytest

from lsam_hpc import LSAM, InputError
from lsam_hpc.rma import barrier
from lsam_hpc.rundir import open_log
from lsam_hpc.trajectory import RankLog, Run, index, merge
from tests.helpers.problems import batches, closure_of, network
from tests.mpi.test_sharded import RANKS, sgd, sharded, torch_ranks

OPTIONS = {"rho": 0.1, "mode": "lockstep", "period": 4}
STATES = "sample,center,perturbation"
LOGS = {"snapshot_every": "8", "snapshot_states": STATES, "sketch_states": STATES, "sketch_every": 1}


def trained(comm, folder, model, chain, index=0, ranks=1):
    """Log 20 steps of a chain, of whose mini-batches each rank has a part."""
    with (
        open_log(folder, model, comm, **LOGS) as log,
        LSAM(
            sgd(model), model=model, comm=comm, on_exchange=log.exchange, state_callback=log.state_callback, **OPTIONS
        ) as opt,
    ):
        log.first_states(opt)
        for step, (x, y) in enumerate(batches(20, seed=chain)):
            rows = slice(index * len(x) // ranks, (index + 1) * len(x) // ranks)
            loss = opt.step(closure_of(model, opt, x[rows], y[rows]))
            log.step(opt, step, float(loss.detach()))
        log.last_states(opt)
        opt.rendezvous()
        log.close(opt.stats())


@pytest.mark.mpi(np=[4])
def test_logs_of_shards_are_those_of_whole_chains(comm, tmp_path):
    chain, number = divmod(comm.rank, RANKS)
    pair = comm.Split(number, comm.rank)  # a rank of each chain
    with torch_ranks(comm, tmp_path):
        trained(comm, tmp_path / "sharded", sharded(comm), chain, number, RANKS)
        if number == 0:
            trained(pair, tmp_path / "whole", network(), chain)
    pair.Free()
    if comm.rank == 0:
        compare(tmp_path)
        merge(Run(tmp_path / "sharded"), tmp_path / "merged.h5")
        for state in STATES.split(","):
            np.testing.assert_array_equal(
                Run(tmp_path / "merged.h5").snapshot(1, -1, state), Run(tmp_path / "sharded").snapshot(1, -1, state)
            )
        with h5py.File(index(Run(tmp_path / "sharded"))) as file:
            assert file["step/loss"].shape == (2, 20)
            assert "snapshot" not in file
        partial(tmp_path / "sharded")
    barrier(comm)


def compare(folder):
    """Compare a run's files with those of chains that hold the model whole."""
    files = sorted(file.name for file in (folder / "sharded").glob("*.h5"))
    shards = [f"rank-{chain:04d}-shard-{shard:04d}.h5" for chain in range(2) for shard in range(RANKS)]
    assert files == sorted(["rank-0000.h5", "rank-0001.h5", *shards])
    run, other = Run(folder / "sharded"), Run(folder / "whole")
    assert run.ranks == [0, 1]
    assert run.layout == other.layout
    for rank in run.ranks:
        assert run.log(rank).tables == [*other.log(rank).tables]
        counts = other.log(rank).counts()
        assert run.log(rank).counts() == counts
        assert counts["step"] == 20
        for table in ("exchange", "step"):
            ours, whole = run.log(rank).table(table), other.log(rank).table(table)
            for name in ours.keys() - {"time", "seconds", "blocked", "bytes", "loss"}:
                np.testing.assert_allclose(ours[name], whole[name], atol=1e-6, err_msg=name)
        held = RankLog(folder / "sharded" / f"rank-{rank:04d}-shard-0000.h5").size
        assert (run.exchanges(rank)["bytes"] * run.size == other.exchanges(rank)["bytes"] * held).all()
        for state in STATES.split(","):
            ours, whole = run.sketch(rank, state), other.sketch(rank, state)
            assert ours["iteration"].tolist() == whole["iteration"].tolist()
            np.testing.assert_allclose(ours["values"], whole["values"], atol=1e-6)
            table = f"snapshot/{state}"
            rows, values = run.log(rank).values(table)
            assert rows["iteration"].tolist() == other.snapshots(rank, state)["iteration"].tolist()
            assert run.log(rank).whole(table) == list(range(len(values)))
            np.testing.assert_allclose(values, other.log(rank).values(table)[1], atol=1e-6)
            joined = np.full_like(values, np.nan)
            for at, block in run.log(rank).blocks(table, range(len(values))):
                joined[:, at : at + block.shape[1]] = block
            np.testing.assert_array_equal(joined, values)


def partial(folder):
    """Read a run with the file of a killed rank that has fewer snapshots, and without a file."""
    shard = folder / "rank-0001-shard-0001.h5"
    shard.rename(folder / "away.h5")
    with pytest.raises(InputError, match=r"rank-0001.h5: expected parts of 0.weight that make up \(.*\), found"):
        Run(folder)
    run = Run(folder, partial=True)
    assert run.ranks == [0]
    assert any("expected parts" in text for text in run.problems)
