"""Hides the launcher from frameworks that would make one distributed training of all ranks."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

# By these Accelerate, on which Hugging Face's Trainer is built, recognizes mpirun, srun and torchrun.
_VARIABLES = (
    *("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE", "WORLD_SIZE"),
    *("PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK", "RANK", "LOCAL_RANK"),
)


@contextmanager
def one_process() -> Iterator[None]:
    """Return a context in which to make a framework's objects, so that each rank trains for itself.

    For `Accelerator(...)`, and for `TrainingArguments(...)` and `Trainer(...)` of transformers. Make an LSAM outside.
    """
    hidden = {name: os.environ.pop(name) for name in _VARIABLES if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(hidden)
