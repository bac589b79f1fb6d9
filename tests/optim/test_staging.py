"""Copies beside the computation on CUDA and XPU: the order of the calls, with an imitated module of torch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lsam_hpc.optim import staging


@pytest.mark.parametrize("kind", ["cuda", "xpu"])
def test_the_order_of_copies_and_kernels(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    log: list[str] = []
    running = ["main"]  # the stream of the calls that follow

    class Stream:
        def __init__(self, name: object = "side") -> None:
            self.name = "side" if isinstance(name, torch.device) else name

        def wait_event(self, event: Event) -> None:
            log.append(f"{self.name} waits for {event.name}")

        def wait_stream(self, other: Stream) -> None:
            log.append(f"{self.name} waits for {other.name}")

    class Event:
        name = "the copy"

        def record(self, stream: Stream) -> None:
            log.append(f"{self.name} is the last on {stream.name}")

        def synchronize(self) -> None:
            log.append(f"the host waits for {self.name}")

    @contextmanager
    def stream(stream: Stream) -> Iterator[None]:
        running.append(str(stream.name))
        yield
        running.pop()

    class Vector:
        device, shape, dtype = torch.device(kind, 1), (3,), torch.float32

        def __init__(self, name: str) -> None:
            self.name = name

        def copy_(self, source: Vector, *, non_blocking: bool) -> None:
            assert non_blocking
            log.append(f"{source.name} to {self.name} on {running[-1]}")

    def empty(shape: tuple[int, ...], *, dtype: torch.dtype, pin_memory: bool) -> Vector:
        assert (shape, dtype, pin_memory) == ((3,), torch.float32, True)
        return Vector("host")

    class Flat:
        views: tuple[Any, ...] = ("views",)

        def __init__(self, _: object) -> None:
            self.vector = Vector("device")

        def gather(self, _: object) -> None:
            log.append(f"gather on {running[-1]}")

    module = SimpleNamespace(Stream=Stream, Event=Event, stream=stream, current_stream=lambda _: Stream("main"))
    monkeypatch.setattr(torch, kind, module)
    monkeypatch.setattr(torch, "empty", empty)
    monkeypatch.setattr(staging, "FlatVector", Flat)
    copies = staging.Staging([])
    copies.take([])
    copies.land()
    assert log == [
        "main waits for the copy",
        "gather on main",
        "side waits for main",
        "device to host on side",
        "the copy is the last on side",
        "the host waits for the copy",
    ]
    log.clear()
    copies.send()
    assert copies.views() == ("views",)
    assert log == ["host to device on side", "the copy is the last on side", "main waits for the copy"]
