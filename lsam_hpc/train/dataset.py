"""A data set in memory: images as bytes, normalised when they are taken out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lsam_hpc.errors import InputError

Arrays = tuple[NDArray[Any], NDArray[Any]]  # images and labels


class Images:
    """Images that take one byte a value where they are kept, and are float32 of mean 0 and deviation 1 when used.

    Args:
        stored: shape (N, C, H, W); uint8, or float32, which is given as it is.
        mean: of each channel, shape (C, 1, 1), in units of the bytes. Not used with float32.
        deviation: as mean.
    """

    def __init__(self, stored: Tensor, mean: Tensor, deviation: Tensor) -> None:
        self._stored, self._mean, self._deviation = stored, mean, deviation

    @property
    def shape(self) -> torch.Size:
        """(N, C, H, W)."""
        return self._stored.shape

    @property
    def bytes(self) -> int:
        """Memory that they take where they are kept."""
        return self._stored.numel() * self._stored.element_size()

    def __len__(self) -> int:
        return len(self._stored)

    def __getitem__(self, index: Tensor | slice) -> Tensor:
        """Return some of them, normalised, float32, shape (n, C, H, W)."""
        # index_select is several times as fast as indexing on bytes.
        some = self._stored[index] if isinstance(index, slice) else self._stored.index_select(0, index)
        return some if some.is_floating_point() else some.float().sub_(self._mean).div_(self._deviation)

    def split(self, size: int) -> Iterator[Tensor]:
        """Yield all of them in order, normalised, so many at once."""
        for begin in range(0, len(self), size):
            yield self[begin : begin + size]

    def subset(self, index: Tensor) -> Images:
        """Return some of them in a given order, as they are kept."""
        return Images(self._stored[index], self._mean, self._deviation)

    def to(self, device: torch.device) -> Images:
        """Return them on a device."""
        return Images(self._stored.to(device), self._mean.to(device), self._deviation.to(device))


@dataclass(frozen=True)
class Dataset:
    """Images, and labels from 0 to classes - 1; `of_arrays` makes one.

    Args:
        train_x: N images.
        train_y: int64, shape (N,).
        test_x: as train_x.
        test_y: as train_y.
        classes: how many there are.
        mirror: whether an image's mirror image may stand for it.
    """

    train_x: Images
    train_y: Tensor
    test_x: Images
    test_y: Tensor
    classes: int = 10
    mirror: bool = True

    def to(self, device: torch.device) -> Dataset:
        """Return the data set on a device."""
        x, y = self.train_x.to(device), self.train_y.to(device)
        return Dataset(x, y, self.test_x.to(device), self.test_y.to(device), self.classes, self.mirror)


def of_arrays(train: Arrays, test: Arrays, classes: int | None = None, mirror: bool = True) -> Dataset:
    """Return a data set of arrays in memory.

    Args:
        train: images of shape (N, C, H, W), uint8 (they will be normalised per channel with the mean and deviation of
            the training set) or floats (used as they are), and whole numbers of shape (N,), their labels.
        test: likewise.
        classes: labels are 0 to classes - 1. Default: the largest label decides.
        mirror: whether an image's mirror image may stand for it. Default: True.

    Raises:
        InputError: the arrays are no images and labels, or do not fit together.
    """
    parts = [(_images(f"{name} images", x), _labels(f"{name} labels", y)) for name, (x, y) in
             zip(("training", "test"), (train, test), strict=True)]  # fmt: skip
    (train_x, train_y), (test_x, test_y) = parts
    for name, (x, y) in zip(("training", "test"), parts, strict=True):
        if len(x) != len(y):
            raise InputError(f"{name} data: expected as many images as labels, found {len(x)} and {len(y)}")
        if len(x) == 0:
            raise InputError(f"{name} data: expected at least one image, found none")
    if train_x.shape[1:] != test_x.shape[1:] or train_x.dtype != test_x.dtype:
        raise InputError(
            f"test images: expected {tuple(train_x.shape[1:])} {train_x.dtype}, as those of the training set, "
            f"found {tuple(test_x.shape[1:])} {test_x.dtype}"
        )
    labels = torch.cat([train_y, test_y])
    low, high = int(labels.min()), int(labels.max())
    count = high + 1 if classes is None else classes
    if low < 0 or high >= count:
        raise InputError(f"labels: expected 0 to {count - 1}, found {low} to {high}")
    statistics = _statistics(train_x) if train_x.dtype == torch.uint8 else (torch.empty(0), torch.empty(0))
    return Dataset(Images(train_x, *statistics), train_y, Images(test_x, *statistics), test_y, count, mirror)


def _statistics(images: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and deviation of each channel of uint8 images, each of shape (C, 1, 1)."""
    values = torch.arange(256, dtype=torch.float64)
    # From histograms: a float32 copy of the images would take four times their memory.
    counts = torch.stack([torch.bincount(images[:, c].reshape(-1), minlength=256) for c in range(images.shape[1])])
    part = counts / counts.sum(1, keepdim=True, dtype=torch.float64)
    mean = part @ values
    deviation = (part @ values.square() - mean.square()).clamp_min(0).sqrt().clamp_min(1e-6)
    return mean.float()[:, None, None], deviation.float()[:, None, None]


def _images(what: str, given: Any) -> Tensor:  # noqa: ANN401 - one's own data
    found = _tensor(what, given)
    if found.ndim != 4 or not (found.dtype == torch.uint8 or found.is_floating_point()):
        raise InputError(
            f"{what}: expected shape (N, C, H, W) and uint8 or floats, found {tuple(found.shape)} {found.dtype}"
        )
    if found.is_floating_point() and not torch.isfinite(found).all():
        raise InputError(f"{what}: expected finite numbers, found others")
    return found.contiguous() if found.dtype == torch.uint8 else found.float().contiguous()


def _labels(what: str, given: Any) -> Tensor:  # noqa: ANN401 - one's own data
    found = _tensor(what, given)
    if found.ndim != 1 or found.is_floating_point() or found.is_complex() or found.dtype == torch.bool:
        raise InputError(f"{what}: expected whole numbers of shape (N,), found {tuple(found.shape)} {found.dtype}")
    return found.long()


def _tensor(what: str, given: Any) -> Tensor:  # noqa: ANN401 - one's own data
    try:
        if isinstance(given, Tensor):
            return given.detach().cpu()
        return torch.from_numpy(np.require(given, requirements=["C", "W"]))
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{what}: expected an array of numbers, found {type(given).__name__}") from error
