"""The chains in a checkpoint set, whatever number of ranks held each of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lsam_hpc.errors import InputError
from lsam_hpc.optim.parts import redistributed
from lsam_hpc.train import checkpoint
from lsam_hpc.train.checkpoint import State
from lsam_hpc.train.manifest import Manifest


@dataclass(frozen=True)
class SavedChains:
    """A set of checkpoint files.

    Args:
        folder: that holds the files.
        manifest: of the set.
    """

    folder: Path
    manifest: Manifest

    @property
    def sharded(self) -> bool:
        """Whether the files hold parts of tensors."""
        return bool(self.manifest.config.get("shard", "none") != "none")

    @property
    def parts(self) -> int:
        """Number of ranks that held a chain together."""
        config = self.manifest.config
        if not self.sharded:
            return 1
        return self.manifest.ranks if config["synchronous"] else int(config["group_size"])

    @property
    def chains(self) -> int:
        """Number of chains of which the set has all files."""
        files = self.manifest.files
        return sum(None not in files[at : at + self.parts] for at in range(0, len(files), self.parts))

    def load(self, chain: int, index: int, parts: int) -> State | None:
        """Return the state of one of the ranks that hold a chain together; None if the set does not have all of it.

        Args:
            chain: number of the chain.
            index: of the rank among those that hold it.
            parts: number of these ranks.

        Raises:
            InputError: a file is damaged, cannot be read without running code, or holds no state.
        """
        first = chain * self.parts
        names = self.manifest.files[first : first + self.parts]
        if len(names) < self.parts or None in names:
            return None
        if parts == self.parts:
            return checkpoint.load(self.folder, self.manifest, first + index)
        ranks: list[Any] = [checkpoint.load(self.folder, self.manifest, first + i) for i in range(self.parts)]
        state: State = redistributed(ranks, index, parts)
        lsam = {**state["opt"]["lsam"], "generator": None}  # other ranks draw other noise and mini-batches
        return {**state, "opt": {**state["opt"], "lsam": lsam}, "batches": None}

    def center(self, index: int, parts: int) -> State:
        """Return a rank's part of the center, which the files of the first chain hold; arguments as of `load`.

        Raises:
            InputError: no files hold it.
        """
        for chain in range(self.manifest.ranks // self.parts):
            state = self.load(chain, index, parts)
            if state is not None and state["opt"]["center"]["y"] is not None:
                center: State = state["opt"]["center"]
                return center
        raise InputError(f"{self.folder}: expected the center in the files of step {self.manifest.step}, found none")
