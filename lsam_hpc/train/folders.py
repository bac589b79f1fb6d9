"""Data sets that are folders of image files, one folder for each class, as ImageNet and Tiny-ImageNet."""

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

    The training images are in train/CLASS/, in folders below that too; the test images likewise in val/CLASS/, or in
    val/images with their classes in val/val_annotations.txt; without val, in test/. Classes are numbered in the order
    of their names, and training images are put into an order in any part of which each class has its share.

    Raises:
        InputError: a folder or file is missing or damaged, or images differ in size.
    """
    names = _folders(directory / "train")
    train = [(file, label) for label, name in enumerate(names) for file in _images(directory / "train" / name)]
    train = [train[i] for i in balanced_order(np.array([label for _, label in train]), seed=0)]
    side = directory / "val" if (directory / "val").is_dir() else directory / "test"
    annotations = side / "val_annotations.txt"
    if annotations.is_file():
        test = _annotated(annotations, names)
    else:
        unknown = [name for name in _folders(side) if name not in names]
        if unknown:
            raise InputError(f"{side / unknown[0]}: expected a class of {directory / 'train'}, found another")
        test = [(file, names.index(name)) for name in _folders(side) for file in _images(side / name)]
    size = _decoded(train[0][0]).shape[:2]
    return _read(train, size), _read(test, size), len(names)


def _folders(directory: Path) -> list[str]:
    try:
        found = sorted(entry.name for entry in os.scandir(directory) if entry.is_dir() and entry.name[0] != ".")
    except OSError as error:
        raise InputError(f"{directory}: expected a folder for each class in it, found: {error.strerror}") from error
    if not found:
        raise InputError(f"{directory}: expected a folder for each class in it, found none")
    return found


def _images(directory: Path) -> list[Path]:
    found = [Path(place, name) for place, _, names in os.walk(directory) for name in names if _is_image(name)]
    if not found:
        raise InputError(f"{directory}: expected images ({', '.join(SUFFIXES)}), found none")
    return sorted(found)


def _is_image(name: str) -> bool:
    return name.lower().endswith(SUFFIXES) and name[0] != "."


def _annotated(path: Path, names: Sequence[str]) -> _Files:
    """Return the images that a val_annotations.txt names: in each line a file of images/, a tab and its class."""
    number = {name: label for label, name in enumerate(names)}
    found = []
    for at, line in enumerate(read(path).decode(errors="replace").splitlines(), 1):
        file, _, rest = line.partition("\t")
        label = number.get(rest.split("\t")[0].strip())
        if label is None or Path(file).name != file:
            raise InputError(f"{path}, line {at}: expected a file's name, a tab and its class, found {line[:80]!r}")
        found.append((path.parent / "images" / file, label))
    if not found:
        raise InputError(f"{path}: expected a line for each image, found none")
    return found


def _read(files: _Files, size: tuple[int, ...]) -> Arrays:
    try:
        images = np.empty((len(files), 3, *size), np.uint8)
    except MemoryError as error:
        raise InputError(f"--data folder: expected memory for {len(files)} images of {size}, found less") from error

    def fill(at: int) -> None:
        image = _decoded(files[at][0])
        if image.shape[:2] != size:
            raise InputError(
                f"{files[at][0]}: expected an image of {size[1]} x {size[0]}, as the first of the training set, "
                f"found {image.shape[1]} x {image.shape[0]}"
            )
        images[at] = image.transpose(2, 0, 1)

    # Pillow decodes without the interpreter's lock; a rank takes the cores that it has of its node.
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
    except Exception as error:  # a damaged image fails with anything, by format
        raise InputError(f"{path}: expected an image, found: {one_line(error)}") from error
