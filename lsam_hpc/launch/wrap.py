"""`lsam wrap [options] -- script.py args...`: run an unchanged Horovod script with LSAM."""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from lsam_hpc.errors import InputError
from lsam_hpc.horovod.options import HINTS, Options, resolve, variable
from lsam_hpc.launch import hook, script
from lsam_hpc.launch.scan import scan
from lsam_hpc.options.command_line import add_flags, flag
from lsam_hpc.options.files import unknown_option
from lsam_hpc.util.arguments import Parser
from lsam_hpc.util.launched import launched_rank
from lsam_hpc.util.log import get_logger


def main(argv: Sequence[str]) -> int:
    """Run the script; return the exit code, or raise the script's SystemExit."""
    flags, dry_run, path, arguments = parse(argv)
    # As variables, so that the script's worker processes inherit them.
    os.environ.update({variable(name): str(value) for name, value in flags.items()})
    options = resolve({})
    if dry_run:
        print("\n".join(would_replace(path, options)))
        return 0
    hook.install(Path(path).stem)
    try:
        script.run(path, arguments)
    except SystemExit as error:
        _abort_on_failure(error)
        raise
    except InputError as error:
        lines = [
            frame.lineno
            for frame in traceback.extract_tb(error.__traceback__)
            if frame.filename == os.path.abspath(path)
        ]
        where = f" ({path}, line {lines[-1]})" if lines else ""
        raise InputError(f"{error}{where}", everywhere=error.everywhere) from error
    except BaseException as error:  # noqa: BLE001  (printed, and ends the job)
        return _print_and_abort(error, path)
    _warn_if_unused(path)
    return 0


def parse(argv: Sequence[str]) -> tuple[dict[str, Any], bool, str, list[str]]:
    """Return the options of the command line, whether this is a dry run, the script, and its arguments.

    Raises:
        InputError: an option is unknown, or there is no script.
    """
    parser = Parser(
        prog="lsam wrap",
        allow_abbrev=False,
        usage="lsam wrap [options] -- script.py args...",
        description="Run an unchanged Horovod script with LSAM in place of DistributedOptimizer, under mpirun or srun.",
    )
    parser.add_argument("--config", metavar="FILE", default=argparse.SUPPRESS, help="TOML or YAML file with options")
    parser.add_argument("--dry-run", action="store_true", help="print what would be replaced; do not run the script")
    add_flags(parser, Options)
    parser.add_argument("words", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    known, unknown = parser.parse_known_args(argv)
    if unknown:
        raise InputError(unknown_option(unknown[0], [*map(flag, HINTS)]))
    flags = vars(known)
    words, dry_run = flags.pop("words"), flags.pop("dry_run")
    words = words[words[:1] == ["--"] :]
    if not words:
        raise InputError("script: expected lsam wrap [options] -- script.py args..., found none")
    return flags, dry_run, words[0], words[1:]


def would_replace(path: str, options: Options) -> list[str]:
    """Return the lines that a dry run prints."""
    script.compiled(path)
    findings = scan(Path(path).read_text(encoding="utf-8"))
    lines = [f"{path}:{line}: {text}" for line, text in findings.lines]
    if not findings.wraps:
        lines.append(f"{path}: no call of DistributedOptimizer in this file: LSAM is only used if another calls it")
    changed = {k: v for k, v in options.described().items() if v != Options().described()[k]}
    return [*lines, "options: " + (", ".join(f"{k} {v}" for k, v in changed.items()) or "the defaults")]


def _abort_on_failure(error: SystemExit) -> None:
    """With a nonzero exit code, let MPI abort the whole job when this process ends."""
    if error.code not in (None, 0) and "lsam_hpc.horovod.session" in sys.modules:
        from mpi4py.run import set_abort_status

        sys.modules["lsam_hpc.horovod.session"].session.failed = True
        set_abort_status(error)


def _print_and_abort(error: BaseException, path: str) -> int:
    """Print an exception as Python does, without the frames of this package, and abort the job."""
    sys.stdout.flush()
    trace: TracebackType | None = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename != os.path.abspath(path):
        trace = trace.tb_next
    code = 130 if isinstance(error, KeyboardInterrupt) else 1
    sys.excepthook(type(error), error.with_traceback(trace or error.__traceback__), trace or error.__traceback__)
    sys.stderr.flush()
    if "lsam_hpc.horovod.session" in sys.modules:
        sys.modules["lsam_hpc.horovod.session"].session.abort(code)
    return code


def _warn_if_unused(path: str) -> None:
    module = sys.modules.get("lsam_hpc.horovod.session")
    if module is not None and module.session.wrapped:
        return
    if launched_rank() == 0:
        get_logger(__name__).warning(
            "warning: %s never called hvd.DistributedOptimizer: LSAM was not used in this run", path
        )
