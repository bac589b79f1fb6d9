"""Text in memory-mapped files: its bytes are the tokens, and each is predicted once from those before it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lsam_hpc.errors import InputError

BYTES = 256  # classes
# "The Python Language Reference": python-reference.LICENSE names its source, its authors and its license.
BUILT_IN = Path(__file__).with_name("python-reference.txt")

Bytes = NDArray[np.uint8]


class Text:
    """Windows of a text's bytes, each of shape (context,); they are read from the files when they are indexed.

    Args:
        rows: of each file, its windows, uint8, shape (n, context); a view of the file keeps it on the disk.
        chosen: numbers of the windows that belong to the set, in their order, shape (N,); they count through the files.
            Default: all.
        device: that windows are read to. Default: the CPU.
    """

    def __init__(self, rows: Sequence[Bytes], chosen: Tensor | None = None, device: torch.device | str = "cpu") -> None:
        self._rows, self.device = list(rows), torch.device(device)
        self._ends = np.cumsum([len(part) for part in self._rows])
        self._chosen = torch.arange(int(self._ends[-1])) if chosen is None else chosen

    @property
    def shape(self) -> torch.Size:
        """(N, context)."""
        return torch.Size((len(self), self._rows[0].shape[1]))

    def __len__(self) -> int:
        return len(self._chosen)

    def __getitem__(self, index: Tensor | slice) -> Tensor:
        """Return the chosen windows, int64, shape (n, context), on the device."""
        windows = self._chosen[index if isinstance(index, slice) else index.cpu()].numpy()
        files = np.searchsorted(self._ends, windows, side="right")
        some = np.empty((len(windows), self.shape[1]), np.uint8)
        for file in np.unique(files):
            at, rows = files == file, self._rows[file]
            some[at] = rows[windows[at] - (self._ends[file] - len(rows))]
        return torch.from_numpy(some).to(self.device).long()  # an eighth of the bytes crosses the bus

    def split(self, size: int) -> Iterator[Tensor]:
        """Yield all windows in order, `size` at a time."""
        for begin in range(0, len(self), size):
            yield self[begin : begin + size]

    def subset(self, index: Tensor) -> Text:
        """Return the chosen windows in the order of `index`, still on the disk."""
        return Text(self._rows, self._chosen[index], self.device)

    def to(self, device: torch.device) -> Text:
        """Return the windows, which stay on the disk; those that are read are on the device."""
        return Text(self._rows, self._chosen, device)


def windows(files: Sequence[Bytes], context: int) -> tuple[Text, Text]:
    """Return the windows of some files, and as their labels the byte after each of their bytes.

    A file of L bytes has (L - 1) // context windows, which do not overlap; what remains at its end is not used.

    Args:
        files: uint8, each of at least context + 1 bytes.
        context: number of bytes per window.
    """
    counts = [(len(file) - 1) // context for file in files]
    inputs, labels = (
        Text([file[s : s + n * context].reshape(n, context) for file, n in zip(files, counts, strict=True)])
        for s in (0, 1)
    )
    return inputs, labels


def mapped(path: Path, context: int) -> list[Bytes]:
    """Return the bytes of a text file, or of all *.txt in a folder in the order of their names, mapped into memory.

    Args:
        path: a file or a folder.
        context: number of bytes per window; a file has at least one more.

    Raises:
        InputError: there is no file, or one is too short or cannot be read.
    """
    paths = sorted(file for file in path.glob("*.txt") if file.is_file()) if path.is_dir() else [path]
    if not paths:
        raise InputError(f"--data-dir {path}: expected a text file, or a folder with *.txt in it, found none")
    return [_mapped(file, context) for file in paths]


def _mapped(path: Path, context: int) -> Bytes:
    try:
        size = path.stat().st_size
        if size <= context:
            raise InputError(f"{path}: expected at least {context + 1} bytes, with --context {context}, found {size}")
        return np.asarray(np.memmap(path, np.uint8, "r"))
    except OSError as error:
        raise InputError(f"--data-dir {path}: expected a text file or a folder, found: {error.strerror}") from error
