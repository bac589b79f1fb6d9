"""Replaces `python`: runs the program in a process that the server tests/helpers/forkserver.py forks.

    python -IS forked_python.py SOCKET PYTHON ARGV...

PYTHON itself runs a program that needs other options than -m and -c, other values than the server's of the variables
that libraries read at import, or another host. This file imports little, because it is started for each rank.
"""

import os
import signal
import socket
import sys
from array import array
from contextlib import suppress
from json import dumps, loads
from os.path import splitext


def main(path: str, python: str, *argv: str) -> None:
    with open(splitext(path)[0] + ".json") as file:
        about = loads(file.read())
    spaces = [os.readlink(f"/proc/self/ns/{kind}") for kind in ("ipc", "mnt", "net", "pid", "uts")]
    early = {n: v for n, v in os.environ.items() if n.startswith(tuple(about["early"])) and n != "PYTHONPATH"}
    simple = bool(argv) and (argv[0] in ("-m", "-c") or not argv[0].startswith("-"))
    if not simple or early != about["env"] or spaces != about["spaces"]:
        os.execv(python, [python, *argv])
    waiting: list[int] = []
    child = 0

    def forward(number: int, _: object) -> None:
        if child:
            _signal(child, number)
        else:
            waiting.append(number)

    signals = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGQUIT)
    for number in signals:
        signal.signal(number, forward)
    umask = os.umask(0)
    os.umask(umask)
    numbers = [number for number in map(int, os.listdir("/proc/self/fd")) if _is_open(number)]
    program = {"argv": argv, "env": dict(os.environ), "cwd": os.getcwd(), "umask": umask, "numbers": numbers}
    server = socket.socket(socket.AF_UNIX)
    server.connect(path)
    message = dumps(program).encode() + b"\n"
    sent = server.sendmsg([message], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", numbers))])
    server.sendall(message[sent:])
    child = int.from_bytes(server.recv(4, socket.MSG_WAITALL), "little")
    for number in waiting:
        _signal(child, number)
    answer = server.recv(4, socket.MSG_WAITALL)
    if not answer:
        sys.exit("forked_python: the server has ended")
    status = int.from_bytes(answer, "little")
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        if number != signal.SIGKILL:
            signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    os._exit(os.WEXITSTATUS(status))


def _signal(process: int, number: int) -> None:
    with suppress(ProcessLookupError):  # it has just ended
        os.kill(process, number)


def _is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:  # the descriptor of the listed folder, which is closed again
        return False
    return True


main(*sys.argv[1:])
