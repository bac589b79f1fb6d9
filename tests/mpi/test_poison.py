"""A rank whose parameters are corrupted at random steps damages neither the center nor the other ranks."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from mpi4py import MPI
from torch import Tensor, nn
from torch.nn import functional

from lsam_hpc import LSAM
from lsam_hpc.rma import barrier
from lsam_hpc.train.data import Dataset, load
from lsam_hpc.train.evaluation import evaluate
from lsam_hpc.train.models import MODELS

BAD = 3  # the rank
SEEDS = (0, 1)
STEPS = 600  # of each rank: 14 passes over the training set
# The center's test error after such a run of three good ranks was 1.6 % with a standard deviation of 0.36 % over 14
# seeds. The difference between the means of two runs with the bad rank and two without then has a standard deviation
# of 0.36 %; with Student's t of 13 degrees of freedom, each of the six numbers exceeds 3 % with probability 1e-6. A
# damaged center has an error of 90 %.
NOISE = 3.0


@pytest.mark.slow("a statistical trial: four trainings")
@pytest.mark.mpi(np=[4])
def test_deltas_of_a_corrupted_rank_are_rejected(comm: MPI.Intracomm) -> None:
    digits = load("digits", None)
    good = comm.Split(int(comm.rank == BAD), comm.rank)
    errors = {"with": np.empty((len(SEEDS), 2)), "without": np.empty((len(SEEDS), 2))}
    for i, seed in enumerate(SEEDS):
        if comm.rank != BAD:
            *errors["without"][i], rejected = train(good, digits, seed)
            assert rejected == 0
        barrier(comm)
        *errors["with"][i], rejected = train(comm, digits, seed)
        # About six in ten exchanges meet corrupted parameters; over 14 seeds at least 69 of the 150 were rejected.
        assert rejected > 40 if comm.rank == BAD else rejected == 0
    good.Free()
    if comm.rank != BAD:
        sample, center = errors["with"].mean(0) - errors["without"].mean(0)
        assert sample < NOISE
        assert center < NOISE


def train(comm: MPI.Intracomm, digits: Dataset, seed: int) -> tuple[float, float, int]:
    """Train a chain; return the test error of the sample and of the center in %, and the number of rejected deltas."""
    torch.manual_seed(seed)
    model = MODELS["mlp"]((1, 8, 8), 10)
    base = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    chance = torch.Generator().manual_seed(1000 * seed + comm.rank)
    total = STEPS * comm.size

    def closure() -> Tensor:
        base.zero_grad()
        chosen = torch.randint(len(digits.train_y), (32,), generator=chance)
        loss = functional.cross_entropy(model(digits.train_x[chosen]), digits.train_y[chosen])
        loss.backward()
        return loss

    # The pull for four ranks, so that the good ranks train alike with and without the bad one.
    with LSAM(base, pull=0.9 / 4, budget="per-rank", comm=comm) as opt:
        for step in opt.steps(total):
            base.param_groups[0]["lr"] = 0.05 * (1 + math.cos(math.pi * step / total))
            opt.step(closure)
            if comm.rank == BAD and torch.rand((), generator=chance) < 0.2:
                poison(model, chance)
            if opt.local_step % 20 == 0:
                with opt.center(model):
                    assert finite(model), f"the center is bad after step {opt.local_step}"
        _, of_sample = evaluate(model, digits.test_x, digits.test_y)
        opt.rendezvous()  # no rank changes the center any more
        with opt.center(model):
            assert finite(model), "the center is bad at the end"
            _, of_center = evaluate(model, digits.test_x, digits.test_y)
    return of_sample, of_center, opt.rejected


@torch.no_grad()
def poison(model: nn.Module, chance: torch.Generator) -> None:
    """Overwrite the parameters in one of five ways."""
    kind = int(torch.randint(5, (), generator=chance))
    for p in model.parameters():
        if kind < 3:
            p.fill_((math.nan, math.inf, 1e30)[kind])
        else:
            p.normal_(0, (1e3, 1.0)[kind - 3], generator=chance)


def finite(model: nn.Module) -> bool:
    """Return whether all parameters are finite."""
    return all(bool(p.isfinite().all()) for p in model.parameters())
