"""Which tensor a copy was made of, as long as somebody has the copy."""

from __future__ import annotations

import weakref

from torch import Tensor


class Copies:
    """Originals by their copies."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[weakref.ref[Tensor], Tensor]] = {}

    def remember(self, copy: Tensor, original: Tensor) -> None:
        """Take note of a copy."""
        key = id(copy)
        self._known[key] = weakref.ref(copy, lambda _: self._known.pop(key, None)), original

    def original(self, copy: Tensor) -> Tensor | None:
        """Return what a tensor is a copy of, or None."""
        found = self._known.get(id(copy))
        return found[1] if found is not None else None
