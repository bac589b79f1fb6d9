"""Under ULFM (Open MPI's `mpirun --with-ft ulfm`) a job continues without ranks that are killed.

Truth: whole numbers, whose sums are exact in any order. LSAM_KILL_TRIALS sets the number of ranks that are killed at
random moments, LSAM_KILL_REPORT a file to which each trial appends a line of JSON.
"""

from __future__ import annotations

import json
import os
import random
import re
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lsam_hpc.trajectory import Run
from tests.helpers.hosts import available as hosts_available
from tests.helpers.hosts import two_hosts
from tests.helpers.mpis import ROOT, Mpi, run
from tests.helpers.waiting import wait_until

RANKS = 4
LIMIT = 120.0  # s
TRIALS = int(os.environ.get("LSAM_KILL_TRIALS", "4"))


@pytest.fixture
def ulfm(openmpi: Mpi) -> Mpi:
    return replace(openmpi, mpiexec=(*openmpi.mpiexec, "--with-ft", "ulfm"))


# Each rank adds whole numbers and claims steps. The victims are killed between two adds, and the others go on. "calm":
# the others read, the victim adds once more and is killed; they make no calls meanwhile, because between hosts a
# transfer that is under way may crash its rank.
ADDING = """
import json, os, signal, sys, time
from pathlib import Path
import numpy as np
import torch
from mpi4py import MPI
from lsam_hpc.distributed.communication import Communication
from lsam_hpc.options.communication import CommunicationOptions

folder, victims, wire, adds = Path(sys.argv[1]), json.loads(sys.argv[2]), sys.argv[3], int(sys.argv[4])
calm = sys.argv[5] == "calm"
comm = MPI.COMM_WORLD.Dup()
size, dtype = 1001, np.float64 if wire == "float32" else np.float32
options = CommunicationOptions(wire_dtype=wire, publish="sample")
links = Communication(comm, np.zeros(size, dtype), options, seed=0, max_delta_ratio=10.0)
y, last = torch.empty(size, dtype=torch.from_numpy(np.zeros(0, dtype)).dtype), [np.zeros(size, dtype), 0]

def recover():
    links.recover(*last, len(steps) and max(steps) + 1)

def delta(rank, k):
    return torch.from_numpy(np.random.default_rng([rank, k]).integers(-2, 3, size).astype(dtype))

links.on_loss = recover
def use(function):
    return links.survive(lambda: links.call(function))

def read():
    last[1] = use(lambda: links.center.read(y))
    last[0] = y.numpy().copy()

def mark(name):
    (folder / f"{comm.rank}.{name}").touch()

def marks(name):
    return len(list(folder.glob("*." + name)))

def wait_for(condition):
    while not condition():
        time.sleep(0.01)

steps = []
for k in range(adds):
    if k == adds - 5 and comm.rank not in victims:
        wait_for(lambda: links.lost or links.failed_ranks)  # so that the last steps follow the recovery
    steps.append(use(lambda: links.links.counter.add()))
    if calm and k == adds // 2 + victims[0]:
        mark("here")
        if comm.rank in victims:
            wait_for(lambda: marks("read") == comm.size - 1)
            use(lambda: links.center.add(delta(comm.rank, k)))
        else:
            wait_for(lambda: marks("here") == comm.size)
            read()
            mark("read")
            wait_for(lambda: links.lost)
    if comm.rank in victims and k == adds // 2 + comm.rank:
        os.kill(os.getpid(), signal.SIGKILL)
    use(lambda: links.center.add(delta(comm.rank, k)))
    read()
    while wire != "float32" and not links.lost and links.links.windows._owner.cells.values(links.links.comm.rank).any():
        pass  # the owners of the shards have not added it yet
    links.links.peers.update(k + 1, steps[-1], 0.0)
links.rendezvous([len(steps)])
if wire != "float32":
    links.links.windows.gather(y.numpy())
else:
    links.center.peek(y)
made = [adds // 2 + rank + calm if rank in victims else adds for rank in range(comm.size)]
truth = sum(sum(delta(rank, k) for k in range(made[rank])) for rank in range(comm.size))
report = {
    "steps": steps, "failed": links.failed_ranks, "members": links.members, "version": links.center.version,
    "error": float((y - truth).abs().max()), "wrong": (y != truth).nonzero().flatten().tolist(),
    "ranks": links.links.comm.size,
}
(folder / f"{comm.rank}.tmp").write_text(json.dumps(report))
(folder / f"{comm.rank}.tmp").rename(folder / f"{comm.rank}.json")
links.rendezvous((), last=True)
links.close()
os._exit(4)
"""


