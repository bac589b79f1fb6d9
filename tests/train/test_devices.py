"""The device of each rank of `lsam train`, on imitated machines."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from lsam_hpc import InputError
from lsam_hpc.optim import accelerators
from lsam_hpc.train import job
from lsam_hpc.util import affinity


class Node:
    """The communicator of a node's ranks, as one of them sees it."""

    def __init__(self, rank: int, cores: list[set[int]]) -> None:
        self.rank, self.cores = rank, cores

    def allgather(self, mine: tuple[set[int], list[str]]) -> list[tuple[set[int], list[str]]]:
        assert mine[0] == self.cores[self.rank]
        return [(cores, mine[1]) for cores in self.cores]


def picked(monkeypatch: pytest.MonkeyPatch, name: str, rank: int, cores: list[set[int]]) -> torch.device:
    monkeypatch.setattr(job.rma, "raise_on_all", lambda _, function: function())
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: cores[rank])
    node: Any = Node(rank, cores)
    return job.pick_device(name, node, node)


def machine(monkeypatch: pytest.MonkeyPatch, kind: str, addresses: list[str]) -> list[torch.device]:
    """Imitate a machine with devices of a kind; return the list of those that are set."""
    chosen: list[torch.device] = []
    monkeypatch.setattr(accelerators, "usable", lambda: [kind])
    monkeypatch.setattr(accelerators, "addresses", lambda kind: [] if kind == "cpu" else addresses)
    monkeypatch.setattr(getattr(torch, kind), "set_device", chosen.append)
    return chosen


def test_each_rank_takes_the_device_next_to_its_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = machine(monkeypatch, "cuda", ["a", "b"])
    monkeypatch.setattr(affinity, "near_cores", lambda address, _: {"a": {2, 3}, "b": {0, 1}}[address])
    for rank, device in ((0, "cuda:1"), (1, "cuda:0")):
        assert picked(monkeypatch, "auto", rank, [{0, 1}, {2, 3}]) == chosen[-1] == torch.device(device)


def test_xpu_devices_are_taken_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = machine(monkeypatch, "xpu", [""] * 12)
    cores = [{rank} for rank in range(12)]
    for rank in (0, 7, 11):
        assert picked(monkeypatch, "auto", rank, cores) == chosen[-1] == torch.device("xpu", rank)
    with pytest.raises(InputError, match="--device: expected cpu or xpu"):
        picked(monkeypatch, "cuda", 0, cores)
    assert picked(monkeypatch, "cpu", 0, cores) == torch.device("cpu")


def test_training_on_the_cpu_beside_gpus_is_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    for name, kind in (("0000:18:00.0", "0x038000"), ("0000:00:00.0", "0x060000")):
        (tmp_path / "bus" / "pci" / "devices" / name).mkdir(parents=True)
        (tmp_path / "bus" / "pci" / "devices" / name / "class").write_text(kind)
    gpus = affinity.accelerators(tmp_path)
    monkeypatch.setattr(accelerators, "usable", list)
    for present, name, warnings in ((gpus, "auto", 1), (gpus, "cpu", 0), ([], "auto", 0)):
        monkeypatch.setattr(affinity, "accelerators", lambda present=present: present)
        caplog.clear()
        with caplog.at_level(logging.WARNING, logger="lsam_hpc"):
            assert picked(monkeypatch, name, 0, [{0}]) == torch.device("cpu")
        assert len(caplog.messages) == warnings
        assert all("can use none of the 1 GPUs here" in message for message in caplog.messages)
