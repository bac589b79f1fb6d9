"""Sketches compared with exact inner products and distances."""

from itertools import pairwise

import numpy as np
import pytest
import scipy

from lsam_hpc import InputError
from lsam_hpc.trajectory import CountSketch, layer_groups
from lsam_hpc.trajectory.sketch import Group

SIZE = 200_000  # 3 blocks of 65,536 and a part


def vectors(kind, rng):
    """Return a pair of states that is hard for some kinds of hash functions."""
    x = rng.standard_normal(SIZE).astype(np.float32)
    match kind:
        case "gauss":
            return x, rng.standard_normal(SIZE).astype(np.float32)
        case "near":  # two chains that are close
            return x, x + np.float32(1e-3) * rng.standard_normal(SIZE).astype(np.float32)
        case "constant":  # like BatchNorm's scales: only random signs make the elements cancel
            return np.ones(SIZE, np.float32), 1 + np.float32(0.1) * x
        case "heavy":  # a few elements dominate the norm
            return x**5, np.where(rng.random(SIZE) < 1e-3, 100 * x, 0).astype(np.float32)
        case "blocks":  # the same in each block of the map
            y = np.resize(x[:65536], SIZE)
            return y, np.roll(y, 1)
    raise ValueError(kind)


@pytest.mark.parametrize("kind", ["gauss", "near", "constant", "heavy", "blocks"])
def test_inner_products_and_distances(kind):
    """Error within 5 / sqrt(m) for 1,024 buckets, over 60 seeds.

    The variance bound gives, by Chebyshev, at most (2 + 1/8) / 25 = 8.5 % failures of an inner product; a sketch that
    just meets this fails the test with probability below 1e-6 (binomial, 60 seeds). For a distance the bound on its
    square leaves 6.5 standard deviations, which no seed may exceed.
    """
    rng = np.random.default_rng(0)
    a, b = vectors(kind, rng)
    exact = float(a.astype(np.float64) @ b)
    lengths = float(np.linalg.norm(a.astype(np.float64)) * np.linalg.norm(b.astype(np.float64)))
    distance = float(np.linalg.norm(a.astype(np.float64) - b))
    errors, off = [], []
    for seed in range(60):
        sketch = CountSketch(SIZE, seed=seed)
        p, q = sketch(a)[0].astype(np.float64), sketch(b)[0].astype(np.float64)
        errors.append((p @ q - exact) / lengths)
        off.append(np.linalg.norm(p - q) / distance - 1)
    limit = 5 / np.sqrt(1024)
    allowed = scipy.stats.binom.isf(1e-6, 60, 0.085)
    assert np.count_nonzero(np.abs(errors) > limit) <= allowed
    assert np.abs(off).max() <= limit
    # Unbiased to 5 standard errors of a mean of 60, and a standard deviation of at most twice the theory's.
    deviation = np.sqrt((1 + (exact / lengths) ** 2) / 1024)
    assert abs(np.mean(errors)) <= 5 * deviation / np.sqrt(60)
    assert np.std(errors) <= 2 * deviation


def test_the_variance_agrees_with_the_theory():
    """Gaussian pairs: |a|^2 |b|^2 / m; 400 seeds give the variance to 7 %, 5 standard errors are 35 %."""
    rng = np.random.default_rng(1)
    a, b = rng.standard_normal((2, 20_000)).astype(np.float32)
    values = []
    for seed in range(400):
        p, q = (CountSketch(20_000, buckets=64, seed=seed)(v)[0].astype(np.float64) for v in (a, b))
        values.append(p @ q)
    assert np.var(values) == pytest.approx((a @ a) * (b @ b) / 64, rel=0.35)


