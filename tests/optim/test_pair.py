"""SAMPa and AsyncSAM on a pair of ranks equal those on a single rank."""

import subprocess
import sys

import torch

from lsam_hpc import SAM
from tests.helpers.mpis import ROOT
from tests.helpers.problems import batches, flat, network, step_on

PROGRAM = """
import datetime, os, sys
import torch
from torch import distributed
from lsam_hpc import SAM
from tests.helpers.problems import batches, flat, network, step_on
rank, folder = int(sys.argv[1]), sys.argv[2]
distributed.init_process_group(
    "gloo", f"file://{folder}/meet", datetime.timedelta(seconds=60), world_size=2, rank=rank
)
results = {}
for ascent in ("sampa", "asyncsam"):
    model, calls = network(), []
    base = torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9, weight_decay=0.01)
    opt = SAM(base, 0.2, ascent=ascent, pair=distributed.group.WORLD)
    model.register_forward_pre_hook(lambda *_: calls.append(1))
    for x, y in batches(10):
        step_on(model, opt, x, y)
    assert len(calls) == 10
    results[ascent] = flat(model)
torch.save(results, f"{folder}/{rank}.pt")
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
    results = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    for ascent in ("sampa", "asyncsam"):
        model = network()
        base = torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9, weight_decay=0.01)
        opt = SAM(base, 0.2, ascent=ascent)
        for x, y in batches(10):
            step_on(model, opt, x, y)
        assert torch.equal(results[0][ascent], results[1][ascent])
        torch.testing.assert_close(results[0][ascent], flat(model), rtol=0, atol=1e-12)
