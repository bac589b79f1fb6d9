"""The command line: `lsam VERB`."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

from lsam_hpc.errors import InputError
from lsam_hpc.util import launched, launcher, preflight
from lsam_hpc.util.arguments import Parser
from lsam_hpc.util.extras import DEPENDENCIES, EXTRAS, install_command
from lsam_hpc.util.pmix import survive_lost_connection

# verb -> (module with main(argv) -> exit code, help). A module is loaded only when its verb is called.
VERBS = {
    "train": ("lsam_hpc.train.verb", "train a network with LSAM, under mpirun or srun"),
    "wrap": ("lsam_hpc.launch.wrap", "run an unchanged Horovod script with LSAM"),
    "submit": ("lsam_hpc.launch.submit", "write a batch script for a cluster's scheduler, and submit it"),
    "doctor": ("lsam_hpc.launch.doctor", "check that this machine can run lsam-hpc, alone or under mpirun or srun"),
    "help": ("lsam_hpc.shell.manual", "print the manual page of a verb"),
    "completion": ("lsam_hpc.shell.completion", "print a script that completes verbs and options in a shell"),
    "bench": ("lsam_hpc.tools.bench.main", "benchmark lsam-hpc against a peer and the hardware's limit"),
    "simulate": ("lsam_hpc.tools.simulate", "predict throughput and staleness on another machine"),
    "monitor": ("lsam_hpc.tools.monitor", "show the progress of a run's ranks while it runs"),
    "inspect": ("lsam_hpc.tools.inspect_run", "print a summary of a run, or verify all its rows"),
    "merge": ("lsam_hpc.tools.merge", "merge the logs of a run, finished or killed, into one file"),
    "export": ("lsam_hpc.tools.export", "write a run as CSV, Parquet, npz, TensorBoard events or landscape files"),
    "trajectory": ("lsam_hpc.tools.trajectory", "draw the paths of chains and center on a plane of states"),
    "surface": ("lsam_hpc.tools.surface", "evaluate the loss on a line or plane around a state, and draw it"),
    "basins": ("lsam_hpc.tools.basins", "find the minima of a surface, and the saddles between them"),
    "path": ("lsam_hpc.tools.path", "measure loss barriers between states, and find curves of low loss"),
    "spectrum": ("lsam_hpc.tools.spectrum", "compute eigenvalues, trace and spectral density of the Hessian"),
    "sharpness": ("lsam_hpc.tools.sharpness", "measure the average and the largest rise of the loss in a ball"),
    "outliers": ("lsam_hpc.tools.outliers", "find the samples whose loss changes most between two states"),
    "learning-coefficient": (
        "lsam_hpc.tools.learning_coefficient",
        "estimate how many parameters a minimum uses, by chains around it",
    ),
    "predict": ("lsam_hpc.tools.predict", "compare the predictions of the center, of chains and of ensembles"),
    "diagnose": ("lsam_hpc.tools.diagnose", "check whether the chains sample well, and suggest changes"),
    "redraw": ("lsam_hpc.tools.redraw", "draw a figure again, in another format or on another scale"),
    "timeline": ("lsam_hpc.tools.timeline", "write steps, exchanges and waits as a trace for Perfetto"),
    "report": ("lsam_hpc.tools.report", "write one HTML file about a run"),
}
STARTS_MPI = ("train",)  # verbs whose modules start MPI when they are loaded


def main(argv: Sequence[str] | None = None) -> int:
    """Run `lsam VERB ...`.

    Returns:
        0: done; 2: bad usage or input; 3: stopped after a checkpoint; 4: ranks failed. Other exceptions
        print a traceback and abort all ranks of an MPI job.
    """
    argv = sys.argv[1:] if argv is None else argv
    try:
        if not argv:
            raise InputError(f"VERB: expected one of {', '.join(VERBS)}, found none: see lsam --help")
        options = parser().parse_args(argv)
    except InputError as error:
        print(f"lsam: {error}", file=sys.stderr)
        return 2
    try:
        if options.verb in STARTS_MPI and not {"-h", "--help"} & set(options.rest):
            launcher.watch().start()
            preflight.start()
            survive_lost_connection()
        else:
            launcher.watch().guard()
        code = int(importlib.import_module(VERBS[options.verb][0]).main(options.rest))
        sys.stdout.flush()
        return code
    except preflight.StartError as error:
        if error.speaks:
            print(f"lsam {options.verb}: {error}", file=sys.stderr)
        return 2 if error.speaks else 0
    except InputError as error:
        if not error.everywhere or _rank() == 0:
            print(f"lsam {options.verb}: {error}", file=sys.stderr)
        if not error.everywhere:
            _abort_at_exit(2)
        return 2
    except ModuleNotFoundError as error:
        module = (error.name or "").partition(".")[0]
        if module not in EXTRAS and module not in DEPENDENCIES:
            _abort_at_exit(1)
            raise
        if _rank() == 0:
            how = install_command(module)
            print(f"lsam {options.verb}: expected the package {module}, found none: {how}", file=sys.stderr)
        return 2
    except SystemExit:  # --help
        raise
    except BrokenPipeError:  # as in `lsam inspect RUN | head`; the interpreter must not flush stdout again at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except BaseException:
        _abort_at_exit(1)
        raise
    finally:
        launcher.watch().ending()


def parser() -> Parser:
    """Return the parser of the verb."""
    verbs = Parser(
        prog="lsam",
        description="Landscape-Smoothed SAM on MPI.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="verbs:\n"
        + "\n".join(f"  {verb:20} {text}" for verb, (_, text) in VERBS.items())
        + "\n\n`lsam VERB --help` lists a verb's options.",
    )
    verbs.add_argument("--version", nargs=0, action=_Version, help="show the versions of lsam-hpc and its libraries")
    verbs.add_argument("verb", choices=VERBS, metavar="VERB")
    verbs.add_argument("rest", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    return verbs


class _Version(argparse.Action):
    """Prints the versions, and ends the program."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object, **__: object) -> None:
        print(importlib.import_module("lsam_hpc.launch.versions").versions())
        parser.exit()


def _rank() -> int:
    mpi = sys.modules.get("mpi4py.MPI")
    return int(mpi.COMM_WORLD.rank) if mpi is not None and mpi.Is_initialized() else launched.launched_rank()


def _abort_at_exit(status: int) -> None:
    """Let MPI abort the whole job when this rank exits: the others might wait for it forever."""
    if "mpi4py.MPI" in sys.modules:
        from mpi4py import MPI
        from mpi4py.run import set_abort_status

        if MPI.Is_initialized() and MPI.COMM_WORLD.size > 1:
            set_abort_status(status)
