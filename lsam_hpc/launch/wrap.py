"""`lsam wrap [options] -- script.py args...`: run a Horovod script as it is, with LSAM."""

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
from lsam_hpc.util.log import get_logger
from lsam_hpc.util.preflight import launched_rank


def main(argv: Sequence[str]) -> int:
    """Run the script; return the exit code, or leave with the script's own."""
    given, dry, path, arguments = parse(argv)
    # As if they had been given so: the script's workers see them too.
    os.environ.update({variable(name): str(value) for name, value in given.items()})
    options = resolve({})
    if dry:
        print("\n".join(would_replace(path, options)))
        return 0
    hook.install(Path(path).stem)
    try:
        script.run(path, arguments)
    except SystemExit as leaving:
        _leave(leaving)
        raise
    except InputError as error:
        lines = [
            frame.lineno
            for frame in traceback.extract_tb(error.__traceback__)
            if frame.filename == os.path.abspath(path)
        ]
        where = f" ({path}, line {lines[-1]})" if lines else ""
        raise InputError(f"{error}{where}", everywhere=error.everywhere) from error
    except BaseException as error:  # noqa: BLE001  (it is shown, and ends the job)
        return _fail(error, path)
    _warn_if_unused(path)
    return 0


def parse(argv: Sequence[str]) -> tuple[dict[str, Any], bool, str, list[str]]:
    """Return the options that were given, whether this is a dry run, the script, and its arguments.

    Raises:
        InputError: an option is unknown, or there is no script.
    """
    parser = Parser(
        prog="lsam wrap",
        allow_abbrev=False,
        usage="lsam wrap [options] -- script.py args...",
        description="Run a Horovod script as it is, with LSAM in place of DistributedOptimizer; under mpirun or srun.",
    )
    parser.add_argument("--config", metavar="FILE", default=argparse.SUPPRESS, help="TOML or YAML file with options")
    parser.add_argument("--dry-run", action="store_true", help="say what would be replaced; the script does not run")
    add_flags(parser, Options)
    parser.add_argument("words", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    known, unknown = parser.parse_known_args(argv)
    if unknown:
        raise InputError(unknown_option(unknown[0], [*map(flag, HINTS)]))
    given = vars(known)
    words, dry = given.pop("words"), given.pop("dry_run")
    words = words[words[:1] == ["--"] :]
    if not words:
        raise InputError("script: expected lsam wrap [options] -- script.py args..., found none")
    return given, dry, words[0], words[1:]


def would_replace(path: str, options: Options) -> list[str]:
    """Return what a dry run prints."""
    script.compiled(path)
    found = scan(Path(path).read_text(encoding="utf-8"))
    lines = [f"{path}:{line}: {text}" for line, text in found.lines]
    if not found.wraps:
        lines.append(f"{path}: no call of DistributedOptimizer in this file: if none is elsewhere, LSAM has no part")
    changed = {k: v for k, v in options.described().items() if v != Options().described()[k]}
    return [*lines, "options: " + (", ".join(f"{k} {v}" for k, v in changed.items()) or "the defaults")]


def _leave(leaving: SystemExit) -> None:
    """Have a nonzero exit code end the job, as soon as this process has ended."""
    code = leaving.code
    if code is None or code == 0:
        return
    if "lsam_hpc.horovod.session" in sys.modules:
        from mpi4py.run import set_abort_status

        sys.modules["lsam_hpc.horovod.session"].session.failed = True
        set_abort_status(leaving)


def _fail(error: BaseException, path: str) -> int:
    """Show an exception as Python would, without our frames, and end the job."""
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
    loaded = sys.modules.get("lsam_hpc.horovod.session")
    if loaded is not None and loaded.session.wrapped:
        return
    if launched_rank() == 0:
        get_logger(__name__).warning(
            "warning: %s never called hvd.DistributedOptimizer: LSAM had no part in this run", path
        )
