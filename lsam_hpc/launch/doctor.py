"""`lsam doctor`: check that the machine meets the needs of a run, and report what does not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from lsam_hpc.errors import InputError
from lsam_hpc.util import preflight
from lsam_hpc.util.arguments import Parser

FAILED = 2  # exit code if a check failed


def main(argv: Sequence[str]) -> int:
    """Run `lsam doctor` on this rank; return its exit code: 0 if the verdict is ready, 2 if not."""
    parser = Parser(
        prog="lsam doctor",
        allow_abbrev=False,
        description="Check that the machine meets the needs of a run. Start it like the run: alone, by mpirun or srun.",
    )
    parser.add_argument(
        "--run-dir", type=Path, default=Path(), help="folder that runs are written to (default: the working directory)"
    )
    job = parser.add_argument_group("the job", "options as of lsam train; with --parameters its chains are checked too")
    job.add_argument("--parameters", type=int, help="elements of the model")
    job.add_argument("--group-size", type=int, default=1, help="ranks of a chain (default: %(default)s)")
    job.add_argument(
        "--shard", choices=("none", "fsdp2"), default="none", help="shard its model (default: %(default)s)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args(argv)
    known, asked = options.parameters, options.group_size != 1 or options.shard != "none"
    if known is None and asked:
        raise InputError("--parameters: expected the model's elements with --group-size or --shard, found none")
    if known is not None and known < 1:
        raise InputError(f"--parameters: expected a number of elements >= 1, found {known}")
    error = _start()

    from lsam_hpc.launch import doctor_gpus, doctor_node, doctor_process
    from lsam_hpc.launch.doctor_report import Finding, OneProcess, Ranks, report

    if error is not None:
        if error.speaks:
            failed = [Finding(error.check, "fail", str(error))]
            if error.check == "mpi":
                alone = Ranks(OneProcess(), options.run_dir)
                failed += [check(alone) for check in (*doctor_process.CHECKS, doctor_gpus.gpus, *doctor_node.CHECKS)]
            print(report(failed, as_json=options.json), flush=True)
        return FAILED if error.speaks else 0
    from mpi4py import MPI

    from lsam_hpc.launch import doctor_mpi

    ranks = Ranks(MPI.COMM_WORLD, options.run_dir)
    checks: list[Callable[[Ranks], Finding]] = [
        doctor_process.python,
        doctor_process.torch,
        doctor_gpus.gpus,
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
    if options.parameters is not None:
        from lsam_hpc.launch import doctor_chains  # with the packages that the simulator needs

        plan = doctor_chains.Plan(options.parameters, options.group_size, options.shard != "none")
        findings.append(doctor_chains.chains(ranks, plan))
    if ranks.comm.rank == 0:
        print(report(findings, as_json=options.json), flush=True)
    return FAILED if any(finding.level == "fail" for finding in findings) else 0


def _start() -> preflight.StartError | None:
    """Start MPI; return the error if that fails."""
    try:
        preflight.start()
    except preflight.StartError as error:
        return error
    return None
