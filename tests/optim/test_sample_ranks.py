"""Sample steps with weights on two ranks equal the step of one process on the whole batch."""

import itertools
import json
from functools import partial

import torch
from torch import distributed
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from lsam_hpc import SAM
from lsam_hpc.optim.samples import sample_step
from tests.helpers import gloo
from tests.helpers.problems import batches, network

WRAPPERS = {
    "ddp": DistributedDataParallel,
    "ddp with gradients in its buckets": partial(DistributedDataParallel, gradient_as_bucket_view=True),
    "ddp of a static graph": partial(DistributedDataParallel, static_graph=True),
    "ddp with unused parameters": partial(DistributedDataParallel, find_unused_parameters=True),
    "fsdp2": fully_shard,
}


def train(model, part, *, clean):
    """Take 10 steps on a part of each batch, with weights by the sample's place in the whole batch."""
    opt = SAM(torch.optim.SGD(model.parameters(), lr=0.3), 0.2, model=model)
    place = torch.linspace(0, 1, 16, dtype=torch.float64)[part]

    def weighting(losses):
        n = len(losses)
        return (1 + place) / n, (1 - place) / n if clean else None, (place**2 + losses / 5) / n

    for x, y in batches(10):

        def losses(chosen, x=x[part], y=y[part]):
            assert chosen is None
            return functional.cross_entropy(model(x), y, reduction="none")

        sample_step(opt, losses, weighting=weighting)
    tensors = (p.full_tensor() if isinstance(p, DTensor) else p for p in model.parameters())
    return torch.cat([t.detach().reshape(-1) for t in tensors])


def differences(folder):
    start = 8 * distributed.get_rank()
    found = {}
    for (name, wrap), clean in itertools.product(WRAPPERS.items(), (False, True)):
        ours = train(wrap(network()), slice(start, start + 8), clean=clean)
        found[f"{name}, {clean}"] = float((ours - train(network(), slice(16), clean=clean)).abs().max())
    (folder / f"{distributed.get_rank()}.json").write_text(json.dumps(found))


def test_two_ranks_equal_one_process(tmp_path):
    gloo.run(differences, tmp_path)
    for rank in range(2):
        found = json.loads((tmp_path / f"{rank}.json").read_text())
        assert {name: value for name, value in found.items() if not value <= 1e-12} == {}
