"""Two hosts on one machine, for tests of MPI jobs that span nodes.

A host is a set of Linux namespaces with its own network, name, IPC and /dev/shm; a virtual network cable joins the two.
MPI takes them for different nodes and uses TCP between them.

    with two_hosts() as hosts:
        done = hosts.run(mpi, 4, mpi.python, "-m", "mpi4py", "script.py", timeout=60)   # ranks 0, 1 on a; 2, 3 on b

It needs root, or CAP_SYS_ADMIN and CAP_NET_ADMIN: `available()` returns the reason why it does not work. Two small
processes that read from a pipe of this process keep the namespaces alive. So the namespaces disappear when the block
ends, and also if this process dies.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tests.helpers.mpis import ROOT, Mpi, run

NAMES = ("lsam-a", "lsam-b")
_ADDRESSES = ("10.213.0.1", "10.213.0.2")  # seen inside the namespaces only
_KINDS = ("--net", "--uts", "--mount", "--ipc")
_AGENT = """#!/bin/sh
# agent [options] host command...
while [ "${{1#-}}" != "$1" ]; do shift; done
host=$1; shift
case $host in
{0}) exec {2} sh -c "$*" ;;
{1}) exec {3} sh -c "$*" ;;
esac
echo "no host $host" >&2; exit 1
"""


@dataclass(frozen=True)
class Hosts:
    """Two hosts that are set up.

    Args:
        enter: for each host, the words that run a command on it.
        agent: a script that MPI uses in place of ssh.
    """

    enter: tuple[list[str], list[str]]
    agent: Path

    def across(self, mpi: Mpi, ranks: int) -> Mpi:
        """Return the MPI that starts jobs on both hosts, the first half of the ranks on the first one.

        Args:
            mpi: to run on.
            ranks: their number, even.
        """
        places = ",".join(f"{name}:{ranks // 2}" for name in NAMES)
        flags = {
            "openmpi": (
                "--host",
                places,
                "--prtemca",
                "plm_ssh_agent",
                str(self.agent),
                "--mca",
                "btl",
                "tcp,self,sm",
                "--mca",
                "osc_rdma_buffer_size",
                "4194304",
                "--mca",  # the hosts share this machine's cores, and Open MPI does not know it
                "mpi_yield_when_idle",
                "1",
            ),
            "mpich": ("-hosts", places, "-launcher", "ssh", "-launcher-exec", str(self.agent)),
        }
        # MPICH's UCX would try the loopback device, which does not connect to the other host.
        start = (*self.enter[0], "env", "UCX_NET_DEVICES=eth0", *mpi.mpiexec, *flags[mpi.name])
        return Mpi(mpi.name, mpi.python, start)

    def run(self, mpi: Mpi, ranks: int, *words: str, timeout: float) -> subprocess.CompletedProcess[str]:
        """Run a job on both hosts, the first half of the ranks on the first one.

        Args:
            mpi: to run on.
            ranks: their number, even.
            words: each rank's command.
            timeout: s, after which the job is ended and TimeoutExpired is raised.
        """
        return run(self.across(mpi, ranks).command(ranks, *words), timeout)


@contextmanager
def two_hosts(shared_memory: str = "2g") -> Iterator[Hosts]:
    """Set up two hosts and take them down again.

    Args:
        shared_memory: the size of each one's /dev/shm, as mount's option `size`.
    """
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="lsam-hosts-")))
        table = folder / "hosts"
        lines = ["127.0.0.1 localhost", *(f"{a} {n}" for a, n in zip(_ADDRESSES, NAMES, strict=True))]
        table.write_text("\n".join([*lines, ""]))
        pids = [stack.enter_context(_host(name, table, shared_memory)) for name in NAMES]
        enter = tuple(["nsenter", f"--target={pid}", *_KINDS, f"--wd={ROOT}"] for pid in pids)
        _call("ip", "link", "add", "eth0", "netns", str(pids[0]), "type", "veth", "peer", "eth0", "netns", str(pids[1]))
        for words, address in zip(enter, _ADDRESSES, strict=True):
            _call(*words, "ip", "address", "add", f"{address}/24", "dev", "eth0")
            for device in ("lo", "eth0"):
                _call(*words, "ip", "link", "set", device, "up")
        for words in enter:
            _await_carrier(words)
        agent = folder / "agent"
        agent.write_text(_AGENT.format(*NAMES, *map(shlex.join, enter)))
        agent.chmod(0o755)
        yield Hosts((enter[0], enter[1]), agent)


@cache
def available() -> str | None:
    """Return why two hosts cannot be set up here, or None if they can."""
    for tool in ("unshare", "nsenter", "ip", "mount"):
        if shutil.which(tool) is None:
            return f"no {tool} here"
    try:
        with two_hosts("1m"):
            return None
    except ConnectionError as error:
        return f"namespaces are not allowed here: {error}"


def limit(hosts: Hosts, rate: str) -> None:
    """Limit the rate of the cable between two hosts in each direction; `rate` as in tc, for example "1gbit".

    Raises:
        ConnectionError: tc failed.
    """
    for words in hosts.enter:
        cable = (*words, "tc", "qdisc", "replace", "dev", "eth0", "root", "tbf")
        _call(*cable, "rate", rate, "burst", "256kb", "latency", "50ms")


@contextmanager
def _host(name: str, table: Path, shared_memory: str) -> Iterator[int]:
    """Start the process that keeps a host's namespaces alive, and yield its id."""
    setup = (
        f"hostname {name} && mount -t sysfs sysfs /sys && mount -t tmpfs -o size={shared_memory} tmpfs /dev/shm && "
        f"mount --bind {shlex.quote(str(table))} /etc/hosts && echo up && exec cat"
    )
    with subprocess.Popen(
        ["unshare", *_KINDS, "sh", "-c", setup],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stderr is not None
            if process.stdout.readline() != "up\n":
                raise ConnectionError(process.stderr.read().strip())
            yield process.pid
        finally:
            process.kill()


def _await_carrier(enter: list[str], seconds: float = 30.0) -> None:
    """Wait until a host's end of the cable is up: that takes up to a second."""
    deadline = time.monotonic() + seconds
    while (state := _call(*enter, "cat", "/sys/class/net/eth0/operstate")) != "up\n":
        if time.monotonic() > deadline:
            raise ConnectionError(f"the cable is {state.strip()} after {seconds:g} s")
        time.sleep(0.01)


def _call(*words: str) -> str:
    done = subprocess.run(words, capture_output=True, text=True, timeout=30)
    if done.returncode != 0:
        raise ConnectionError(f"{shlex.join(words)}: {done.stderr.strip()}")
    return done.stdout
