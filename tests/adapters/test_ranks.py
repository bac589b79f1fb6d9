"""The adapters on two ranks under mpirun, and under torchrun, which cannot start chains."""

import importlib.util
import subprocess
import sys

import pytest

from tests.helpers.mpis import ROOT, environment, run

TORCHRUN = """
from torch import distributed, nn, optim
from lsam_hpc import LSAM, SAM
distributed.init_process_group("gloo")
model = nn.parallel.DistributedDataParallel(nn.Linear(2, 2))
SAM(optim.SGD(model.parameters(), lr=0.1), rho=0.1)
try:
    LSAM(optim.SGD(model.parameters(), lr=0.1), rho=0.1)
except ValueError as error:
    print(f"rank {distributed.get_rank()}: {error}", flush=True)
"""


@pytest.mark.slow("imports four frameworks")
def test_the_page_and_the_loops_on_two_ranks(openmpi, tmp_path):
    for name in ("lightning", "transformers", "accelerate", "timm"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed: pip install lsam-hpc[dev]")
    words = [openmpi.python, "-m", "mpi4py", "-m", "tests.adapters.on_ranks", str(tmp_path)]
    done = run(openmpi.command(2, *words), timeout=280)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
    for text in ("equal to the loop, also resumed", "page: ", "torch.distributed: groups"):
        assert done.stdout.count(text) == {"page: ": 10}.get(text, 6 if "loop" in text else 2), done.stdout[-5000:]


@pytest.mark.slow("starts torchrun")
def test_torchrun_is_told_to_use_mpirun(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(TORCHRUN)
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    env = environment(PYTHONPATH=str(ROOT))
    done = subprocess.run(words, capture_output=True, text=True, env=env, timeout=120)
    for rank in range(2):
        assert f"rank {rank}: MPI: expected a world of 2 ranks, as torchrun's WORLD_SIZE says" in done.stdout, (
            done.stdout
        )
    assert done.stdout.count("start the script by mpirun -n 2 python") == 2
    assert done.returncode == 0
