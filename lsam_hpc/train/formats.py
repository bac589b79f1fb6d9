"""Readers of the canonical files of MNIST, CIFAR and SVHN; no file can run code, and each error is one line."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lsam_hpc.errors import InputError
from lsam_hpc.train import arraypickle
from lsam_hpc.train.dataset import Arrays
from lsam_hpc.train.matfile import arrays


def find(directory: Path, places: tuple[str, ...], file: str) -> Path:
    """Return the folder that holds a file, with or without .gz: the first of `places` in a directory.

    Raises:
        InputError: none of them holds it.
    """
    for place in places:
        if (directory / place / file).is_file() or (directory / place / f"{file}.gz").is_file():
            return directory / place
    others = f" or in {' or '.join(p for p in places if p)}" if any(places) else ""
    raise InputError(f"{directory}: expected the file {file} in it{others}, found none")


def mnist(folder: Path, part: str, at_most: int) -> Arrays:
    """Return images, (N, 1, 28, 28), and labels of a part (train or t10k) from its two IDX files."""
    images = _idx(folder / f"{part}-images-idx3-ubyte", 3)
    labels = _idx(folder / f"{part}-labels-idx1-ubyte", 1)
    if images.shape[1:] != (28, 28) or len(images) != len(labels) or not 0 < len(images) <= at_most:
        raise InputError(
            f"{folder}/{part}-*: expected up to {at_most} images of 28 x 28 and as many labels, "
            f"found {images.shape} and {labels.shape}"
        )
    return images[:, None], _labels(folder / f"{part}-labels-idx1-ubyte", labels, 0, 9)


def cifar(path: Path, classes: int) -> Arrays:
    """Return images, (N, 3, 32, 32), and labels of a file of CIFAR-10 or, for 100 classes, CIFAR-100."""
    raw = read(path)
    try:
        batch = arraypickle.load(raw)
        images, labels = batch[b"data"], np.asarray(batch[b"labels" if classes == 10 else b"fine_labels"], np.int64)
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise InputError(f"{path}: expected a CIFAR-{classes} batch, found: {one_line(error)}") from error
    shape = images.shape if isinstance(images, np.ndarray) and images.dtype == np.uint8 else type(images).__name__
    if labels.ndim != 1 or shape != (len(labels), 3072) or not len(labels):
        raise InputError(
            f"{path}: expected uint8 data of shape (N, 3072) and N labels, found {shape} and {labels.shape}"
        )
    return images.reshape(-1, 3, 32, 32), _labels(path, labels, 0, classes - 1)


def svhn(path: Path) -> Arrays:
    """Return images, (N, 3, 32, 32), and labels of a file of SVHN's second format; its label 10 is the digit 0."""
    raw = read(path)
    try:
        by_name = arrays(raw)
        images, labels = by_name["X"], by_name["y"].ravel()
    except (ValueError, KeyError, MemoryError) as error:
        raise InputError(f"{path}: expected a MATLAB 5 file with X and y, found: {one_line(error)}") from error
    if images.shape != (32, 32, 3, len(labels)) or images.dtype != np.uint8:
        raise InputError(
            f"{path}: expected X of shape (32, 32, 3, N), uint8, and N numbers y, "
            f"found {images.shape} {images.dtype} and {labels.shape} {labels.dtype}"
        )
    return images.transpose(3, 2, 0, 1), _labels(path, labels, 1, 10) % 10


def read(path: Path) -> bytes:
    """Return the bytes of a file; raises InputError if it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: expected a readable file, found: {error.strerror}") from error


def one_line(error: BaseException) -> str:
    """Return an exception's class and message in one line of at most 300 characters."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]


def _idx(path: Path, dimensions: int) -> NDArray[np.uint8]:
    """Read an IDX file of bytes, plain or with .gz at the end of its name."""
    compressed = path.with_name(path.name + ".gz")
    if compressed.is_file():
        path = compressed
    raw = read(path)
    if path == compressed:
        try:
            raw = gzip.decompress(raw)
        except (OSError, EOFError, zlib.error) as error:
            raise InputError(f"{path}: expected a whole gzip file, found: {error}") from error
    head = 4 + 4 * dimensions
    if len(raw) < head or raw[:4] != bytes([0, 0, 8, dimensions]):
        raise InputError(
            f"{path}: expected an IDX file of bytes in {dimensions} dimensions, found a header {raw[:4].hex()}"
        )
    shape = tuple(int(n) for n in np.frombuffer(raw[4:head], ">u4"))
    if len(raw) - head != math.prod(shape):
        raise InputError(f"{path}: expected {shape} bytes after the header, found {len(raw) - head}")
    return np.frombuffer(raw, np.uint8, offset=head).reshape(shape)


def _labels(path: Path, labels: NDArray[Any], low: int, high: int) -> NDArray[np.int64]:
    if not len(labels) or not (labels.min() >= low and labels.max() <= high):  # also false for NaN
        interval = f"{labels.min()} to {labels.max()}" if len(labels) else "none"
        raise InputError(f"{path}: expected labels {low} to {high}, found {interval}")
    return labels.astype(np.int64)
