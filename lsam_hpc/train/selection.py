"""Chooses the training images that are used, held out or mislabelled: the same for all ranks and methods."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lsam_hpc.errors import InputError
from lsam_hpc.train.dataset import Dataset, Labels

OPTIONS = ("subset", "validation", "label_noise", "data_seed")  # of `select`, named as in a run's config
_ORDER, _NOISE = 0, 1  # random streams of a seed


def select(
    dataset: Dataset, subset: int | None = None, validation: int = 0, label_noise: float = 0.0, data_seed: int = 0
) -> Dataset:
    """Return the part of a data set that a run uses.

    All training images are shuffled so that each class has its share in any part of the order, to within two images;
    windows of a text are shuffled.
    The last `validation` images replace the test set; the first `subset` images are trained on. These are the same
    with and without a validation set, as long as both fit.

    Args:
        dataset: the whole data set.
        subset: number of training images to use. Default: all that are not held out.
        validation: number of training images that become the test set, with correct labels. Default: 0, the real test
            set.
        label_noise: fraction of the used training labels that is replaced, each by another class; all other classes
            are equally likely. Default: 0.
        data_seed: of the order and of the label noise.

    Raises:
        InputError: there are fewer images than requested, or label noise is for text.
    """
    count = len(dataset.train_y)
    if validation >= count:
        raise InputError(f"--validation: expected fewer than the {count} training images, found {validation}")
    if subset is not None and subset > count - validation:
        rest = f", without the {validation} of --validation" if validation else ""
        raise InputError(f"--subset: expected at most {count - validation} training images{rest}, found {subset}")
    if validation or subset is not None:
        x, y = dataset.train_x, dataset.train_y
        classes = y.numpy() if isinstance(y, Tensor) else np.zeros(count, np.int64)
        order = torch.from_numpy(balanced_order(classes, data_seed))
        held = order[count - validation :]
        used = order[: count - validation if subset is None else subset]
        if validation:
            dataset = dataclasses.replace(dataset, test_x=x.subset(held), test_y=_subset(y, held))
        dataset = dataclasses.replace(dataset, train_x=x.subset(used), train_y=_subset(y, used))
    if label_noise:
        if not isinstance(dataset.train_y, Tensor):
            raise InputError(f"--label-noise: expected 0 with text, found {label_noise:g}")
        noisy = with_label_noise(dataset.train_y.numpy(), dataset.classes, label_noise, data_seed)
        dataset = dataclasses.replace(dataset, train_y=torch.from_numpy(noisy))
    return dataset


def _subset(labels: Labels, index: Tensor) -> Labels:
    return labels[index] if isinstance(labels, Tensor) else labels.subset(index)


def balanced_order(labels: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """Return a random order of images, shape (N,), in any part of which each class has its share.

    Args:
        labels: shape (N,).
        seed: of the order.
    """
    shuffled = np.random.default_rng([seed, _ORDER]).permutation(len(labels))
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    _, first, counts = np.unique(labels[by_class], return_index=True, return_counts=True)
    rank_in_class = np.arange(len(labels)) - np.repeat(first, counts)
    key = np.empty(len(labels))
    key[by_class] = (rank_in_class + 0.5) / np.repeat(counts, counts)  # spaces each class evenly over the whole order
    return shuffled[np.argsort(key[shuffled], kind="stable")]


def with_label_noise(labels: NDArray[np.int64], classes: int, part: float, seed: int) -> NDArray[np.int64]:
    """Return labels of which a random part is wrong.

    Args:
        labels: shape (N,), 0 to classes - 1; at least two classes.
        classes: number of classes; all wrong classes are equally likely.
        part: 0 to 1; round(part * N) labels are replaced.
        seed: of the random choice.
    """
    if classes < 2:
        raise InputError(f"--label-noise: expected data of at least two classes, found {classes}")
    rng = np.random.default_rng([seed, _NOISE])
    chosen = rng.permutation(len(labels))[: round(part * len(labels))]
    noisy = labels.copy()
    noisy[chosen] = (noisy[chosen] + rng.integers(1, classes, len(chosen))) % classes
    return noisy
