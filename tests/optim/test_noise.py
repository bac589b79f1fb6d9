"""The noise of chains that continue from a state without a generator's."""

import torch

from lsam_hpc.optim.noise import LangevinNoise


def test_ranks_that_were_in_different_steps_draw_different_numbers():
    draws = []
    for seed in range(3):
        for step in range(3):
            noise = LangevinNoise(torch.device("cpu"), seed)
            noise.load(None, step)
            draws.append(tuple(torch.randn(4, generator=noise.generator).tolist()))
    assert len(set(draws)) == 9
