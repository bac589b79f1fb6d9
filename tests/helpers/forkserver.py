"""Starts Python programs that need not import torch again: `python -m tests.helpers.forkserver SOCKET PID`.

A rank takes two to three seconds of a core to import what it needs, and most tests of jobs need less than that for the
rest. This server imports it once and forks a process for each program. A program is started by
tests/helpers/forked_python.py, which stands where `python` would: mpiexec starts it, watches it and signals it, and it
hands its arguments, its environment, its folder and its open files to the server. The forked process runs the program
with them; signals go to it, its exit code comes back, and if its stand-in is killed, so is it.

The server ends with the process PID, and everything that it has forked ends with it.
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

# Third-party packages that jobs and tools use. mpi4py.MPI is not here: it starts MPI, which each rank has to do itself.
# torch._dynamo is: the first optimizer of a script imports it, though not that of lsam train (see train/compiler.py).
MODULES = (
    "torch", "torch._dynamo", "torch.nn.functional", "torch.utils.data", "torch.profiler", "numpy", "h5py", "tqdm",
    "yaml", "mpi4py.run", "lsam_hpc.optim.lsam", "lsam_hpc.optim.samples", "lsam_hpc.trajectory",
    "lsam_hpc.train.parts", "lsam_hpc.train.table", "lsam_hpc.runlog", "lsam_hpc.horovod.options",
    "lsam_hpc.launch.wrap",
)  # fmt: skip
# What is read when a library is loaded: a program whose variables differ from the server's is not forked from it.
EARLY = ("PYTHON", "LD_PRELOAD", "OMP_", "MKL_", "OPENBLAS", "HDF5_", "CUDA_")
_ABOVE = 512  # file descriptors of a program are kept above this number until its own are in place


@dataclass(frozen=True)
class Program:
    """What to run: as the stand-in was called, where, and with which files open under which numbers."""

    argv: list[str]
    env: dict[str, str]
    cwd: str
    umask: int
    numbers: list[int]
    files: list[int]


def early(env: dict[str, str]) -> dict[str, str]:
    """Return the variables that libraries read when they are loaded; PYTHONPATH is dealt with at each start."""
    return {name: value for name, value in env.items() if name.startswith(EARLY) and name != "PYTHONPATH"}


def spaces() -> list[str]:
    """Return the namespaces that this process is in: a program of another host is not forked from here."""
    return [os.readlink(f"/proc/self/ns/{kind}") for kind in ("ipc", "mnt", "net", "pid", "uts")]


def serve(path: Path, owner: int) -> Program:
    """Fork a process for each program until the owner ends; return the program, in the forked process only."""
    with suppress(FileNotFoundError):
        path.unlink()
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen(64)
    about = {"early": EARLY, "env": early(dict(os.environ)), "spaces": spaces()}
    temporary = path.with_suffix(".new")
    temporary.write_text(json.dumps(about))
    temporary.replace(path.with_suffix(".json"))  # from now on programs are taken
    selector = selectors.DefaultSelector()
    selector.register(listener, selectors.EVENT_READ, ("program", None))
    selector.register(os.pidfd_open(owner), selectors.EVENT_READ, ("owner", None))
    running: dict[int, socket.socket] = {}
    while True:
        for event, _ in selector.select():
            what, pid = event.data
            if what == "owner":
                for child in running:
                    os.kill(child, signal.SIGKILL)
                os._exit(0)
            elif what == "program":
                connection, _ = listener.accept()
                try:
                    program = receive(connection)
                except (OSError, EOFError):  # the stand-in was killed before it had asked
                    connection.close()
                    continue
                child = os.fork()
                if child == 0:
                    # Closed here, not when they are collected: their numbers are the program's files by then.
                    for key in [*selector.get_map().values()]:
                        if isinstance(key.fileobj, socket.socket):
                            key.fileobj.close()
                    selector.close()
                    connection.close()
                    return program
                for file in program.files:
                    os.close(file)
                with suppress(OSError):  # it was killed since: its end of the connection says so below
                    connection.sendall(child.to_bytes(4, "little"))
                running[child] = connection
                selector.register(connection, selectors.EVENT_READ, ("gone", child))
                selector.register(os.pidfd_open(child), selectors.EVENT_READ, ("ended", child))
            elif what == "gone":  # the stand-in was killed
                selector.unregister(event.fileobj)
                if pid in running:
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
    """Return what a stand-in asks for; raise EOFError if it ends before it has asked."""
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
    """Take over a program's files, environment and folder, in a process that was just forked."""
    kept = [fcntl.fcntl(file, fcntl.F_DUPFD, _ABOVE) for file in program.files]
    os.closerange(0, _ABOVE)
    for number, file in zip(program.numbers, kept, strict=True):
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
    """Run a program; what it raises is shown without what lies below it."""
    become(program)
    try:
        execute(program.argv)
    except SystemExit:
        raise
    except BaseException as error:  # noqa: BLE001  (it is shown, and the exit code says so)
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