def added(
    mpi: Mpi, folder: Path, victims: list[int], wire: str = "float32", adds: int = 60, pace: str = "busy"
) -> dict[int, dict]:
    """Run the script above; return the survivors' reports."""
    script = folder / "adding.py"
    script.write_text(ADDING)
    words = (mpi.forked, "-m", "mpi4py", str(script), str(folder), json.dumps(victims), wire, str(adds), pace)
    done = run(mpi.command(RANKS, *words), timeout=LIMIT, PYTHONPATH=str(ROOT))
    assert done.returncode == 4, done.stdout + done.stderr
    left = [rank for rank in range(RANKS) if rank not in victims]
    wait_until(lambda: len(list(folder.glob("*.json"))) == len(left), "the reports of the ranks that are left")
    reports = {int(file.stem): json.loads(file.read_text()) for file in folder.glob("*.json")}
    for report in reports.values():
        assert report["members"] == left
        assert report["failed"] == victims
        assert report["ranks"] == len(left)
    steps = sorted(step for report in reports.values() for step in report["steps"])
    assert len(set(steps)) == len(steps) == adds * len(left)  # no step was claimed twice
    return reports


@pytest.mark.parametrize("victims", [[0], [1, 2]])
def test_on_one_node_no_completed_add_is_lost(ulfm: Mpi, victims: list[int], tmp_path: Path) -> None:
    for report in added(ulfm, tmp_path, victims).values():
        assert report["error"] == 0.0
        assert report["version"] == sum(30 + rank if rank in victims else 60 for rank in range(RANKS))


@pytest.mark.slow("the other type of exchanged numbers")
def test_with_a_16_bit_wire_only_what_is_in_the_lost_rank_s_inboxes_is_lost(ulfm: Mpi, tmp_path: Path) -> None:
    # Whole numbers below 2048 are exact in float16; at most one add of each other rank is in an inbox.
    for report in added(ulfm, tmp_path, [2], wire="float16").values():
        assert report["error"] <= 2 * (RANKS - 1)


