"""The context of objects that all ranks close together."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self


class CollectiveContext(ABC):
    """A context manager that calls the collective `close`, but not after an error.

    After an error on this rank the others do not come to a collective close: the end of the job frees everything.
    """

    @abstractmethod
    def close(self) -> None:
        """Free what the ranks share; collective."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
