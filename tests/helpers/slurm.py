"""A real Slurm cluster of a few nodes on this machine, for tests of batch scripts.

    with Cluster(folder) as cluster:
        job = cluster.submit("jobs/slurm/cpu-node.sh")
        cluster.until(job, "COMPLETED", seconds=60)

Each node is a slurmd in Linux namespaces of its own: name, IPC, process ids, /dev/shm, and a disk for temporary files
(`Cluster.disk`). So MPI takes them for different machines, and killing one is a crash of the node. It needs root and
Debian's packages of Slurm, which are built with multiple-slurmd: tests/slurm/install.sh installs them, and
`unavailable()` returns the reason why it does not work.

All daemons are foreground children of this process; the kernel kills them when it dies.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from types import TracebackType

from tests.helpers.mpis import environment
from tests.helpers.waiting import wait_until

TOOLS = ("slurmctld", "slurmd", "munged", "sbatch", "srun", "unshare", "setpriv")
PMIX = Path("/usr/lib/x86_64-linux-gnu/pmix2/lib/libpmix.so")  # what Slurm's pmix plugin opens
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL", "DEADLINE")
_CONF = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
AuthType=auth/munge
AuthInfo=socket={folder}/munge/sock,cred_expire=5
CredType=cred/munge
SlurmUser=root
SlurmdUser=root
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
TmpFS={folder}/disk
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
MailProg=/bin/true
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=0,sched_min_interval=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
RequeueExit=99
KillWait=5
ReturnToService=2
SlurmctldTimeout=60
SlurmdTimeout=10
MessageTimeout=20
NodeName=DEFAULT CPUs={cpus} RealMemory=4000 State=UNKNOWN
{nodes}
PartitionName=main Nodes=ALL Default=YES MaxTime=600 PriorityTier=10 PreemptMode=OFF
PartitionName=low Nodes=ALL MaxTime=600 PriorityTier=1 PreemptMode=REQUEUE GraceTime=0
"""
# The first process of a node: it sets up /proc, name, /dev/shm, table of hosts and disk, then becomes the daemon.
_NODE = """\
mount -t proc proc /proc && hostname {name} && mount -t tmpfs -o size=2g tmpfs /dev/shm &&
mount --bind {folder}/hosts /etc/hosts && mount -t tmpfs tmpfs {disk} && exec slurmd -D -N {name}
"""


@cache
def unavailable() -> str | None:
    """Return why a Slurm cannot be started here, None if it can."""
    if os.geteuid() != 0:
        return "a Slurm of its own needs root"
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing:
        return f"no {', '.join(missing)} here: bash tests/slurm/install.sh gets them from Debian's packages"
    if not PMIX.exists():
        return f"no {PMIX} here: bash tests/slurm/install.sh makes it"
    tried = subprocess.run(
        ["unshare", "--uts", "--ipc", "--mount", "--pid", "--fork", "mount", "-t", "tmpfs", "tmpfs", "/mnt"],
        capture_output=True,
        text=True,
        timeout=30,
    )
    return f"namespaces are not allowed here: {tried.stderr.strip()}" if tried.returncode else None