@pytest.mark.slow("needs two hosts")
@pytest.mark.timeout(LIMIT * 2)
@pytest.mark.parametrize("victims", [[3], [0]])
def test_between_hosts_a_lost_shard_is_as_it_was_read_last(ulfm: Mpi, victims: list[int], tmp_path: Path) -> None:
    if why := hosts_available():
        pytest.skip(f"no two hosts: {why}")
    with two_hosts() as hosts:
        for report in added(hosts.across(ulfm, RANKS), tmp_path, victims, adds=20, pace="calm").values():
            # Exactly the victim's last add is missing, and only in its part.
            rank, size = victims[0], 1001
            delta = np.random.default_rng([rank, 10 + rank]).integers(-2, 3, size)
            part = np.arange(rank * size // RANKS, (rank + 1) * size // RANKS)
            assert report["error"] == 2.0
            assert report["wrong"] == [int(i) for i in part if delta[i]]


# Ends a rank by SIGKILL in the n-th call of a function: `-c DYING rank module owner function n, then lsam's words`.
DYING = """
import importlib, os, signal, sys
rank, module, owner, name, count, *words = sys.argv[1:]
if os.environ["OMPI_COMM_WORLD_RANK"] == rank:
    home = importlib.import_module(module)
    home = getattr(home, owner) if owner else home
    function, calls = getattr(home, name), []
    def dying(*args, **kwargs):
        calls.append(1)
        if len(calls) == int(count):
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **kwargs)
    setattr(home, name, dying)
from lsam_hpc import cli
sys.exit(cli.main(words))
"""
STEP = ("lsam_hpc.optim.lsam", "LocalLSAM", "_finish", "40")
PLACES = {
    "before the add": ("lsam_hpc.distributed.exchange", "RmaCenter", "add", "8"),
    "after the add, before it is counted": ("lsam_hpc.rma.counter", "AtomicArray", "increment", "30"),
    "in the log's callback": ("lsam_hpc.optim.coupler", "Coupler", "_call_back", "8"),
    "in a checkpoint": ("lsam_hpc.train.checkpoint", "Checkpoints", "_write", "1"),
    "in the last evaluation": ("lsam_hpc.train.ending", "", "_evaluate_center", "1"),
    "in the last checkpoint": ("lsam_hpc.train.checkpoint", "Checkpoints", "write_now", "1"),
}


def trained(
    mpi: Mpi,
    folder: Path,
    rank: int,
    place: tuple[str, ...],
    *options: str,
    code: int = 4,
    script: tuple[str, ...] = (DYING,),
) -> str:
    """Train with a rank that dies at a place; check what the others leave, and return what they said."""
    out = str(folder / "run")
    words = ("train", "--data", "digits", "--steps", "300", "--period", "2", "--out", out, *options)
    done = run(mpi.command(RANKS, mpi.forked, "-c", *script, str(rank), *place, *words), timeout=LIMIT)
    text = done.stdout + done.stderr
    assert done.returncode == code, text
    if code != 4:
        return text
    assert re.search(rf"^rank {rank} +LOST ", text, re.MULTILINE), text
    assert f"1 of {RANKS} ranks were lost" in text
    with Run(folder / "run") as log:
        assert log.problems == []
        for other in log.ranks:
            assert np.isfinite(log.steps(other)["loss"]).all()
            assert (log.result(other) is None) == (other == rank)
    center = torch.load(folder / "run" / "checkpoints" / "center.pt", weights_only=True)
    assert all(torch.isfinite(values).all() for values in center.values())
    return text


def steps_of(folder: Path) -> list[int]:
    with Run(folder / "run") as log:
        return [len(log.steps(rank)["loss"]) for rank in range(RANKS)]


def test_training_continues_without_rank_0(ulfm: Mpi, tmp_path: Path) -> None:
    text = trained(ulfm, tmp_path, 0, STEP)
    assert re.search(r"lost rank 0 \(.+\): 3 ranks continue after [0-9.]+ s$", text, re.MULTILINE), text
    assert 299 <= sum(steps_of(tmp_path)[1:]) + 40 <= 300  # the step that it had claimed is lost
    assert re.search(r"^rank 0 +LOST +39\b", text, re.MULTILINE), text
    words = ("train", "--data", "digits", "--steps", "400", "--period", "2", "--out", str(tmp_path / "run"))
    done = run(ulfm.command(RANKS, ulfm.forked, "-m", "lsam_hpc", *words, "--resume", "must"), timeout=LIMIT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert steps_of(tmp_path)[0] < 39 < steps_of(tmp_path)[1]  # rank 0 began again at the center


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.slow("kills a rank at each place")
def test_a_rank_is_killed(ulfm: Mpi, place: str, tmp_path: Path) -> None:
    victim = 0 if "last" in place else 1
    trained(ulfm, tmp_path, victim, PLACES[place], "--checkpoint-every", "60")


@pytest.mark.slow("each way to communicate")
@pytest.mark.parametrize(
    "options",
    [
        ("--topology", "gossip", "--degree", "2"),
        ("--topology", "leader"),
        ("--wire-dtype", "float16"),
        ("--budget", "per-rank"),
        ("--no-overlap",),
        ("--coupling", "kernel"),
        ("--coupling", "restart"),
        ("--max-delay", "3"),
    ],
    ids=" ".join,
)
def test_each_way_to_communicate_survives(ulfm: Mpi, options: tuple[str, ...], tmp_path: Path) -> None:
    text = trained(ulfm, tmp_path, 0, STEP, *options)
    assert "lost rank 0" in text
    if options[0] == "--budget":
        assert steps_of(tmp_path)[1:] == [75] * 3


@pytest.mark.parametrize("rank", [2, 3])
@pytest.mark.slow("groups of two")
def test_a_group_goes_on_with_the_rank_that_is_left(ulfm: Mpi, rank: int, tmp_path: Path) -> None:
    place = ("lsam_hpc.distributed.groups", "Group", "__call__", "41")
    trained(ulfm, tmp_path, rank, place, "--group-size", "2", "--reduce", "mpi")
    steps = steps_of(tmp_path)
    assert steps[0] == steps[1]
    assert 299 <= steps[0] + steps[5 - rank] <= 300


# On one rank, a call of its group ends for the other member only: the loss of a rank interrupts it.
LATE = """
import os, sys, time
from pathlib import Path
from lsam_hpc import rma
from lsam_hpc.errors import RankLostError
from lsam_hpc.rma import faults
late, caller, late_call, mark = sys.argv[1:5]
del sys.argv[1:5]
wait, kill, late_calls = rma.wait_without_spinning, os.kill, []
def interrupted(request, *buffers):
    wait(request, *buffers)
    if sys._getframe(1).f_code.co_name != caller:
        return
    late_calls.append(1)
    if len(late_calls) == int(late_call):
        Path(mark).touch()
        while not faults.watch().lost:
            time.sleep(0.001)
        raise RankLostError("a rank has failed that others wait for")
def killed(*arguments):
    while not Path(mark).exists():
        time.sleep(0.001)
    kill(*arguments)
if os.environ["OMPI_COMM_WORLD_RANK"] == late:
    rma.wait_without_spinning = interrupted
os.kill = killed
"""


# With a read of the checkpoint's step in every 8th step: the sum of step 40, that read, and the number of step 41.
@pytest.mark.parametrize("call", [("_sum", "40"), ("draw", "45"), ("draw", "46")], ids=" ".join)
@pytest.mark.parametrize("late", [0, 1])
@pytest.mark.slow("groups of two")
def test_a_member_that_is_behind_catches_up(ulfm: Mpi, late: int, call: tuple[str, str], tmp_path: Path) -> None:
    script = (LATE + DYING, str(late), *call, str(tmp_path / "mark"))
    place = ("lsam_hpc.distributed.groups", "Group", "__call__", "41")
    trained(ulfm, tmp_path, 3, place, "--group-size", "2", "--reduce", "mpi", script=script)
    with Run(tmp_path / "run") as log:
        steps = [log.steps(rank) for rank in (0, 1)]
    for rank in steps:
        assert list(rank["iteration"]) == list(range(len(rank["iteration"])))
    assert list(steps[0]["total_iteration"]) == list(steps[1]["total_iteration"])


@pytest.mark.parametrize(
    ("rank", "place"),
    [
        *((rank, place) for rank in (0, 3) for place in ("step", "before the add", "in a checkpoint")),
        (0, "in the last evaluation"),  # of the center, by the first chain
    ],
)
@pytest.mark.slow("chains of two ranks")
def test_a_sharded_chain_is_lost_with_its_rank(ulfm: Mpi, rank: int, place: str, tmp_path: Path) -> None:
    chain = 2 * (rank // 2)
    options = ("--shard", "fsdp2", "--group-size", "2", "--snapshot-every", "50", "--checkpoint-every", "60")
    where = {"step": STEP, **PLACES}[place]
    words = ("train", "--data", "digits", "--steps", "300", "--period", "2", "--out", str(tmp_path / "run"), *options)
    done = run(ulfm.command(RANKS, ulfm.forked, "-c", DYING, str(rank), *where, *words), timeout=LIMIT)
    text = done.stdout + done.stderr
    assert done.returncode == 4, text
    line = f"lsam train: rank {rank} ended, and with it its chain [{chain}, {chain + 1}]"
    assert text.splitlines().count(line) == 1, text
    assert re.search(rf"^ *chain {rank // 2} +LOST ", text, re.MULTILINE), text
    assert "1 of 2 chains were lost" in text
    with Run(tmp_path / "run") as log:
        other = 1 - rank // 2
        steps = log.steps(other)["iteration"]
        assert list(steps) == list(range(len(steps)))
        assert np.isfinite(log.snapshot(other, -1)).all()
    # The lost chain begins again at the center.
    again = [word if word != "300" else "400" for word in words]
    done = run(ulfm.command(RANKS, ulfm.forked, "-m", "lsam_hpc", *again, "--resume", "must"), timeout=LIMIT)
    assert done.returncode == 0, done.stdout + done.stderr
    with Run(tmp_path / "run") as log:
        assert log.steps(rank // 2)["total_iteration"].min() >= 300


@pytest.mark.slow("jobs that end early")
def test_what_cannot_continue_ends_with_code_3_and_one_line(ulfm: Mpi, tmp_path: Path) -> None:
    start = ("lsam_hpc.train.job", "", "make_base", "1")
    text = trained(ulfm, tmp_path / "a", 1, start, code=3)
    assert text.count("lsam train: stopped: rank 1 ended before training started") == 1
    text = trained(ulfm, tmp_path / "b", 1, STEP, "--mode", "lockstep", "--budget", "per-rank", code=3)
    assert "lsam train: stopped: rank 1 ended (a rank was lost: a run in lockstep cannot be repeated" in text
    assert "Traceback" not in text
    start = ("--synchronous-start", "1", "--reduce", "mpi")
    text = trained(ulfm, tmp_path / "c", 1, STEP, *start, code=3)
    assert "lsam train: stopped: rank 1 ended (a rank was lost: the synchronous start cannot go on without it" in text
    assert "Traceback" not in text


# Ends a rank after some seconds, at any instruction: nothing handles the alarm. The others write when they recovered;
# a rank that hangs shows where.
ALARMED = """
import faulthandler, os, signal, sys, time
from pathlib import Path
victim, seconds, folder, limit, *words = sys.argv[1:]
faulthandler.dump_traceback_later(float(limit))
rank = os.environ["OMPI_COMM_WORLD_RANK"]
if rank == victim:
    Path(folder, "killed").write_text(str(time.time() + float(seconds)))
    signal.setitimer(signal.ITIMER_REAL, float(seconds))
from lsam_hpc import cli
from lsam_hpc.util import launcher, preflight
launcher.watch().start()  # as the command line does it: the next import would start MPI, and let no other thread run
preflight.start()
from lsam_hpc.distributed.communication import Communication
recover = Communication.recover
def timed(*arguments):
    recover(*arguments)
    Path(folder, "recovered-" + rank).write_text(str(time.time()))
Communication.recover = timed
sys.exit(cli.main(words))
"""


@pytest.mark.slow("kills ranks at random moments")
@pytest.mark.timeout((TRIALS + 1) * LIMIT)
@pytest.mark.parametrize("hosts", [1, 2])
def test_a_rank_is_killed_at_a_random_moment(ulfm: Mpi, hosts: int, tmp_path: Path) -> None:
    with ExitStack() as stack:
        if hosts == 2:
            if why := hosts_available():
                pytest.skip(f"no two hosts: {why}")
            ulfm = stack.enter_context(two_hosts()).across(ulfm, RANKS)
        undisturbed = alarmed(ulfm, tmp_path / "undisturbed", 0, 1e6)
        assert undisturbed["code"] == 0, undisturbed["text"]
        for number in range(TRIALS):
            chance = random.Random(number)
            victim, seconds = chance.randrange(RANKS), chance.uniform(0, undisturbed["life"])
            report = {"hosts": hosts, "victim": victim, "moment": seconds / undisturbed["life"]}
            report |= alarmed(ulfm, tmp_path / str(number), victim, seconds)
            if file := os.environ.get("LSAM_KILL_REPORT"):
                with Path(file).open("a") as reports:
                    reports.write(json.dumps(report) + "\n")
            assert report["code"] in (0, 3, 4), report["text"]
            assert report["code"] != 3 or "before training started" in report["text"], report["text"]
            # Between hosts all ranks may crash inside Open MPI; mpirun then returns 0, but nothing says "finished".
            crashed = hosts == 2 and report["code"] == 0 and not says_finished(tmp_path / str(number) / "run")
            assert report["finished"] == (report["code"] != 3) or crashed, report["text"]


def says_finished(out: Path) -> bool:
    """Return whether a manifest says that the run is finished, or a rank wrote its result."""
    if any(json.loads(file.read_text())["finished"] for file in out.glob("checkpoints/*.json")):
        return True
    if not any(out.glob("rank-*.h5")):
        return False
    with Run(out) as log:
        return any(log.result(rank) is not None for rank in log.ranks)


def alarmed(mpi: Mpi, folder: Path, victim: int, seconds: float) -> dict[str, Any]:
    """Train, end a rank after some seconds, check the center, and report what happened."""
    folder.mkdir()
    out = folder / "run"
    words = ("train", "--data", "digits", "--steps", "2000", "--period", "2", "--out", str(out))
    arguments = (str(victim), str(seconds), str(folder), str(LIMIT - 10))
    command = mpi.command(RANKS, mpi.python, "-c", ALARMED, *arguments, *words, "--checkpoint-every", "200")
    done = run(command, timeout=LIMIT)
    killed = float((folder / "killed").read_text())
    report = {"code": done.returncode, "life": time.time() - (killed - seconds), "text": done.stdout + done.stderr}
    recovered = {int(file.name.split("-")[1]): float(file.read_text()) for file in folder.glob("recovered-*")}
    report["finished"] = (out / "checkpoints" / "center.pt").exists()
    if report["finished"]:
        center = torch.load(out / "checkpoints" / "center.pt", weights_only=True)
        assert all(torch.isfinite(values).all() for values in center.values())
        with Run(out) as log:
            left = [rank for rank in log.ranks if log.result(rank) is not None]
            exchanges = {rank: log.log(rank).attributes["start_time"] + log.exchanges(rank)["time"] for rank in left}
        report["left"] = len(left)
        later = [exchanges[rank][exchanges[rank] > recovered[rank]] for rank in left if rank in recovered]
        report["recovered"] = max((recovered[rank] - killed for rank in left if rank in recovered), default=None)
        report["exchanged"] = max((float(times[0]) - killed for times in later if len(times)), default=None)
    return report
