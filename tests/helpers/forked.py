"""Starts the servers of tests/helpers/forkserver.py, one for each Python that the tests use."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shlex
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path

FOLDER = "FORKSERVERS"  # environment variable: the folder of the servers' sockets, for pytest's workers
_OWNER = "FORKSERVERS_OWNER"  # environment variable: id of the pytest process; the servers end when it ends
_HERE = Path(__file__).parent


def prepare() -> None:
    """Make the folder; a server starts when it is first used."""
    os.environ[FOLDER] = tempfile.mkdtemp(prefix="lsam-fork-")
    os.environ[_OWNER] = str(os.getpid())


def remove() -> None:
    """Remove the folder; the servers end when this process does."""
    shutil.rmtree(os.environ.pop(FOLDER), ignore_errors=True)


def forked(python: str, env: dict[str, str]) -> str:
    """Return a program to call in place of a Python; it runs in a forked process that has torch imported.

    Args:
        python: the interpreter.
        env: the server's environment.

    Raises:
        AssertionError: the server did not start, or has ended since the last call; the message is its output.
    """
    folder, name = Path(os.environ[FOLDER]), hashlib.sha256(python.encode()).hexdigest()[:12]
    script, path, log = (folder / f"{name}{suffix}" for suffix in ("", ".socket", ".log"))
    with (folder / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another worker may be starting the same server
        if script.exists() and not _listens(path):
            path.with_suffix(".json").unlink()
            script.unlink()  # the next call starts another server
            raise AssertionError(f"the fork server ended:\n{log.read_text()}")
        if not script.exists():
            words = [python, "-m", "tests.helpers.forkserver", str(path), os.environ[_OWNER]]
            with log.open("wb") as output:
                server = subprocess.Popen(
                    words,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    cwd=_HERE.parents[1],
                    env={name: value for name, value in env.items() if name != "PYTHONPATH"},
                    start_new_session=True,
                )
            deadline = time.monotonic() + 120
            while not path.with_suffix(".json").exists():
                assert server.poll() is None, f"the fork server ended:\n{log.read_text()}"
                assert time.monotonic() < deadline, f"the fork server did not start\n{log.read_text()}"
                time.sleep(0.02)
            program = shlex.join([python, "-IS", str(_HERE / "forked_python.py"), str(path), python])
            script.write_text(f'#!/bin/sh\nexec {program} "$@"\n')
            script.chmod(0o755)
    return str(script)


def _listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        try:
            client.connect(str(path))
        except ConnectionRefusedError:
            return False
    return True
