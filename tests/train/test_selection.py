"""Subsets, validation sets and label noise."""

import numpy as np
import pytest
import torch

from lsam_hpc import InputError
from lsam_hpc.train.data import load, of_arrays
from lsam_hpc.train.selection import balanced_order, select


@pytest.mark.parametrize("counts", [[50] * 10, [5, 300, 40, 155]])
def test_the_order_gives_each_class_its_share_in_any_part(counts):
    labels = np.repeat(np.arange(len(counts)), counts)
    order = balanced_order(labels, 0)
    assert sorted(order) == list(range(500))
    for begin in range(0, 500, 20):
        for end in range(begin, 501, 20):
            counted = np.bincount(labels[order[begin:end]], minlength=len(counts))
            assert np.abs(counted - (end - begin) * np.array(counts) / 500).max() <= 2
    assert not np.array_equal(order, balanced_order(labels, 1))
    # Where an image comes is random: its mean place over 400 orders is the middle within 5 standard errors (1e-6).
    places = np.mean([np.argsort(balanced_order(labels, seed))[:3] for seed in range(400)], 0)
    assert np.abs(places - 249.5).max() < 5 * 500 / np.sqrt(12 * 400)


def ids(images):
    """Each image's number, which is its only pixel."""
    return images._stored.flatten().tolist()


def test_subset_and_validation_share_no_image():
    numbers, labels = np.arange(100, dtype=np.uint8)[:, None, None, None], np.arange(100) % 10
    whole = of_arrays((numbers, labels), (numbers[:7] + 200, labels[:7]))
    subset = select(whole, subset=30)
    held = select(whole, subset=30, validation=20)
    rest = select(whole, validation=20)
    assert ids(subset.train_x) == ids(held.train_x) == ids(rest.train_x)[:30]
    assert subset.train_y.bincount().tolist() == [3] * 10
    assert held.test_y.bincount().tolist() == [2] * 10
    assert torch.equal(held.test_y, whole.train_y[ids(held.test_x)])  # of the training set, not of the test set
    assert torch.equal(held.train_y, whole.train_y[ids(held.train_x)])
    assert len(set(ids(rest.train_x)) | set(ids(rest.test_x))) == 100
    assert ids(subset.test_x) == ids(whole.test_x)
    assert ids(select(whole, subset=30, data_seed=1).train_x) != ids(subset.train_x)
    # The scale is the whole training set's.
    assert torch.equal(subset.train_x[:5], whole.train_x[torch.tensor(ids(subset.train_x)[:5])])


def test_label_noise_replaces_an_exact_part_by_other_classes_evenly():
    labels = np.arange(20000) % 10
    x = np.zeros((20000, 1, 1, 1), np.uint8)
    whole = of_arrays((x, labels), (x[:10], labels[:10]))
    noisy = select(whole, label_noise=0.3)
    moved = (noisy.train_y - whole.train_y) % 10
    assert int((moved != 0).sum()) == 6000
    counts = torch.bincount(moved, minlength=10)[1:].double()
    # chi-squared with 8 degrees of freedom is beyond 37 with probability 1e-5.
    assert ((counts - 6000 / 9) ** 2 / (6000 / 9)).sum() < 37
    assert torch.equal(select(whole, label_noise=0.3).train_y, noisy.train_y)
    assert not torch.equal(select(whole, label_noise=0.3, data_seed=1).train_y, noisy.train_y)
    assert torch.equal(noisy.test_y, whole.test_y)
    assert (select(whole, label_noise=1.0).train_y != whole.train_y).all()
    held = select(whole, validation=100, label_noise=1.0)
    clean = select(whole, validation=100)
    assert torch.equal(held.test_y, clean.test_y)  # held-out images keep their labels
    assert (held.train_y != clean.train_y).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"subset": 1349}, "--subset: expected at most 1348 training images, found 1349"),
        (
            {"subset": 1300, "validation": 49},
            "at most 1299 training images, without the 49 of --validation, found 1300",
        ),
        ({"validation": 1348}, "--validation: expected fewer than the 1348 training images, found 1348"),
    ],
)
def test_refuses_more_images_than_the_set_has(options, message):
    with pytest.raises(InputError, match=message):
        load("digits", None, **options)
