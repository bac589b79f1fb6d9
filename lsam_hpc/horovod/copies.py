"""Maps copies of tensors to their originals, as long as the copy exists."""

from __future__ import annotations

import weakref

from torch import Tensor


class Copies:
    """The originals of copied tensors."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[weakref.ref[Tensor], Tensor]] = {}

    def remember(self, copy: Tensor, original: Tensor) -> None:
        """Record a copy."""
        key = id(copy)
        self._known[key] = weakref.ref(copy, lambda _: self._known.pop(key, None)), original

    def original(self, copy: Tensor) -> Tensor | None:
        """Return the tensor that was copied, or None if `copy` is no recorded copy."""
        known = self._known.get(id(copy))
        return known[1] if known is not None else None
