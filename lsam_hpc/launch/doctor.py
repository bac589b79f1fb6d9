"""`lsam doctor`: check what a run needs from the machine, and say what is wrong with it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from lsam_hpc import preflight
from lsam_hpc.arguments import Parser
from lsam_hpc.errors import InputError

BAD = 2  # the exit code if a check failed


def main(argv: Sequence[str]) -> int:
    """Run `lsam doctor` on this rank; return its exit code: 0 if the verdict is ready, 2 if not."""
    parser = Parser(
        prog="lsam doctor", allow_abbrev=False,
        description="Check what a run needs from the machine: alone, and under mpirun or srun as the run will be.",
    )  # fmt: skip
    parser.add_argument(
        "--run-dir", type=Path, default=Path(), help="folder that runs are written to (default: this one)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON in place of a table")
    given = parser.parse_args(argv)
    if not given.run_dir.is_dir():
        raise InputError(f"--run-dir: expected a folder, found {given.run_dir}", everywhere=True)
    refused = _start()

    from lsam_hpc.launch import doctor_mpi, doctor_node, doctor_process
    from lsam_hpc.launch.doctor_report import Finding, Ranks, shown

    if refused is not None:
        # Ranks that MPI did not bring together: the launcher's first one speaks, and each node's on what is the node's.
        if preflight.launched_rank() == 0 or (refused.check == "/dev/shm" and preflight.on_node()[0] == 0):
            print(shown([Finding(refused.check, "fail", str(refused))], given.json), flush=True)
        return BAD
    from mpi4py import MPI

    ranks = Ranks(MPI.COMM_WORLD, given.run_dir)
    checks: list[Callable[[Ranks], Finding]] = [
        doctor_process.python,
        doctor_process.torch,
        doctor_process.gpus,
        doctor_process.cores,
        doctor_mpi.mpi,
        doctor_process.libraries,
        doctor_mpi.placement,
        doctor_mpi.threads,
        doctor_node.shared_memory,
        doctor_node.memory,
        doctor_mpi.window,
        doctor_mpi.progress,
        doctor_mpi.clocks,
        doctor_process.horovod,
        doctor_node.run_directory,
        doctor_node.hdf5,
    ]
    findings = [check(ranks) for check in checks]
    if ranks.comm.rank == 0:
        print(shown(findings, given.json), flush=True)
    return BAD if any(found.level == "fail" for found in findings) else 0


def _start() -> preflight.StartError | None:
    """Start MPI; return why that cannot be done."""
    try:
        preflight.start()
    except preflight.StartError as error:
        return error
    return None