def test_the_map_follows_its_definition():
    """The sign and the bucket of each element follow from the map's tables."""
    sketch = CountSketch(700, buckets=4, seed=3)
    matrix = np.stack([sketch(row)[0] for row in np.eye(700, dtype=np.float32)], axis=1)
    assert (np.abs(matrix).sum(0) == 1).all()
    assert (np.abs(matrix) <= 1).all()
    place = np.argsort(sketch.permutation)  # of a first-stage bucket in the sums
    for i in range(700):
        block, offset = divmod(i, sketch.width)
        lag, negative = sketch._lags[block]
        at = place[(offset + lag) % sketch.width]
        per = sketch.width // 4
        expected = np.zeros(4)
        sign = sketch.bucket_signs.reshape(-1)[at] * sketch.signs[offset]
        expected[at // per] = -sign if negative else sign
        np.testing.assert_array_equal(matrix[:, i], expected)
    # Buckets and signs are as balanced as those of a random map (5 standard deviations of a binomial).
    counts = np.abs(matrix).sum(1)
    assert np.abs(counts - 175).max() <= 5 * np.sqrt(700 * 3 / 16)
    assert abs(matrix.sum()) <= 5 * np.sqrt(700)


def test_parts_and_groups():
    rng = np.random.default_rng(2)
    vector = rng.standard_normal(SIZE).astype(np.float32)
    cuts = (0, 7, 65536, 150_001, SIZE)
    groups = tuple(Group(str(i), a, b) for i, (a, b) in enumerate(pairwise(cuts)))
    whole, grouped = CountSketch(SIZE), CountSketch(SIZE, groups)
    # Sums of about 200 elements of size 1 are rounded in another order.
    np.testing.assert_allclose(grouped(vector).sum(0), whole(vector)[0], atol=1e-4)
    for i, group in enumerate(groups):
        alone = np.zeros_like(vector)
        alone[group.start : group.stop] = vector[group.start : group.stop]
        np.testing.assert_array_equal(grouped(vector)[i], whole(alone)[0])
    parts = np.split(vector, [10, 100_000, 199_999])
    np.testing.assert_allclose(whole(*parts), whole(vector), atol=1e-4)
    np.testing.assert_array_equal(whole(*parts)[0], whole(*[p.reshape(1, -1) for p in parts])[0])


@pytest.mark.parametrize("size", [0, 1, 15, 16])
def test_small_vectors_are_kept_exactly(size):
    vector = np.arange(1, size + 1, dtype=np.float32)
    sketch = CountSketch(size, buckets=16)(vector)[0]
    np.testing.assert_array_equal(np.sort(np.abs(sketch)), np.sort(np.pad(vector, (0, 16 - size))))


def test_seeds_differ_and_tables_are_small():
    vector = np.ones(SIZE, np.float32)
    first, second = CountSketch(SIZE, seed=0), CountSketch(SIZE, seed=1)
    assert not np.array_equal(first(vector), second(vector))
    np.testing.assert_array_equal(first(vector), CountSketch(SIZE, seed=0)(vector))
    assert first.signs.nbytes + first.bucket_signs.nbytes + first.permutation.nbytes == 16 * 65536


def test_layer_groups():
    layout = [
        ("stem.weight", (100,)),
        ("a.conv.weight", (300,)),
        ("a.conv.bias", (10,)),
        ("a.bn.weight", (10,)),
        ("b.weight", (380,)),
        ("b.bias", ()),
        ("c.weight", (399,)),
    ]
    # A layer belongs to the third of the 1,200 elements that contains its middle.
    expected = (Group("stem - a.conv", 0, 410), Group("a.bn - b", 410, 801), Group("c", 801, 1200))
    assert layer_groups(layout, 3) == expected
    assert layer_groups(layout, 1) == (Group("stem - c", 0, 1200),)
    assert [g.name for g in layer_groups(layout, 100)] == ["stem", "a.conv", "a.bn", "b", "c"]
    assert layer_groups([], 3) == (Group("all", 0, 0),)
    assert len(layer_groups([(f"l{i}.weight", (7, i)) for i in range(50)])) == 4


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CountSketch(10, (Group("a", 0, 4), Group("b", 5, 10))), "groups: expected parts that cover 10"),
        (lambda: CountSketch(10, (Group("a", 0, 4),)), "groups: expected parts that cover 10 elements in order"),
        (lambda: CountSketch(10, (Group("a", 0, 12), Group("b", 12, 10))), "groups: expected parts that cover 10"),
        (lambda: CountSketch(10, buckets=0), "buckets: expected 1 or more, found 0"),
        (lambda: CountSketch(10)(np.ones(9, np.float32)), "sketch: expected 10 elements, found 9"),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(InputError, match=message):
        make()
