"""A job that is killed and resumed from its saved state gives the same bits as an undisturbed one."""

import pytest
import torch

from tests.helpers.mpis import run

PROGRAM = """
import os, signal, sys
import torch
from mpi4py import MPI
from lsam_hpc import LSAM
from lsam_hpc.rma import barrier
from tests.helpers.problems import batches, closure_of, flat, network
folder, mode = sys.argv[1:]
comm = MPI.COMM_WORLD
model = network(torch.float32)
base = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
opt = LSAM(base, rho=0.1, mode="lockstep", period=3, ascent="dp-sat", metric="adaptive", mask="random", comm=comm)
first = 0
if mode == "resume":
    saved = torch.load(f"{folder}/saved-{comm.rank}.pt", weights_only=True)
    model.load_state_dict(saved["model"])
    opt.load_state_dict(saved["opt"])
    first = 10
for step, (x, y) in enumerate(batches(30, torch.float32, seed=comm.rank)):
    if step < first:
        continue
    if step == 10 and mode == "killed":
        torch.save({"model": model.state_dict(), "opt": opt.state_dict()}, f"{folder}/saved-{comm.rank}.pt")
        barrier(comm)
    if step == 17 and mode == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    opt.step(closure_of(model, opt, x, y))
with opt.center(model):
    y = flat(model)
torch.save({"x": flat(model), "y": y}, f"{folder}/{mode}-{comm.rank}.pt")
opt.close()
"""


@pytest.mark.parametrize("ranks", [1, 4])
def test_saved_killed_and_resumed_is_the_uninterrupted_run(mpi, ranks, tmp_path):
    codes = {}
    for mode in ("whole", "killed", "resume"):
        codes[mode] = run(mpi.command(ranks, mpi.forked, "-c", PROGRAM, str(tmp_path), mode), 120).returncode
    assert codes["whole"] == codes["resume"] == 0
    assert codes["killed"] != 0
    for rank in range(ranks):
        whole, resumed = (torch.load(tmp_path / f"{m}-{rank}.pt", weights_only=True) for m in ("whole", "resume"))
        assert torch.equal(whole["x"], resumed["x"])
        assert torch.equal(whole["y"], resumed["y"])
    assert not list(tmp_path.glob("killed-*"))
