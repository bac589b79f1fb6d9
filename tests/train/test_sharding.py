"""Models of jobs that FSDP2 shards."""

import copy

import pytest
import torch
from torch import nn

from lsam_hpc.train.config import TrainConfig
from lsam_hpc.train.dataset import BATCH
from lsam_hpc.train.evaluation import evaluate
from lsam_hpc.train.gpt import gpt_tiny
from lsam_hpc.train.sharding import blocks, gathered, shard, stop_torch


@pytest.mark.mpi(np=[2])
@pytest.mark.alone
def test_bf16_is_gathered_and_all_that_lasts_is_float32(comm):
    config = TrainConfig(shard="fsdp2", group_size=2, precision="bf16")
    model, seen = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3)), []
    shard(model, config, torch.device("cpu"), comm)
    model[2].register_forward_pre_hook(lambda module, inputs: seen.append((module.weight.dtype, inputs[0].dtype)))
    output = model(torch.randn(4, 5))
    assert seen == [(torch.bfloat16, torch.bfloat16)]
    assert output.dtype == torch.float32
    output.sum().backward()
    for p in model.parameters():
        assert (p.dtype, p.grad.dtype) == (torch.float32, torch.float32)
        assert len(p.to_local()) == (len(p) + 1 - comm.rank) // 2
    whole = gathered(model.state_dict(), keep=comm.rank == 1)
    assert [tuple(t.shape) for t in whole.values()] == ([(7, 5), (7,), (3, 7), (3,)] if comm.rank else [])
    stop_torch()


@pytest.mark.mpi(np=[2])
@pytest.mark.alone
def test_the_ranks_of_a_chain_share_an_evaluation(comm):
    # Truth: the whole model and one cross-entropy over all samples. 1, 2 and 3 mini-batches, the last ones not full.
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3))
    whole = copy.deepcopy(model)
    shard(model, TrainConfig(shard="fsdp2", group_size=2), torch.device("cpu"), comm)
    for samples, passes in ((3, 1), (BATCH + 1, 1), (2 * BATCH + 5, 2)):
        x, y, seen = torch.randn(samples, 5), torch.randint(3, (samples,)), []
        hook = model.register_forward_pre_hook(lambda module, inputs, seen=seen: seen.append(len(inputs[0])))
        loss, error = evaluate(model, x, y)
        hook.remove()
        with torch.no_grad():
            logits = whole(x)
        assert loss == pytest.approx(float(nn.functional.cross_entropy(logits, y)), rel=1e-6)
        assert error == pytest.approx(100 * float((logits.argmax(1) != y).float().mean()), rel=1e-6)
        assert len(seen) == passes
    stop_torch()


def test_the_outermost_members_of_lists_are_gathered_one_at_a_time():
    inner, last = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), nn.Linear(2, 2)
    assert [*blocks(nn.Sequential(inner, nn.ReLU(), last))] == [inner, last]
    model = gpt_tiny((8,), 256)
    assert [*blocks(model)] == [*model.blocks]
