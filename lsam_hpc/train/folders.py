"""Data sets of image files with one folder per class, such as ImageNet and Tiny-ImageNet."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from lsam_hpc.errors import InputError
from lsam_hpc.train.dataset import Arrays
from lsam_hpc.train.formats import one_line, read
from lsam_hpc.train.selection import balanced_order

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm", ".pgm", ".gif", ".tif", ".tiff")
_Files = list[tuple[Path, int]]  # each image and its class


def folders(directory: Path) -> tuple[Arrays, Arrays, int]:
    """Return training and test images as RGB, (N, 3, H, W), and the number of classes.

    Training images are in train/CLASS/ and its subfolders. Test images are in val/CLASS/, or in val/images with their
    classes in val/val_annotations.txt; without val, in test/CLASS/. Classes are numbered in the order of their names.
    Training images are shuffled so that each class has its share in any part of the order.

    Raises:
        InputError: a folder or file is missing or damaged, or images differ in size.
    """
    names = _folders(directory / "train")
    train = [(file, label) for label, name in enumerate(names) for file in _images(directory / "train" / name)]
    train = [train[i] for i in balanced_order(np.array([label for _, label in train]), seed=0)]
    test_folder = directory / "val" if (directory / "val").is_dir() else directory / "test"
    annotations = test_folder / "val_annotations.txt"
    if annotations.is_file():
        test = _annotated(annotations, names)
    else:
        unknown = [name for name in _folders(test_folder) if name not in names]
        if unknown:
            raise InputError(f"{test_folder / unknown[0]}: expected a class of {directory / 'train'}, found another")
        test = [(file, names.index(name)) for name in _folders(test_folder) for file in _images(test_folder / name)]
    size = _decoded(train[0][0]).shape[:2]
    return _read(train, size), _read(test, size), len(names)


def _folders(directory: Path) -> list[str]:
    try:
        names = sorted(entry.name for entry in os.scandir(directory) if entry.is_dir() and entry.name[0] != ".")
    except OSError as error:
        raise InputError(f"{directory}: expected a folder for each class in it, found: {error.strerror}") from error
    if not names:
        raise InputError(f"{directory}: expected a folder for each class in it, found none")
    return names


def _images(directory: Path) -> list[Path]:
    images = [Path(folder, name) for folder, _, names in os.walk(directory) for name in names if _is_image(name)]
    if not images:
        raise InputError(f"{directory}: expected images ({', '.join(SUFFIXES)}), found none")
    return sorted(images)


def _is_image(name: str) -> bool:
    return name.lower().endswith(SUFFIXES) and name[0] != "."


def _annotated(path: Path, names: Sequence[str]) -> _Files:
    """Return the images listed in a val_annotations.txt: in each line a file of images/, a tab and its class."""
    labels = {name: label for label, name in enumerate(names)}
    images = []
    for number, line in enumerate(read(path).decode(errors="replace").splitlines(), 1):
        file, _, rest = line.partition("\t")
        label = labels.get(rest.split("\t")[0].strip())
        if label is None or Path(file).name != file:
            raise InputError(f"{path}, line {number}: expected a file's name, a tab and its class, found {line[:80]!r}")
        images.append((path.parent / "images" / file, label))
    if not images:
        raise InputError(f"{path}: expected a line for each image, found none")
    return images


def _read(files: _Files, size: tuple[int, ...]) -> Arrays:
    try:
        images = np.empty((len(files), 3, *size), np.uint8)
    except MemoryError as error:
        raise InputError(
            f"--data folder: expected memory for {len(files)} images of {size}, found too little"
        ) from error

    def fill(index: int) -> None:
        image = _decoded(files[index][0])
        if image.shape[:2] != size:
            raise InputError(
                f"{files[index][0]}: expected an image of {size[1]} x {size[0]}, as the first of the training set, "
                f"found {image.shape[1]} x {image.shape[0]}"
            )
        images[index] = image.transpose(2, 0, 1)

    # Pillow releases the GIL while it decodes: use one thread for each of the rank's cores.
    pool = ThreadPoolExecutor(torch.get_num_threads())
    try:
        for _ in pool.map(fill, range(len(files))):
            pass
    finally:
        pool.shutdown(cancel_futures=True)
    return images, np.array([label for _, label in files], np.int64)


def _decoded(path: Path) -> NDArray[np.uint8]:
    try:
        from PIL import Image
    except ImportError as error:
        raise InputError(f"--data folder: expected Pillow (pip install 'lsam-hpc[train]'), found: {error}") from error
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))
    except Exception as error:  # a damaged image can raise any exception, depending on its format
        raise InputError(f"{path}: expected an image, found: {one_line(error)}") from error