class Cluster:
    """A controller and nodes n1, n2, ...; jobs in partition main preempt those in partition low.

    Args:
        folder: for all files of the cluster; its path must be short, because of munge's socket.
        nodes: number of nodes. Default 3.
        cpus: CPUs per node that Slurm assumes. Default 4.
    """

    def __init__(self, folder: Path, nodes: int = 3, cpus: int = 4) -> None:
        self.folder, self.nodes, self._cpus = folder, [f"n{i + 1}" for i in range(nodes)], cpus
        self.disk = folder / "disk"  # each node mounts its own file system at this path
        self._host = socket.gethostname().split(".")[0]
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Cluster:
        try:
            self._start()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def environment(self, **more: str) -> dict[str, str]:
        """Return the environment of a command that uses this cluster."""
        return environment(**{"SLURM_CONF": str(self.folder / "slurm.conf"), "TMPDIR": str(self.disk), **more})

    def call(self, *words: str, check: bool = True, **more: str) -> str:
        """Run a command of Slurm; return its output."""
        done = subprocess.run(words, capture_output=True, text=True, timeout=180, env=self.environment(**more))
        assert not check or done.returncode == 0, f"{' '.join(words)}: {done.stderr}{done.stdout}"
        return done.stdout.strip()

    def submit(self, *words: str, **more: str) -> str:
        """Run sbatch; return the job's id."""
        return self.call("sbatch", "--parsable", *words, **more)

    def show(self, job: str) -> dict[str, str]:
        """Return the fields of `scontrol show job`."""
        words = self.call("scontrol", "show", "job", "-o", job).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def until(self, job: str, *states: str, seconds: float, what: Callable[[], str] = lambda: "") -> dict[str, str]:
        """Wait until a job is in one of some states; fail if it ends in another one, or not in time.

        Args:
            job: its id.
            states: Slurm's names of the states.
            seconds: longest time to wait, s.
            what: returns more text for the message of a failure.
        """
        deadline = time.monotonic() + seconds
        while True:
            fields = self.show(job)
            if fields["JobState"] in states:
                return fields
            if time.monotonic() > deadline or fields["JobState"] in ENDED:
                raise AssertionError(f"job {job}: expected {states}, found {fields}\n{what()}")
            time.sleep(0.1)

    def crash(self, name: str) -> None:
        """Kill a node with everything on it."""
        unshare = self._daemons.pop(name)
        unshare.kill()  # --kill-child then kills the node's first process, and so all its processes
        unshare.wait()

    def boot(self, name: str) -> None:
        """Start a node, also one that has crashed."""
        script = _NODE.format(name=name, folder=self.folder, disk=self.disk)
        words = ["unshare", "--uts", "--ipc", "--mount", "--propagation", "private", "--pid", "--fork"]
        self._daemon(name, *words, "--kill-child=KILL", "sh", "-c", script)

    def up(self) -> bool:
        """Return whether all nodes are up."""
        states = self.call("sinfo", "-h", "-N", "-p", "main", "-t", "idle,alloc,mix", "-o", "%N", check=False)
        return set(states.split()) == set(self.nodes)

    def clear(self) -> None:
        """Cancel all jobs, start nodes that have crashed, and wait until no job is left and all nodes are up."""
        self.call("scancel", "--user=root", "--full", "--signal=KILL", check=False)
        self.call("scancel", "--user=root", check=False)
        for name in self.nodes:
            if name not in self._daemons:
                self.boot(name)
        self._wait(lambda: self.call("squeue", "-h", check=False) == "" and self.up(), "no jobs, all nodes up", 60)

    def _start(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.folder.chmod(0o755)
        for name in ("munge", "state", "log", "disk"):
            (self.folder / name).mkdir(mode=0o755)
        key = self.folder / "munge" / "key"
        key.touch(mode=0o600)
        key.write_bytes(os.urandom(128))
        ports = _free_ports(len(self.nodes) + 1)
        nodes = [
            f"NodeName={name} NodeHostname={self._host} NodeAddr=127.0.0.1 Port={port}"
            for name, port in zip(self.nodes, ports[1:], strict=True)
        ]
        conf = _CONF.format(host=self._host, port=ports[0], folder=self.folder, cpus=self._cpus, nodes="\n".join(nodes))
        (self.folder / "slurm.conf").write_text(conf)
        names = [f"127.0.0.1 localhost {self._host}", *(f"127.0.0.1 {name}" for name in self.nodes)]
        (self.folder / "hosts").write_text("\n".join([*names, ""]))
        munge = self.folder / "munge"
        flags = [
            f"--{option}={munge / file}"
            for option, file in (
                ("socket", "sock"),
                ("key-file", "key"),
                ("pid-file", "pid"),
                ("log-file", "log"),
                ("seed-file", "seed"),
            )
        ]
        self._daemon("munged", "munged", "--foreground", *flags)
        self._wait((munge / "sock").exists, "munge's socket", 30)
        self._daemon("slurmctld", "slurmctld", "-D")
        for name in self.nodes:
            self.boot(name)
        self._wait(self.up, "all nodes up", 60)

    def _daemon(self, name: str, *words: str) -> None:
        with (self.folder / "log" / name).open("ab") as log:
            self._daemons[name] = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *words],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self.environment(),
                start_new_session=True,
            )

    def _stop(self) -> None:
        for name in (*self.nodes, "slurmctld", "munged"):
            process = self._daemons.pop(name, None)
            if process is None:
                continue
            process.send_signal(signal.SIGKILL if name in self.nodes else signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                process.wait(20)
            if process.poll() is None:
                process.kill()
                process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _wait(self, condition: Callable[[], bool], what: str, seconds: float) -> None:
        wait_until(condition, what, seconds, pause=0.05, details=self._logs)

    def _logs(self) -> str:
        return "\n".join(f"--- {file}\n{file.read_text()[-1500:]}" for file in (self.folder / "log").iterdir())


def _free_ports(number: int) -> list[int]:
    sockets = [socket.socket() for _ in range(number)]
    try:
        for unbound in sockets:
            unbound.bind(("127.0.0.1", 0))
        return [int(bound.getsockname()[1]) for bound in sockets]
    finally:
        for bound in sockets:
            bound.close()
