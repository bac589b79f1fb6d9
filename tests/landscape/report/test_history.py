"""Curves in bounded memory, against the buckets of the whole column."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from lsam_hpc.landscape.report.history import History


@pytest.mark.parametrize("rows", [0, 1, 7, 8, 9, 64, 1000])
def test_any_pieces_give_the_buckets_of_the_whole(rows):
    chance = np.random.default_rng(rows)
    x, y = np.cumsum(chance.random(rows)), chance.standard_normal(rows)
    y[chance.random(rows) < 0.2] = chance.choice([np.nan, np.inf, -np.inf])
    history, at = History(buckets=8), 0
    while at < rows:
        end = at + int(chance.integers(0, 40))
        history.add(x[at:end].astype(np.float64), y[at:end])
        at = end
    width = 1
    while rows > 8 * width:
        width *= 2
    assert (history.rows, history.width) == (rows, width)
    starts = range(0, rows, width)
    finite = np.where(np.isfinite(y), y, np.nan)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a bucket of NaN only
        expected = [
            [x[s : s + width].mean() for s in starts],
            *([function(finite[s : s + width]) for s in starts] for function in (np.nanmean, np.nanmin, np.nanmax)),
        ]
    for values, known in zip(history.curve(), expected, strict=True):
        np.testing.assert_allclose(values, known, rtol=1e-12)


def test_a_block_that_is_longer_than_all_buckets():
    history = History(buckets=4)
    history.add(np.arange(1000.0), np.arange(1000))
    x, mean, low, high = history.curve()
    assert history.width == 256
    assert low.tolist() == [0, 256, 512, 768]
    assert high.tolist() == [255, 511, 767, 999]
    assert mean.tolist() == x.tolist() == [127.5, 383.5, 639.5, 883.5]
