"""`lsam doctor`: check what a run needs from the machine, and say what is wrong with it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from lsam_hpc import preflight
from lsam_hpc.arguments import Parser

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
    refused = _start()

    from lsam_hpc.launch import doctor_mpi, doctor_node, doctor_process
    from lsam_hpc.launch.doctor_report import Finding, Ranks, shown

    if refused is not None:
        if refused.speaks:
            print(shown([Finding(refused.check, "fail", str(refused))], given.json), flush=True)
        return BAD if refused.speaks else 0
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
