"""The gossip graphs, checked by brute force for 2 to 17 ranks."""

import itertools
import math
from collections import Counter

import pytest
import scipy

from lsam_hpc import InputError
from lsam_hpc.rma.graphs import GRAPHS, neighbours

SIZES = range(2, 18)
CASES = [(ranks, k, step) for ranks in SIZES for k in {1, 2, 3, ranks - 1} if k < ranks for step in range(7)]


def all_of(graph, ranks, step, k, seed=0):
    """Return the ranks that each rank reads."""
    return [neighbours(graph, rank, ranks, step, k, seed=seed) for rank in range(ranks)]


def reached(graph, ranks, k, steps):
    """Return, for each rank, the ranks whose data it has after some steps in which all ranks read at once."""
    sources = [{rank} for rank in range(ranks)]
    for step in range(steps):
        reads = all_of(graph, ranks, step, k)
        sources = [known.union(*(sources[other] for other in reads[rank])) for rank, known in enumerate(sources)]
    return sources


@pytest.mark.parametrize("graph", GRAPHS)
def test_reads_k_distinct_others(graph):
    for ranks, k, step in CASES:
        for rank, others in enumerate(all_of(graph, ranks, step, k)):
            assert len(others) == len(set(others)) == k
            assert rank not in others
            assert set(others) <= set(range(ranks))
            assert all(type(other) is int for other in others)


@pytest.mark.parametrize("graph", ["ring", "exponential"])
def test_each_rank_is_read_by_exactly_k(graph):
    for ranks, k, step in CASES:
        read = Counter(itertools.chain.from_iterable(all_of(graph, ranks, step, k)))
        assert read == dict.fromkeys(range(ranks), k)


def test_the_ring_alternates_right_and_left():
    assert neighbours("ring", 3, 10, 0, 5, seed=0) == [4, 2, 5, 1, 6]
    assert neighbours("ring", 0, 10, 9, 3, seed=0) == [1, 9, 2]
    assert neighbours("ring", 0, 4, 0, 3, seed=0) == [1, 3, 2]


def test_the_exponential_graph_takes_its_hops_in_turn():
    assert [neighbours("exponential", 5, 8, step, 1, seed=0) for step in range(4)] == [[6], [7], [1], [6]]
    assert [neighbours("exponential", 0, 10, step, 2, seed=0) for step in range(3)] == [[1, 2], [4, 8], [1, 2]]
    assert neighbours("exponential", 0, 6, 0, 5, seed=0) == [1, 2, 4, 3, 5]


def test_exponential_data_reaches_all_ranks_in_one_period():
    for ranks in SIZES:
        period = math.ceil(math.log2(ranks))
        for k in range(1, ranks):
            assert all(len(sources) == ranks for sources in reached("exponential", ranks, k, period))
        if ranks > 2:  # with one peer at a time the number of sources at most doubles
            assert not all(len(sources) == ranks for sources in reached("exponential", ranks, 1, period - 1))


def test_exponential_hops_are_all_taken_within_a_period():
    for ranks in SIZES:
        hops = {1 << i for i in range(math.ceil(math.log2(ranks)))}
        for k in range(1, len(hops) + 1):
            taken = [neighbours("exponential", 0, ranks, step, k, seed=0) for step in range(math.ceil(len(hops) / k))]
            assert set(itertools.chain.from_iterable(taken)) == hops


def test_ring_data_reaches_all_ranks_after_one_round():
    for ranks in SIZES:
        assert all(len(sources) == ranks for sources in reached("ring", ranks, 1, ranks - 1))
        if ranks > 3:
            assert not all(len(sources) == ranks for sources in reached("ring", ranks, 1, ranks - 2))


def test_random_data_reaches_all_ranks_in_8_log2_steps():
    for ranks in SIZES:
        assert all(len(sources) == ranks for sources in reached("random", ranks, 1, 8 * ranks.bit_length()))


@pytest.mark.parametrize(("ranks", "k"), [(5, 1), (5, 2), (8, 3)])
def test_every_random_set_is_as_likely_as_any(ranks, k):
    # Chi-square test at significance level 1e-3 for each rank; seeds are fixed, so the result is deterministic.
    for rank in range(ranks):
        drawn = Counter(frozenset(neighbours("random", rank, ranks, step, k, seed=7)) for step in range(4000))
        others = [other for other in range(ranks) if other != rank]
        counts = [drawn[frozenset(group)] for group in itertools.combinations(others, k)]
        assert sum(counts) == 4000
        assert scipy.stats.chisquare(counts).pvalue > 1e-3


def test_random_draws_are_reproducible_and_differ_by_seed_rank_and_step():
    def draws(rank=0, seed=3, first=0):
        return [neighbours("random", rank, 64, step, 3, seed=seed) for step in range(first, first + 20)]

    assert draws() == draws()
    assert draws() != draws(seed=4)
    assert draws() != draws(seed=-3)
    assert draws() != draws(first=20)
    assert [[(other - 1) % 64 for other in others] for others in draws(rank=1)] != draws()


@pytest.mark.parametrize("graph", GRAPHS)
def test_one_rank_has_no_neighbours_and_a_large_k_means_all(graph):
    assert neighbours(graph, 0, 1, 0, 3, seed=0) == []
    for ranks in SIZES:
        for rank in range(ranks):
            assert sorted([rank, *neighbours(graph, rank, ranks, 2, 100, seed=0)]) == list(range(ranks))


@pytest.mark.parametrize(
    ("graph", "k", "message"),
    [
        ("star", 1, "graph: expected one of random, ring, exponential, found 'star'"),
        ("ring", 0, "neighbours: expected 1 or more, found 0"),
    ],
)
def test_bad_input(graph, k, message):
    with pytest.raises(InputError, match=message):
        neighbours(graph, 0, 4, 0, k, seed=0)
