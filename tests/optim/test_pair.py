"""The parallel ascent on a pair of ranks equals the one on a single rank."""

import subprocess
import sys

import pytest
import torch

from lsam_hpc import SAM
from tests.helpers.mpis import ROOT
from tests.helpers.problems import batches, closure_of, flat, network

PROGRAM = """
import datetime, os, sys
import torch
from torch import distributed
from lsam_hpc import SAM
from tests.helpers.problems import batches, closure_of, flat, network
rank, folder = int(sys.argv[1]), sys.argv[2]
distributed.init_process_group(
    "gloo", f"file://{folder}/meet", datetime.timedelta(seconds=60), world_size=2, rank=rank
)
model, calls = network(), []
opt = SAM(torch.optim.SGD(model.parameters(), lr=0.3), 0.2, ascent="parallel", pair=distributed.group.WORLD)
for x, y in batches(10):
    closure = closure_of(model, opt, x, y)
    opt.step(lambda: calls.append(1) or closure())
assert len(calls) == 11  # one more at the start of the first step
torch.save(flat(model), f"{folder}/{rank}.pt")
distributed.barrier()
os._exit(0)  # a normal exit may abort in gloo's threads
"""


def test_a_pair_of_ranks_equals_one_rank(tmp_path):
    jobs = [
        subprocess.Popen([sys.executable, "-c", PROGRAM, str(rank), str(tmp_path)], cwd=ROOT, stderr=subprocess.PIPE)
        for rank in range(2)
    ]
    errors = [job.communicate(timeout=120)[1].decode() for job in jobs]
    assert [job.returncode for job in jobs] == [0, 0], errors
    model = network()
    opt = SAM(torch.optim.SGD(model.parameters(), lr=0.3), 0.2, ascent="parallel")
    for x, y in batches(10):
        opt.step(closure_of(model, opt, x, y))
    results = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    assert torch.equal(results[0], results[1])
    torch.testing.assert_close(results[0], flat(model), rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", ["exact", "stale"])
def test_a_pair_needs_the_parallel_ascent(kind):
    with pytest.raises(ValueError, match=f"pair: expected two ranks and the parallel ascent, found {kind} ascent"):
        SAM(torch.optim.SGD(network().parameters(), lr=0.1), ascent=kind, pair=object())
