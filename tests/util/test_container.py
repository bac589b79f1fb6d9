"""Ranks in containers, whose launcher is outside: played by a /proc of their own."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from lsam_hpc.launch import doctor_mpi
from lsam_hpc.launch.doctor_report import OneProcess, Ranks
from lsam_hpc.util import container, preflight, processes
from lsam_hpc.util.launcher import LauncherWatch

RANK = {
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NUM_TASKS": "2",
    "SLURM_STEP_TASKS_PER_NODE": "2",
    "SLURM_NODEID": "0",
    "SLURM_LOCALID": "1",
    "PMIX_RANK": "1",
}
MINE = b"PMIX_RANK=1\0"
HOST = "36 25 0:23 / /dev/shm rw,relatime - tmpfs tmpfs rw,size=24684096k"
PRIVATE = "36 25 0:23 / /dev/shm rw,relatime - tmpfs shm rw,size=64000k"


@pytest.fixture
def proc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Return a function that makes processes of (id, parent, name, environment), and the parent of this one."""

    def make(*table: tuple[int, int, str, bytes | None], parent: int, mount: str = HOST) -> None:
        for number, above, name, environ in table:
            folder = tmp_path / str(number)
            folder.mkdir()
            (folder / "stat").write_text(f"{number} ({name}) S {above} 0")
            (folder / "comm").write_text(f"{name}\n")
            if environ is not None:
                (folder / "environ").write_bytes(environ)
        (tmp_path / "self").mkdir()
        (tmp_path / "self" / "mountinfo").write_text(mount)
        monkeypatch.setattr(processes, "PROC", tmp_path)
        monkeypatch.setattr(os, "getppid", lambda: parent)

    return make


SYSTEMD = (1, 0, "systemd", b"")
SLURM = (5, 1, "slurmstepd", b"")


def test_ranks_without_a_container_and_of_apptainer_pass(proc) -> None:
    proc(SYSTEMD, SLURM, (7, 5, "starter", None), (9, 7, "lsam", MINE), parent=7)
    assert processes.ancestors(RANK) == [7, 5]
    assert container.wrong(RANK) is None


def test_a_launcher_inside_passes_with_private_memory(proc) -> None:
    proc((1, 0, "mpirun", b""), (9, 1, "lsam", MINE), parent=1, mount=PRIVATE)
    assert container.wrong(RANK) is None


def test_podman_with_the_hosts_namespaces_passes(proc) -> None:
    proc(SYSTEMD, (7, 1, "conmon", None), (9, 7, "lsam", MINE), parent=7)
    assert processes.ancestors(RANK) == []
    assert container.wrong(RANK) is None


@pytest.mark.parametrize(
    ("table", "parent"),
    [
        ([(1, 0, "lsam", MINE)], 0),
        ([(1, 0, "catatonit", MINE), (2, 1, "lsam", MINE)], 1),
        ([(1, 0, "appinit", None), (14, 1, "lsam", MINE)], 1),
    ],
    ids=["podman", "podman --init", "apptainer --pid"],
)
def test_a_namespace_of_its_own_is_refused(proc, table, parent) -> None:
    proc(*table, parent=parent)
    assert processes.ancestors(RANK) == []
    assert re.search(r"process IDs that the 2 ranks .* --pid=host", container.wrong(RANK))
    assert container.wrong({**RANK, "SLURM_STEP_TASKS_PER_NODE": "1(x2)"}) is None  # nothing to share on this node


def test_memory_of_its_own_is_refused(proc) -> None:
    proc(SYSTEMD, (7, 1, "conmon", None), (9, 7, "lsam", MINE), parent=7, mount=PRIVATE)
    assert re.search(r"/dev/shm that the 2 ranks .* --ipc=host", container.wrong(RANK))


def test_another_user_than_slurms_is_refused() -> None:
    expected = str(os.getuid() + 1)
    wrong = container.wrong({**RANK, "SLURM_JOB_UID": expected})
    assert re.search(rf"expected ID {expected}, .* found {os.getuid()}: .*--userns=keep-id", wrong)
    assert container.wrong({"SLURM_JOB_UID": expected}) is None  # no PMIx


def test_a_rank_whose_launcher_is_outside_watches_nothing(proc, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would take the others, which it cannot see, for ranks that have ended."""
    proc((1, 0, "lsam", MINE), parent=0)
    for name, value in RANK.items():
        monkeypatch.setenv(name, value)
    watch = LauncherWatch()
    assert not watch._above
    assert not watch.check()


@pytest.mark.parametrize("file", ["run/.containerenv", ".dockerenv"])
def test_containers_are_recognized(file, tmp_path) -> None:
    assert not container.inside({}, tmp_path)
    assert container.inside({"APPTAINER_CONTAINER": "a.sif"}, tmp_path)
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).touch()
    assert container.inside({}, tmp_path)


def test_doctor_doubts_a_single_rank_in_a_container(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    ranks = Ranks(OneProcess(), tmp_path)
    for inside, launched, level in ((True, 1, "warn"), (True, 0, "ok"), (False, 1, "ok")):
        monkeypatch.setattr(doctor_mpi, "inside", lambda inside=inside: inside)
        monkeypatch.setattr(doctor_mpi, "launched_ranks", lambda launched=launched: (1, "" if launched else "PMI_SIZE"))
        assert doctor_mpi.placement(ranks).level == level


def test_mpi_is_not_started_in_such_a_container(proc, monkeypatch: pytest.MonkeyPatch) -> None:
    proc((1, 0, "lsam", MINE), parent=0)
    for name, value in RANK.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(preflight.StartError, match="process IDs") as error:
        preflight.start()
    assert error.value.check == "container"
