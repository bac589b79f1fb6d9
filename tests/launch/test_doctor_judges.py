"""Findings of `lsam doctor` on GPUs, cores and ranks that disagree, for machines unlike this one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lsam_hpc.launch.doctor_chains import Plan, diagnose_chains
from lsam_hpc.launch.doctor_gpus import Choice, diagnose_gpus, gpus
from lsam_hpc.launch.doctor_process import diagnose_cores
from lsam_hpc.launch.doctor_report import Finding, Level, OneProcess, Ranks, by_value, verdict
from lsam_hpc.optim import accelerators
from lsam_hpc.util import affinity

ONE, TWO = ["0"], ["0", "1"]


@pytest.mark.parametrize(
    ("hosts", "answers", "level", "text"),
    [
        ("ab", [Choice("", []), Choice("", [])], "ok", "none"),
        ("a", [Choice("", [], present=8)], "warn", "torch can use none of a node's 8: install a torch for them"),
        ("aa", [Choice("0", TWO), Choice("1", TWO, 1)], "ok", "2 ranks on 2 GPUs, the ranks of a use 0 1"),
        ("aa", [Choice("1", TWO, 1), Choice("0", TWO)], "ok", "2 ranks on 2 GPUs, the ranks of a use 1 0"),
        ("ab", [Choice("0", ONE), Choice("0", ONE)], "ok", "2 ranks on 2 GPUs"),  # the same index on different nodes
        ("aa", [Choice("0", ONE), Choice("0", ONE)], "warn", "2 ranks on 1 GPUs"),
        ("aa", [Choice("0", TWO)] * 2, "fail", "2 ranks on 1 GPUs, the ranks of a use 0 0, idle: a 1"),
        ("a", [Choice("0", TWO)], "warn", "1 ranks on 1 GPUs, the ranks of a use 0, idle: a 1"),
        (
            "ab",
            [Choice("0", ONE), Choice("0", ONE, far=True)],
            "warn",
            "2 ranks on 2 GPUs, on another NUMA node than the cores of ranks [1]: check the binding",
        ),
        ("ab", [Choice("0", ONE), Choice("", [])], "fail", "ranks [1] see none, others do: ask for GPUs on every node"),
        ("ab", [Choice("0", ONE), "RuntimeError: broken"], "fail", "RuntimeError: broken"),
    ],
)
def test_gpus(hosts: str, answers: list[Choice | str], level: Level, text: str) -> None:
    assert diagnose_gpus(hosts, answers) == Finding("gpus", level, text)


def test_the_gpu_of_this_rank(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The choice is that of `lsam train`."""
    monkeypatch.setattr(accelerators, "usable", lambda: ["cuda"])
    monkeypatch.setattr(accelerators, "identities", lambda _: ["GPU-a", "GPU-b"])
    monkeypatch.setattr(accelerators, "addresses", lambda _: ["a", "b"])
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    host = os.uname().nodename
    for near, index, text in (({"a": {9}, "b": {1}}, 1, ", idle: "), ({"a": {9}, "b": {8}}, 0, "of ranks [0]: check")):
        monkeypatch.setattr(affinity, "near_cores", lambda address, _, near=near: frozenset(near[address]))
        finding = gpus(Ranks(OneProcess(), tmp_path))
        assert finding.level == "warn"
        assert f"1 ranks on 1 GPUs, the ranks of {host} use {index}" in finding.text
        assert text in finding.text


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


@pytest.mark.parametrize(
    ("hosts", "plan", "level", "ends"),
    [
        # Of a model of 4 MB, SGD and SAM hold four vectors, the chain two, the center one for all ranks that share it.
        (
            "aabb",
            Plan(10**6, 2, sharded=True),
            "ok",
            f"2 chains of 2 ranks; with SGD a rank holds {13 / 2 / 2 * 4:.1f} MB",
        ),
        ("aabb", Plan(10**6, 2, sharded=True), "ok", "sends 12.0 MB to its chain in a step and moves 4.0 MB in"),
        ("aabb", Plan(10**6, 1, sharded=False), "ok", f"4 chains of 1 rank; with SGD a rank holds {25 / 4 * 4:.1f} MB"),
        ("abab", Plan(10**6, 2, sharded=True), "warn", "; 2 chains on several nodes, each of which has room for whole"),
        ("ab", Plan(10**6, 2, sharded=True), "ok", "moves 4.0 MB in an exchange"),  # they have to span nodes
        ("aabb", Plan(10**9, 1, sharded=False), "warn", "; the vectors need more than the 2.0 GB that a rank can have"),
        ("abab", Plan(10**9, 2, sharded=False), "warn", "2.0 GB that a rank can have; 2 chains on several nodes"),
        ("aabb", Plan(10**6, 3, sharded=True), "fail", "expected a divisor of the 4 ranks as --group-size, found 3"),
        ("aabb", Plan(10**6, 0, sharded=True), "fail", "expected a divisor of the 4 ranks as --group-size, found 0"),
    ],
)
def test_chains(hosts: str, plan: Plan, level: Level, ends: str) -> None:
    finding = diagnose_chains(hosts, 2e9, plan)
    assert (finding.check, finding.level) == ("chains", level)
    assert ends in finding.text


def test_ranks_that_disagree_are_named() -> None:
    assert by_value(["a", "a"]) == "a"
    assert by_value(["a", "b", "a"]) == "rank 0, 2: a; rank 1: b"
    assert by_value(["a", *"bbbbb"]) == "rank 0: a; rank 1, 2, 3, 4, ...: b"


def test_the_verdict() -> None:
    good, odd, bad = Finding("x", "ok", ""), Finding("y", "warn", ""), Finding("z", "fail", "")
    assert verdict([good]) == "ready"
    assert verdict([good, odd]) == "ready, but look at: y"
    assert verdict([odd, bad, good]) == "not ready: z"
