"""Runs Python programs in forked processes that have torch imported: `python -m tests.helpers.forkserver SOCKET PID`.

A rank takes two to three seconds of a core for its imports, and most tests of jobs need less than that for the rest.
This server imports the packages once and forks a process for each program. mpiexec starts, watches and signals a
stand-in, tests/helpers/forked_python.py, in place of `python`. The stand-in sends its arguments, environment, working
directory and open files to the server, and the forked process runs the program with them. The stand-in forwards signals
and returns the exit code; if the stand-in is killed, so is the program.

The server and all processes that it forked end when the process PID ends.
"""

from __future__ import annotations

import array
import fcntl
import gc
import importlib
import json
import os
import random
import runpy
import selectors
import signal
import socket
import sys
import tempfile
import types
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Packages that jobs and tools use. Without mpi4py.MPI, which starts MPI: each rank has to do that itself. With
# torch._dynamo, which the first optimizer of a script imports, though not that of lsam train (see train/compiler.py).
MODULES = (
    "torch",
    "torch._dynamo",
    "torch.nn.functional",
    "torch.utils.data",
    "torch.profiler",
    "numpy",
    "h5py",
    "tqdm",
    "yaml",
    "mpi4py.run",
    "lsam_hpc.optim.lsam",
    "lsam_hpc.optim.samples",
    "lsam_hpc.trajectory",
    "lsam_hpc.train.builders",
    "lsam_hpc.train.table",
    "lsam_hpc.rundir.runlog",
    "lsam_hpc.horovod.options",
    "lsam_hpc.launch.wrap",
)
# Variables that libraries read at import: a program whose values differ from the server's is not forked from it.
EARLY = ("PYTHON", "LD_PRELOAD", "OMP_", "MKL_", "OPENBLAS", "HDF5_", "CUDA_")
_ABOVE = 512  # received file descriptors are moved above this number until the server's are closed


@dataclass(frozen=True)
class Program:
    """A program to run: the stand-in's arguments, environment, working directory, umask and open files."""

    argv: list[str]
    env: dict[str, str]
    cwd: str
    umask: int
    numbers: list[int]
    files: list[int]


def early(env: dict[str, str]) -> dict[str, str]:
    """Return the variables that libraries read at import, without PYTHONPATH, which `become` applies."""
    return {name: value for name, value in env.items() if name.startswith(EARLY) and name != "PYTHONPATH"}


def spaces() -> list[str]:
    """Return the namespaces of this process: a program in others, as on another host, is not forked from it."""
    return [os.readlink(f"/proc/self/ns/{kind}") for kind in ("ipc", "mnt", "net", "pid", "uts")]


def serve(path: Path, owner: int) -> Program:
    """Fork a process for each program until the owner ends; return the program in each forked process."""
    with suppress(FileNotFoundError):
        path.unlink()
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen(64)
    about = {"early": EARLY, "env": early(dict(os.environ)), "spaces": spaces()}
    temporary = path.with_suffix(".new")
    temporary.write_text(json.dumps(about))
    temporary.replace(path.with_suffix(".json"))  # tells `forked` that the server is ready
    selector = selectors.DefaultSelector()
    selector.register(listener, selectors.EVENT_READ, ("program", None))
    selector.register(os.pidfd_open(owner), selectors.EVENT_READ, ("owner", None))
    running: dict[int, socket.socket] = {}
    while True:
        for event, _ in selector.select():
            kind, pid = event.data
            if kind == "owner":
                for child in running:
                    os.kill(child, signal.SIGKILL)
                os._exit(0)
            elif kind == "program":
                connection, _ = listener.accept()
                try:
                    program = receive(connection)
                except (OSError, EOFError):  # the stand-in was killed before its request was complete
                    connection.close()
                    continue
                child = os.fork()
                if child == 0:
                    # Closed now: when they are garbage-collected, their numbers belong to the program's files.
                    for key in [*selector.get_map().values()]:
                        if isinstance(key.fileobj, socket.socket):
                            key.fileobj.close()
                    selector.close()
                    connection.close()
                    return program
                for file in program.files:
                    os.close(file)
                with suppress(OSError):  # the stand-in was killed: the selector reports that next
                    connection.sendall(child.to_bytes(4, "little"))
                running[child] = connection
                selector.register(connection, selectors.EVENT_READ, ("gone", child))
                selector.register(os.pidfd_open(child), selectors.EVENT_READ, ("ended", child))
            elif kind == "gone":  # the stand-in was killed
                if pid in running:  # else its program ended in this round of events, which closed the connection
                    selector.unregister(event.fileobj)
                    os.kill(pid, signal.SIGKILL)
            else:
                _, status = os.waitpid(pid, 0)
                selector.unregister(event.fileobj)
                os.close(event.fd)
                connection = running.pop(pid)
                with suppress(KeyError):
                    selector.unregister(connection)
                with suppress(OSError):
                    connection.sendall(status.to_bytes(4, "little"))
                connection.close()


