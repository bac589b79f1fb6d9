"""Findings of `lsam doctor` on GPUs, cores and ranks that disagree, for machines unlike this one."""

from __future__ import annotations

from typing import Any

import pytest

from lsam_hpc.launch.doctor_process import diagnose_cores, diagnose_gpus
from lsam_hpc.launch.doctor_report import Finding, by_value, verdict


@pytest.mark.parametrize(
    ("hosts", "answers", "level", "text"),
    [
        ("ab", [("", []), ("", [])], "ok", "none"),
        ("aa", [("0", ["0", "1"]), ("1", ["0", "1"])], "ok", "2 ranks on 2 GPUs"),
        ("ab", [("0", ["0"]), ("0", ["0"])], "ok", "2 ranks on 2 GPUs"),  # the same index on different nodes
        ("aa", [("0", ["0"]), ("0", ["0"])], "warn", "2 ranks on 1 GPUs"),
        ("aa", [("0", ["0", "1"]), ("0", ["0", "1"])], "fail", "2 ranks on 1 GPUs, idle: a 1"),
        ("a", [("0", ["0", "1"])], "warn", "1 ranks on 1 GPUs, idle: a 1"),
        ("ab", [("0", ["0"]), ("", [])], "fail", "ranks [1] see none, others do: ask for GPUs on every node"),
        ("ab", [("0", ["0"]), "RuntimeError: broken"], "fail", "RuntimeError: broken"),
    ],
)
def test_gpus(hosts: str, answers: list[Any], level: str, text: str) -> None:
    assert diagnose_gpus(hosts, answers) == Finding("gpus", level, text)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("affinities", "level"),
    [
        ([("a", (0, 1), 4), ("a", (2, 3), 4)], "ok"),
        ([("a", (0, 1), 2), ("a", (0, 1), 2), ("a", (0, 1), 2)], "ok"),  # more ranks than cores
        ([("a", (0,), 4), ("a", (0,), 4)], "warn"),
        ([("a", (0,), 4), ("b", (0,), 4)], "ok"),
        ([("a", (0, 1), 4), ("a", (0, 1), 4)], "ok"),
    ],
)
def test_cores(affinities: list[tuple[str, tuple[int, ...], int]], level: str) -> None:
    assert diagnose_cores(affinities).level == level


def test_more_threads_than_cores() -> None:
    """As with mpirun's binding to one core each, which a login node's OMP_NUM_THREADS does not know of."""
    affinities = [("a", (0,), 8), ("a", (1,), 8)]
    finding = diagnose_cores(affinities, ["4", "4"])
    assert finding.level == "warn"
    assert finding.text == "ranks [0, 1] may use 1 each, but OMP_NUM_THREADS=4: check the binding"
    assert diagnose_cores(affinities, ["4,2", "1"]).text.startswith("ranks [0] ")
    assert diagnose_cores(affinities, ["1", ""]).level == "ok"
    assert diagnose_cores([("a", (0, 1, 2, 3), 8)], ["4"]).level == "ok"


def test_ranks_that_disagree_are_named() -> None:
    assert by_value(["a", "a"]) == "a"
    assert by_value(["a", "b", "a"]) == "rank 0, 2: a; rank 1: b"
    assert by_value(["a", *"bbbbb"]) == "rank 0: a; rank 1, 2, 3, 4, ...: b"


def test_the_verdict() -> None:
    good, odd, bad = Finding("x", "ok", ""), Finding("y", "warn", ""), Finding("z", "fail", "")
    assert verdict([good]) == "ready"
    assert verdict([good, odd]) == "ready, but look at: y"
    assert verdict([odd, bad, good]) == "not ready: z"
