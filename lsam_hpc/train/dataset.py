"""A data set: images in memory, stored as bytes and normalised when they are read, or text in files."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lsam_hpc.errors import InputError
from lsam_hpc.train.text import Text

Arrays = tuple[NDArray[Any], NDArray[Any]]  # images and labels
BATCH, PREDICTIONS = 512, 2**14  # in an evaluation's batch, at most: samples, labels


class Images:
    """Images stored as one byte per value and read as float32 with mean 0 and standard deviation 1.

    Args:
        stored: shape (N, C, H, W), uint8, or float32, which is not normalised.
        mean: of each channel, shape (C, 1, 1), on the scale 0 to 255. Not used with float32.
        deviation: standard deviation, as mean.
    """

    def __init__(self, stored: Tensor, mean: Tensor, deviation: Tensor) -> None:
        self._stored, self._mean, self._deviation = stored, mean, deviation

    @property
    def shape(self) -> torch.Size:
        """(N, C, H, W)."""
        return self._stored.shape

    @property
    def bytes(self) -> int:
        """Memory of the stored images, in bytes."""
        return self._stored.numel() * self._stored.element_size()

    @property
    def limits(self) -> tuple[Tensor, Tensor] | tuple[None, None]:
        """The normalised values of the bytes 0 and 255, each of shape (C, 1, 1); None for images stored as floats."""
        if self._stored.is_floating_point():
            return None, None
        return -self._mean / self._deviation, (255 - self._mean) / self._deviation

    def __len__(self) -> int:
        return len(self._stored)

    def __getitem__(self, index: Tensor | slice) -> Tensor:
        """Return the chosen images, normalised, float32, shape (n, C, H, W)."""
        # index_select is several times as fast as indexing on bytes.
        some = self._stored[index] if isinstance(index, slice) else self._stored.index_select(0, index)
        return some if some.is_floating_point() else some.float().sub_(self._mean).div_(self._deviation)

    def split(self, size: int) -> Iterator[Tensor]:
        """Yield all images in order, normalised, `size` at a time."""
        for begin in range(0, len(self), size):
            yield self[begin : begin + size]

    def subset(self, index: Tensor) -> Images:
        """Return the chosen images in the order of `index`, still as bytes."""
        return Images(self._stored[index], self._mean, self._deviation)

    def to(self, device: torch.device) -> Images:
        """Return the images on a device."""
        return Images(self._stored.to(device), self._mean.to(device), self._deviation.to(device))


Inputs: TypeAlias = Images | Text
Labels: TypeAlias = Tensor | Text


@dataclass(frozen=True)
class Dataset:
    """Images or text, and labels from 0 to classes - 1; `of_arrays` makes one of images.

    Args:
        train_x: N images, or N windows of a text.
        train_y: int64, shape (N,), or of a text (N, context): the byte after each byte.
        test_x: as train_x.
        test_y: as train_y.
        classes: number of classes.
        mirror: whether the mirror image of an image keeps its label.
    """

    train_x: Inputs
    train_y: Labels
    test_x: Inputs
    test_y: Labels
    classes: int = 10
    mirror: bool = True

    @property
    def is_text(self) -> bool:
        """Whether the classes are the next bytes of a text."""
        return isinstance(self.train_y, Text)

    def to(self, device: torch.device) -> Dataset:
        """Return the data set on a device; of a text, what is read from it."""
        x, y = self.train_x.to(device), self.train_y.to(device)
        return Dataset(x, y, self.test_x.to(device), self.test_y.to(device), self.classes, self.mirror)


def batch_size(labels: Labels) -> int:
    """Return the number of samples per batch of an evaluation: 512 images, fewer windows of a text if they are long."""
    return max(1, min(BATCH, PREDICTIONS // labels.shape[1:].numel()))


def of_arrays(train: Arrays, test: Arrays, classes: int | None = None, *, mirror: bool = True) -> Dataset:
    """Return a data set made of arrays.

    Args:
        train: images of shape (N, C, H, W), uint8 (normalised per channel with the mean and standard deviation
            of the training set) or floats (not normalised), and their labels, integers of shape (N,).
        test: likewise.
        classes: labels are 0 to classes - 1. Default: the largest label plus 1.
        mirror: whether the mirror image of an image keeps its label. Default: True.

    Raises:
        InputError: the arrays are not images and labels, or their shapes do not match.
    """
    parts = [
        (_images(f"{name} images", x), _labels(f"{name} labels", y))
        for name, (x, y) in zip(("training", "test"), (train, test), strict=True)
    ]
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
    # Computed from histograms: a float32 copy of the images would take four times their memory.
    counts = torch.stack([torch.bincount(images[:, c].reshape(-1), minlength=256) for c in range(images.shape[1])])
    frequency = counts / counts.sum(1, keepdim=True, dtype=torch.float64)
    mean = frequency @ values
    deviation = (frequency @ values.square() - mean.square()).clamp_min(0).sqrt().clamp_min(1e-6)
    return mean.float()[:, None, None], deviation.float()[:, None, None]


def _images(name: str, values: Any) -> Tensor:  # noqa: ANN401 - arrays of the user
    images = _tensor(name, values)
    if images.ndim != 4 or not (images.dtype == torch.uint8 or images.is_floating_point()):
        raise InputError(
            f"{name}: expected shape (N, C, H, W) and uint8 or floats, found {tuple(images.shape)} {images.dtype}"
        )
    if images.is_floating_point() and not torch.isfinite(images).all():
        raise InputError(f"{name}: expected finite numbers, found infinity or NaN")
    return images.contiguous() if images.dtype == torch.uint8 else images.float().contiguous()


def _labels(name: str, values: Any) -> Tensor:  # noqa: ANN401 - arrays of the user
    labels = _tensor(name, values)
    if labels.ndim != 1 or labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise InputError(f"{name}: expected integers of shape (N,), found {tuple(labels.shape)} {labels.dtype}")
    return labels.long()


def _tensor(name: str, values: Any) -> Tensor:  # noqa: ANN401 - arrays of the user
    try:
        if isinstance(values, Tensor):
            return values.detach().cpu()
        return torch.from_numpy(np.require(values, requirements=["C", "W"]))
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{name}: expected an array of numbers, found {type(values).__name__}") from error