def receive(connection: socket.socket) -> Program:
    """Return the program that a stand-in sends."""
    numbers = array.array("i")
    data, controls, _, _ = connection.recvmsg(65536, socket.CMSG_SPACE(253 * numbers.itemsize))
    for _, _, bytes_ in controls:
        numbers.frombytes(bytes_)
    while not data.endswith(b"\n"):
        if not (more := connection.recv(65536)):
            for number in numbers:
                os.close(number)
            raise EOFError
        data += more
    return Program(**json.loads(data), files=numbers.tolist())


def become(program: Program) -> None:
    """Take over a program's files, environment and working directory, in a process that was just forked."""
    files = [fcntl.fcntl(file, fcntl.F_DUPFD, _ABOVE) for file in program.files]
    os.closerange(0, _ABOVE)
    for number, file in zip(program.numbers, files, strict=True):
        os.dup2(file, number)
        os.close(file)
    os.environ.clear()
    os.environ.update(program.env)
    os.chdir(program.cwd)
    os.umask(program.umask)
    sys.orig_argv = [sys.executable, *program.argv]
    paths = [path for path in program.env.get("PYTHONPATH", "").split(":") if path]
    sys.path[1:1] = [path for path in paths if path not in sys.path[1:]]
    tempfile.tempdir = None
    random.seed()
    sys.modules["numpy"].random.seed()


def execute(argv: list[str]) -> None:
    """Run a program as `python ARGV` would."""
    main: Any = types.ModuleType("__main__")
    main.__builtins__ = __builtins__
    sys.modules["__main__"] = main
    if argv[0] == "-m":
        sys.argv, sys.path[0] = ["-m", *argv[2:]], os.getcwd()
        runpy._run_module_as_main(argv[1])  # type: ignore[attr-defined]
    elif argv[0] == "-c":
        sys.argv, sys.path[0] = ["-c", *argv[2:]], ""
        exec(compile(argv[1], "<string>", "exec"), main.__dict__)
    else:
        sys.argv, sys.path[0] = argv, str(Path(argv[0]).resolve().parent)
        main.__file__ = argv[0]
        exec(compile(Path(argv[0]).read_bytes(), argv[0], "exec"), main.__dict__)


def run(program: Program) -> None:
    """Run a program; the traceback of an error leaves out the frames of this file."""
    become(program)
    try:
        execute(program.argv)
    except SystemExit:
        raise
    except BaseException as error:  # noqa: BLE001 - it is printed, and the exit code is 1
        trace = error.__traceback__
        while trace is not None and trace.tb_frame.f_code.co_filename == __file__:
            trace = trace.tb_next
        sys.excepthook(type(error), error.with_traceback(trace), trace)
        sys.exit(1)


if __name__ == "__main__":
    for name in MODULES:
        importlib.import_module(name)
    gc.freeze()
    run(serve(Path(sys.argv[1]), int(sys.argv[2])))
