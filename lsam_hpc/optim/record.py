"""The record of one exchange."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Exchange:
    """Times, versions, distances and bytes of one exchange of a chain with its center."""

    step: int  # local steps done when the sample was staged
    began: float  # time.time() in seconds
    seconds: float  # duration of the exchange, without the state callback
    version_read: int  # version of the center that the delta was computed against
    version_added: int  # version of the center when the delta was added
    center_distance: float  # |x - y|, without BatchNorm statistics, y being the center of `version_read`
    delta_norm: float  # pull * |x - y|
    bytes: int  # bytes read and added
    accepted: bool  # False: the delta filter rejected the delta
    blocked: float = 0.0  # seconds that the training thread waited
    delay: int = 0  # local steps between staging the sample and applying the result

    @property
    def staleness(self) -> int:
        """Updates that other chains made to the center between this chain's read and its add."""
        return self.version_added - self.version_read
