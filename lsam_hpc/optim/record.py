"""What an exchange did."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Exchange:
    """What one exchange of a chain with its center did."""

    step: int  # local steps done when the sample was staged
    began: float  # time.time()
    seconds: float  # from the read to the add
    version_read: int  # of the center that the delta was taken against
    version_added: int  # of the center when the delta was added
    center_distance: float  # |x - y| against the center that the delta was taken against
    delta_norm: float
    bytes: int  # read and added
    accepted: bool
    blocked: float = 0.0  # seconds that the training thread was held up
    delay: int = 0  # local steps between staging the sample and applying the result

    @property
    def staleness(self) -> int:
        """Updates that other chains made to the center between this chain's read and its add."""
        return self.version_added - self.version_read
