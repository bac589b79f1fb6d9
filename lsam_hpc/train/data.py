"""The data sets of `lsam train`: built in, in their canonical files, in folders, text, or the user's own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from lsam_hpc.errors import InputError
from lsam_hpc.options.training import CONTEXT, DATASETS, IMAGE_SETS, TEXT
from lsam_hpc.train import formats, selection, text
from lsam_hpc.train.dataset import Dataset, Images, Inputs, Labels, of_arrays
from lsam_hpc.train.folders import folders
from lsam_hpc.train.user_code import call_function

__all__ = ["DATASETS", "OPTIONS", "Dataset", "Images", "Inputs", "Labels", "load", "of_arrays"]

OPTIONS = (*selection.OPTIONS, "context")  # of `load`, named as in a run's config


def load(
    name: str,
    directory: str | None,
    *,
    subset: int | None = None,
    validation: int = 0,
    label_noise: float = 0.0,
    data_seed: int = 0,
    context: int = CONTEXT,
) -> Dataset:
    """Load a data set, or the part of it that a run uses.

    Args:
        name: of `DATASETS`, or MODULE:FUNCTION: called with the directory, as a Path or None, it returns a `Dataset` or
            the arrays train_x, train_y, test_x, test_y (see `of_arrays`).
        directory: that holds the files, or the folder that the archive unpacks to; not used by digits. Of text, a file
            or a folder; None: the text that is built in.
        subset: see `selection.select`.
        validation: see `selection.select`.
        label_noise: see `selection.select`.
        data_seed: see `selection.select`.
        context: bytes per window of text; not used by images.

    Raises:
        InputError: a file is missing or damaged, or there are fewer images than requested.
    """
    folder = Path(directory) if directory is not None else None
    if name == TEXT:
        dataset = _text(folder or text.BUILT_IN, context)
    else:
        dataset = _from_user_code(name, folder) if ":" in name else _LOADERS[name](folder or Path())
    return selection.select(dataset, subset, validation, label_noise, data_seed)


def _digits(_: Path) -> Dataset:
    # E. Alpaydin and C. Kaynak (1998), Optical Recognition of Handwritten Digits, UCI Machine Learning Repository,
    # doi:10.24432/C50P49, CC BY 4.0: the test set, in its order.
    with np.load(Path(__file__).with_name("digits.npz"), allow_pickle=False) as arrays:
        images = arrays["images"][:, None]  # 0 to 16
        labels = arrays["labels"].astype(np.int64)
    # Every fourth image is a test image (1,348 training, 449 test images). Each writer's digits are contiguous, so that
    # both sets have all writers.
    test = np.arange(len(labels)) % 4 == 3
    return of_arrays((images[~test], labels[~test]), (images[test], labels[test]), 10, mirror=False)


def _mnist(directory: Path) -> Dataset:
    return _of_idx(directory, ("", "MNIST/raw", "mnist"), mirror=False)


def _fashion_mnist(directory: Path) -> Dataset:
    return _of_idx(directory, ("", "FashionMNIST/raw", "fashion-mnist"), mirror=True)


def _of_idx(directory: Path, places: tuple[str, ...], *, mirror: bool) -> Dataset:
    folder = formats.find(directory, places, "train-images-idx3-ubyte")
    train, test = formats.mnist(folder, "train", 60000), formats.mnist(folder, "t10k", 10000)
    return of_arrays(train, test, 10, mirror=mirror)


def _cifar10(directory: Path) -> Dataset:
    folder = formats.find(directory, ("", "cifar-10-batches-py"), "data_batch_1")
    train = [formats.cifar(folder / f"data_batch_{i}", 10) for i in range(1, 6)]
    images, labels = (np.concatenate(column) for column in zip(*train, strict=True))
    return of_arrays((images, labels), formats.cifar(folder / "test_batch", 10), 10)


def _cifar100(directory: Path) -> Dataset:
    folder = formats.find(directory, ("", "cifar-100-python"), "train")
    return of_arrays(formats.cifar(folder / "train", 100), formats.cifar(folder / "test", 100), 100)


def _svhn(directory: Path) -> Dataset:
    folder = formats.find(directory, ("", "svhn"), "train_32x32.mat")
    train, test = formats.svhn(folder / "train_32x32.mat"), formats.svhn(folder / "test_32x32.mat")
    return of_arrays(train, test, 10, mirror=False)


def _folder(directory: Path) -> Dataset:
    return of_arrays(*folders(directory))


def _text(path: Path, context: int) -> Dataset:
    inputs, labels = text.windows(text.mapped(path, context), context)
    if (count := len(inputs)) < 2:  # one to train on, one to test on
        raise InputError(f"{path}: expected at least {2 * context + 1} bytes, with --context {context}, found fewer")
    parts = torch.arange(count).split([count - max(1, count // 10), max(1, count // 10)])
    (train_x, test_x), (train_y, test_y) = ([of.subset(part) for part in parts] for of in (inputs, labels))
    return Dataset(train_x, train_y, test_x, test_y, text.BYTES, mirror=False)


def _from_user_code(spec: str, directory: Path | None) -> Dataset:
    arrays = call_function("--data", spec, directory)
    if isinstance(arrays, Dataset):
        return arrays
    if not isinstance(arrays, (tuple, list)) or len(arrays) != 4:
        raise InputError(
            f"--data: expected a Dataset or (train_x, train_y, test_x, test_y) from {spec}, "
            f"found {type(arrays).__name__}"
        )
    try:
        return of_arrays((arrays[0], arrays[1]), (arrays[2], arrays[3]))
    except InputError as error:
        raise InputError(f"--data: {spec}: {error}") from error


_LOADERS: dict[str, Callable[[Path], Dataset]] = dict(
    zip(IMAGE_SETS, (_digits, _mnist, _fashion_mnist, _cifar10, _cifar100, _svhn, _folder), strict=True)
)
