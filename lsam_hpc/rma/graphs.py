"""Gossip graphs: which ranks read which others."""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np

from lsam_hpc.errors import InputError

Graph = Literal["random", "ring", "exponential"]
GRAPHS: tuple[Graph, ...] = get_args(Graph)


def neighbours(graph: Graph, rank: int, ranks: int, step: int, k: int, *, seed: int) -> list[int]:
    """Return the ranks that a rank reads at one exchange; computed without communication.

    * `"random"`: a uniformly random set of k others, drawn anew at each exchange.
    * `"ring"`: the k nearest, the same at each exchange: at distance +1, -1, +2, -2, ...
    * `"exponential"`: the ranks at distance +1, +2, +4, +8, ..., k of them per exchange, in turn. After
      ceil(log2(ranks)) exchanges every rank has received data from all ranks. If k exceeds log2(ranks), the other
      distances follow, shortest first.

    In a ring and an exponential graph each rank is read by exactly k others at each step.

    Args:
        graph: kind of graph.
        rank: the rank that reads.
        ranks: number of ranks; with 1 the result is empty.
        step: number of exchanges that the rank made before this one.
        k: number of ranks to read; more than ranks - 1 means all others.
        seed: seed of the random graph, the same on all ranks.

    Returns:
        k distinct ranks, without `rank`.

    Raises:
        InputError: the graph is unknown, or k is below 1.

    Source: the directed exponential graph is that of Assran et al. 2019, "Stochastic Gradient Push for Distributed Deep
    Learning" (arXiv 1811.10792); Ying et al. 2021, "Exponential Graph is Provably Efficient for Decentralized Deep
    Training" (arXiv 2110.13363), show that one peer at a time does as well as all of them.
    """
    if graph not in GRAPHS:
        raise InputError(f"graph: expected one of {', '.join(GRAPHS)}, found {graph!r}")
    if k < 1:
        raise InputError(f"neighbours: expected 1 or more, found {k}")
    k = min(k, ranks - 1)
    if k == 0:
        return []
    if graph == "random":
        # numpy accepts no negative seed.
        generator = np.random.default_rng([seed % 2**64, rank, step])
        hops = (1 + generator.choice(ranks - 1, k, replace=False)).tolist()
    elif graph == "ring":
        hops = [hop for distance in range(1, k // 2 + 2) for hop in (distance, -distance)]
    else:
        hops = _exponential(ranks, step, k)
    return [(rank + hop) % ranks for hop in hops[:k]]


def _exponential(ranks: int, step: int, k: int) -> list[int]:
    """Return at least k distances, powers of two first, continuing where the last step ended."""
    powers = [1 << i for i in range((ranks - 1).bit_length())]
    turn = step * k % len(powers)
    hops = powers[turn:] + powers[:turn]
    if k > len(hops):
        hops += sorted(set(range(1, ranks)) - set(hops))
    return hops
