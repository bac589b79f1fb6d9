"""The checks before MPI starts, with variables recorded under each launcher."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lsam_hpc import InputError
from lsam_hpc.util import preflight

OPENMPI, MPICH = (
    "Open MPI v5.0.11, package: ...",
    "MPICH Version:      5.0.2\nMPICH configure: --with-device=ch4:ucx,ofi",
)
JOB = {"SLURM_JOB_ID": "1", "SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
STEP = {
    **JOB,
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
    "SLURM_NODEID": "1",
}
PMIX = {**STEP, "PMIX_RANK": "2", "SLURM_PROCID": "2"}
PMI2 = {**STEP, "PMI_RANK": "2", "PMI_SIZE": "4", "SLURM_PROCID": "2"}
# mpirun in a batch job starts its daemons by srun: the ranks inherit the daemons' Slurm variables.
MPIRUN = {
    **STEP,
    "SLURM_STEP_NUM_TASKS": "1",
    "SLURM_NTASKS": "1",
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_RANK": "3",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
    "PMIX_RANK": "3",
}
HYDRA = {
    **STEP,
    "SLURM_STEP_NUM_TASKS": "2",
    "SLURM_NTASKS": "2",
    "PMI_RANK": "3",
    "PMI_SIZE": "4",
    "MPI_LOCALRANKID": "1",
    "MPI_LOCALNRANKS": "2",
}


@pytest.mark.parametrize(
    ("env", "ranks", "rank", "node"),
    [
        ({}, 1, 0, (0, 1)),
        (JOB, 1, 0, (0, 1)),
        (PMIX, 4, 2, (0, 2)),
        (PMI2, 4, 2, (0, 2)),
        (MPIRUN, 4, 3, (1, 2)),
        (HYDRA, 4, 3, (1, 2)),
        ({"PMI_SIZE": "4", "PMI_RANK": "3", "PMI_LOCAL_RANK": "1", "PMI_LOCAL_SIZE": "2"}, 4, 3, (1, 2)),  # PALS
        ({**PMIX, "SLURM_STEP_TASKS_PER_NODE": "3,1", "SLURM_NODEID": "0", "SLURM_LOCALID": "2"}, 4, 2, (2, 3)),
    ],
)
def test_ranks_started_by_the_launcher(env: dict[str, str], ranks: int, rank: int, node: tuple[int, int]) -> None:
    assert preflight.launched_ranks(env)[0] == ranks
    assert preflight.launched_rank(env) == rank
    assert preflight.on_node(env) == node


@pytest.mark.parametrize(
    ("size", "version", "env"),
    [(4, OPENMPI, PMIX), (4, MPICH, PMI2), (4, OPENMPI, MPIRUN), (4, MPICH, HYDRA), (1, OPENMPI, {}), (1, MPICH, {})],
)
def test_right_launchers_pass(size: int, version: str, env: dict[str, str]) -> None:
    preflight.check_pmi(version, env)
    preflight.check_world(size, version, env)


@pytest.mark.parametrize(
    ("version", "env", "right"),
    [
        (OPENMPI, PMI2, "pmix"),
        (OPENMPI, STEP, "pmix"),
        (OPENMPI, HYDRA, "pmix"),
        (MPICH, PMIX, "pmi2"),
        (MPICH, MPIRUN, "pmi2"),
    ],
)
def test_wrong_launchers_are_detected_before_mpi_starts(version: str, env: dict[str, str], right: str) -> None:
    with pytest.raises(InputError, match=f"start it by srun --mpi={right}") as caught:
        preflight.check_pmi(version, env)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("env", [PMIX, PMI2, MPIRUN, HYDRA, STEP, JOB])
def test_worlds_of_one_rank_are_reported(env: dict[str, str]) -> None:
    with pytest.raises(InputError, match=r"expected .*4 ranks, as \w+ says, found one"):
        preflight.check_world(1, OPENMPI, env)


def test_torchrun_is_reported_with_what_to_do() -> None:
    torchrun = {"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "2", "RANK": "1"}
    for check in (preflight.check_torchrun, lambda size, env: preflight.check_world(size, OPENMPI, env)):
        with pytest.raises(InputError, match="torchrun starts processes without MPI") as caught:
            check(1, torchrun)
        assert "start the script by mpirun -n 2 python" in str(caught.value)
        assert "\n" not in str(caught.value)
        check(1, {**torchrun, "WORLD_SIZE": "1"})
        check(1, {"WORLD_SIZE": "2"})
    preflight.check_torchrun(2, torchrun)


def test_older_mpis_and_builds_with_pmix_pass() -> None:
    preflight.check_pmi("Open MPI v4.1.4", PMI2)
    preflight.check_pmi(MPICH + " --with-pmix=/usr", PMIX)


def test_a_full_dev_shm_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def free(nbytes: int) -> None:
        status = os.statvfs_result((4096, 4096, 0, 0, nbytes // 4096, 0, 0, 0, 0, 255))
        monkeypatch.setattr(os, "statvfs", lambda _: status)

    free(2 * preflight.ROOM - 4096)
    with pytest.raises(InputError, match=r"for the 2 ranks .* to start MPI, found 33\.6 MB"):
        preflight.check_room(MPIRUN)
    for rank, reports in (("0", True), ("1", False)):  # one rank per node prints the error
        with pytest.raises(preflight.StartError) as caught:
            preflight.check_room({**MPIRUN, "OMPI_COMM_WORLD_LOCAL_RANK": rank})
        assert (caught.value.check, not caught.value.everywhere) == ("/dev/shm", reports)
    preflight.check_room({})  # a single rank
    free(2 * preflight.ROOM)
    preflight.check_room(MPIRUN)


def test_a_single_process_restores_its_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [*MPIRUN, "PMI_SIZE", "SLURM_STEP_NUM_TASKS"]:
        monkeypatch.delenv(name, raising=False)
    btl, before = "OMPI_MCA_btl", dict(os.environ)
    with preflight.needed_transports():
        assert os.environ[btl] == "self"
    assert dict(os.environ) == before
    monkeypatch.setenv(btl, "self,tcp")  # a value set by the user stays
    with preflight.needed_transports():
        assert os.environ[btl] == "self,tcp"
    assert os.environ[btl] == "self,tcp"


def test_ranks_load_only_needed_transports(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("OMPI_MCA_osc", raising=False)
    for ranks, on_node, infiniband, expected in (
        (2, 2, tmp_path, ("^ofi", "^ucx")),
        (4, 2, tmp_path, (None, None)),
        (4, 2, tmp_path / "none", (None, "^ucx")),
    ):
        monkeypatch.setattr(preflight, "INFINIBAND", str(infiniband))
        monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", str(ranks))
        monkeypatch.setenv("OMPI_COMM_WORLD_LOCAL_SIZE", str(on_node))
        monkeypatch.setenv("OMPI_COMM_WORLD_LOCAL_RANK", "0")
        before = dict(os.environ)
        with preflight.needed_transports():
            assert tuple(os.environ.get(f"OMPI_MCA_{part}") for part in ("btl", "osc")) == expected
        assert dict(os.environ) == before


def test_libraries_of_a_process(tmp_path: Path) -> None:
    names = [
        "/a/libmpi.so.40.40.7",
        "/b/libmpi.so.12",
        "/c/libmpi_cray.so.12",
        "/d/libmpich.so.0",
        "/e/libmpi-1a2b.so.4",
    ]
    others = ["/f/MPI.mpich.cpython-311-x86_64-linux-gnu.so", "/g/libmpifort.so.12", "/h/libmpi.txt", "[heap]"]
    maps = tmp_path / "maps"
    lines = [f"7f00-7f10 r-xp 00000000 08:01 12 {name}" for name in [*names, *others, names[0]]]
    maps.write_text("\n".join([*lines, "7f00-7f10 r-xp 00000000 00:00 0"]))
    assert preflight.libraries(maps) == sorted(names)
    assert preflight.libraries(tmp_path / "none") == []
