"""Layout: each element belongs to one shard, at the right offset, also beyond 2^31 elements."""

from itertools import pairwise

import pytest

from lsam_hpc.rma.layout import Layout

TOP = 1 << 31  # first index that a signed 32-bit integer cannot hold


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("size", [1, 2, 3, 7, 20, 23, 64])
@pytest.mark.parametrize("chunk", [1, 2, 5, 64])
def test_each_element_is_sent_once_to_its_offset(size, ranks, chunk):
    layout = Layout(size, ranks, chunk)
    shards = [[-1] * (size // ranks + 1) for _ in range(ranks)]
    for rank in range(ranks):
        for first, end, at in layout.chunks(rank):
            assert 0 < end - first <= chunk
            for element in range(first, end):
                assert shards[rank][at + element - first] == -1
                shards[rank][at + element - first] = element
    assert [element for shard in shards for element in shard if element >= 0] == list(range(size))
    assert all(-1 not in shard[: shard.index(-1)] for shard in shards if -1 in shard)  # no gaps


@pytest.mark.parametrize("ranks", [1, 2, 3, 7, 1000])
@pytest.mark.parametrize("size", [TOP - 1, TOP, TOP + 1, TOP + (1 << 20) + 7, 2 * TOP, 2 * TOP + 1, 5 * TOP + 3])
def test_indices_are_right_beyond_two_to_the_31(size, ranks):
    chunk = 1 << 18
    layout = Layout(size, ranks, chunk)
    bounds = [layout.bounds(rank) for rank in range(ranks)]
    assert bounds[0][0] == 0
    assert bounds[-1][1] == size
    assert all(before[1] == after[0] for before, after in pairwise(bounds))
    lengths = {high - low for low, high in bounds}
    assert max(lengths) - min(lengths) <= 1

    pieces = [(rank, *piece) for rank in range(ranks) for piece in layout.chunks(rank)]
    assert all(before[2] == after[1] for before, after in pairwise(pieces))
    assert sum(end - first for _, first, end, _ in pieces) == size
    assert len(pieces) == sum(-(-(high - low) // chunk) for low, high in bounds)
    assert all(end - first <= chunk and at == first - bounds[rank][0] for rank, first, end, at in pieces)

    edges = {0, size - 1, TOP - 1, TOP, TOP + 1, 2 * TOP - 1, 2 * TOP, *(e for pair in bounds for e in pair)}
    for element in sorted(edges | {e - 1 for e in edges}):
        holders = [(rank, at + element - first) for rank, first, end, at in pieces if first <= element < end]
        owners = [(rank, element - low) for rank, (low, high) in enumerate(bounds) if low <= element < high]
        assert holders == owners
        assert len(holders) == (0 <= element < size)


def test_order_starts_at_the_given_rank():
    assert list(Layout(10, 4, 1).order(2)) == [2, 3, 0, 1]
