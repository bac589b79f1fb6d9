"""`lsam train` and `lsam inspect` from the command line, with both MPIs."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from torch.nn import functional

from lsam_hpc.replay.bench import Bench, replay
from lsam_hpc.simulate.model import Event
from lsam_hpc.train import data
from lsam_hpc.train.batches import Batches
from lsam_hpc.train.builders import make_dataset
from lsam_hpc.train.config import parse
from lsam_hpc.train.evaluation import evaluate
from lsam_hpc.train.models import mlp
from lsam_hpc.trajectory import Run
from tests.helpers.logs import make_run
from tests.helpers.mpis import ROOT, environment, run
from tests.replay.test_train import in_turn

SLOW = pytest.mark.slow("a training of its own; tests/mpi tests the options")


def lsam(mpi, ranks, *words, timeout=240):
    return run(mpi.command(ranks, mpi.forked, "-m", "lsam_hpc", *words), timeout)


@pytest.mark.parametrize(
    "words",
    [
        "--topology gossip --degree 2 --graph exponential",
        pytest.param("--topology leader --publish perturbed", marks=SLOW),
        "--group-size 2",
        pytest.param("--group-size 4 --group-ascent averaged --no-overlap", marks=SLOW),
        pytest.param("--wire-dtype bfloat16 --coupling kernel", marks=SLOW),
        pytest.param("--max-delay 3", marks=SLOW),
    ],
)
def test_every_topology_trains(mpi, words, tmp_path):
    done = lsam(mpi, 4, "train", "--epochs", "60", "--out", str(tmp_path / "run"), *words.split())
    assert done.returncode == 0, done.stderr
    with Run(tmp_path / "run") as logs:
        # One chain is at 1 to 2 % after 60 epochs, a group of four at 2 to 3 %; chance is at 90 %.
        assert logs.logs[0].result["center_test_error"] < 5
        if "group" not in words:
            global_steps = np.concatenate([logs.steps(r)["total_iteration"] for r in logs.ranks])
            assert sorted(global_steps) == list(range(2528))
            line = f"lsam-hpc: 4 ranks on 1 node, 2,528 steps, run directory {tmp_path / 'run'}"
            assert line in done.stderr.splitlines()


@pytest.mark.parametrize("words", ["--selection esam", "--selection ausam --synchronous", "--adversarial conadv"])
def test_methods_on_samples_train(mpi, words, tmp_path):
    done = lsam(mpi, 2, "train", "--epochs", "20", "--out", str(tmp_path / "run"), *words.split())
    assert done.returncode == 0, done.stderr
    with Run(tmp_path / "run") as logs:
        assert logs.logs[0].result["center_test_error"] < 5


@pytest.mark.parametrize(
    "words",
    [
        "--optimizer tvlars --lr 8 --clip-coordinates 0.1",
        pytest.param("--optimizer lars --lr 4", marks=SLOW),
        pytest.param("--optimizer lamb --lr 0.01", marks=SLOW),
        pytest.param("--optimizer adamw --lr 0.003", marks=SLOW),
        "--ascent center --mask tensors",
        pytest.param("--ascent dp-sat --mask random", marks=SLOW),
        pytest.param("--ascent asyncsam --mask fsam", marks=SLOW),
        pytest.param("--ascent sampa --mask ssam-d", marks=SLOW),
        pytest.param("--ascent msam --mask adasap --rho 0.3", marks=SLOW),
        pytest.param("--ascent gam --metric adaptive --rho 0.5", marks=SLOW),
        pytest.param("--mask sl-sam --optimizer lamb --lr 0.01", marks=SLOW),
        pytest.param("--mask ssam-f --mask-refresh 200 --rho-from 0.5", marks=SLOW),
    ],
)
def test_every_method_trains(mpi, words, tmp_path):
    done = lsam(mpi, 4, "train", "--epochs", "60", "--out", str(tmp_path / "run"), *words.split())
    assert done.returncode == 0, done.stderr
    with Run(tmp_path / "run") as logs:
        # After 60 epochs all of them are at 2 to 3 %; chance is at 90 %.
        assert logs.logs[0].result["center_test_error"] < 5


@pytest.mark.parametrize(
    "words", ["--synchronous --steps 12", pytest.param("--synchronous-start 1 --steps 24", marks=SLOW)]
)
def test_synchronous_is_data_parallel_sam(mpi, words, tmp_path):
    """Compare with a loop of plain tensors: one ascent per rank, mean gradients, the center is the last sample."""
    steps, rho, lr = 12, 0.1, 0.05
    words += f" --reduce mpi --rho {rho} --lr {lr} --period 5 --lr-schedule constant"
    words += " --warmup 0 --momentum 0 --weight-decay 0 --seed 2"
    done = lsam(mpi, 2, "train", *words.split(), "--out", str(tmp_path / "run"))
    assert done.returncode == 0, done.stderr
    dataset = data.load("digits", None)
    torch.manual_seed(2)
    model = mlp((1, 8, 8), 10)
    params = list(model.parameters())
    batches = [Batches(dataset.train_x, dataset.train_y, 32, 2 * 2 + rank) for rank in range(2)]
    for _ in range(steps):
        means = [torch.zeros_like(p) for p in params]
        for rank_batches in batches:
            x, y = next(rank_batches)
            grads = torch.autograd.grad(functional.cross_entropy(model(x), y), params)
            norm = torch.sqrt(sum(g.square().sum() for g in grads))
            moves = [rho * g / norm for g in grads]
            with torch.no_grad():
                for p, move in zip(params, moves, strict=True):
                    p.add_(move)
            grads = torch.autograd.grad(functional.cross_entropy(model(x), y), params)
            with torch.no_grad():
                for p, move, mean, grad in zip(params, moves, means, grads, strict=True):
                    p.sub_(move)
                    mean.add_(grad / 2)
        with torch.no_grad():
            for p, mean in zip(params, means, strict=True):
                p.sub_(lr * mean)
    center = torch.load(tmp_path / "run" / "checkpoints" / "center.pt", weights_only=True)
    for name, p in model.named_parameters():
        torch.testing.assert_close(center[name], p.detach(), rtol=1e-4, atol=1e-6)


def test_an_epoch_of_groups_is_one_pass_and_base_optimizers_and_stragglers_train(mpi, tmp_path):
    words = "--epochs 4 --synchronous --optimizer lars --lr 2 --lr-scaling linear --stragglers=-1:1.5,pause:0.1:0.001"
    words += " --snapshot-every 8 --snapshot-states center --snapshot-ranks first"
    done = lsam(mpi, 2, "train", *words.split(), "--out", str(tmp_path / "run"))
    assert done.returncode == 0, done.stderr
    with Run(tmp_path / "run") as logs:
        for rank in logs.ranks:
            assert len(logs.steps(rank)["iteration"]) == 85  # ceil(4 * 1347 / (2 * 32))
            assert logs.steps(rank)["lr"].max() == pytest.approx(2 * 64 / 256, rel=0.01)
            assert ("snapshot/center" in logs.log(rank).tables) == (rank == 0)


@pytest.mark.parametrize("ranks", [1, 2, pytest.param(3, marks=SLOW), 4])
def test_trains_and_logs(mpi, ranks, tmp_path):
    out = tmp_path / "run"
    done = lsam(mpi, ranks, "train", "--steps", "300", "--out", str(out), "--seed", "3", "--snapshot-every", "log")
    assert done.returncode == 0, done.stderr
    assert sorted(p.name for p in out.iterdir()) == sorted(
        ["config.json", "checkpoints", *(f"rank-{r:04d}.h5" for r in range(ranks))]
    )
    assert json.loads((out / "config.json").read_text())["steps"] == 300
    with Run(out) as logs:
        assert logs.ranks == list(range(ranks))
        global_steps = np.concatenate([logs.steps(r)["total_iteration"] for r in logs.ranks])
        assert sorted(global_steps) == list(range(300))
        for r in logs.ranks:
            steps, exchanges = logs.steps(r), logs.exchanges(r)
            np.testing.assert_array_equal(steps["iteration"], np.arange(len(steps["iteration"])))
            np.testing.assert_array_equal(exchanges["iteration"], 4 * np.arange(1, len(steps["iteration"]) // 4 + 1))
            assert np.isfinite(steps["loss"]).all()
            assert (np.diff(steps["time"]) >= 0).all()
            np.testing.assert_allclose(steps["perturbation_norm"], 0.05, rtol=1e-4)
            np.testing.assert_array_equal(
                exchanges["staleness"], exchanges["version_added"] - exchanges["version_read"]
            )
            assert (exchanges["accepted"] == 1).all()
            np.testing.assert_allclose(exchanges["delta_norm"], 0.9 / ranks * exchanges["center_distance"], rtol=1e-5)
            assert logs.logs[r].attributes["ranks"] == ranks
            assert mpi.name in logs.logs[r].attributes["mpi_library"].lower().replace(" ", "")
        updates = np.sort(np.concatenate([logs.exchanges(r)["version_added"] for r in logs.ranks]))
        np.testing.assert_array_equal(updates, np.arange(len(updates)))
        result = logs.logs[0].result
        y = logs.snapshot(0, -1, "center")
        for r in logs.ranks:
            sketches = logs.sketch(r, "sample")
            np.testing.assert_array_equal(
                sketches["iteration"], [0, *logs.exchanges(r)["iteration"], len(logs.steps(r)["iteration"])]
            )
            assert list(logs.snapshots(r)["iteration"][:4]) == [0, 4, 8, 16]
            np.testing.assert_array_equal(logs.snapshot(r, 0), logs.snapshot(0, 0, "center"))  # all start at y
            x = logs.snapshot(r, -1)
            np.testing.assert_allclose(sketches["values"][-1], logs.sketcher(x).sum(0), atol=1e-5)
            np.testing.assert_array_equal(logs.snapshot(r, -1, "center"), y)  # no add after the last rendezvous
    # The saved center is the evaluated one.
    model = mlp((1, 8, 8), 10)
    model.load_state_dict(torch.load(out / "checkpoints" / "center.pt", weights_only=True))
    np.testing.assert_array_equal(torch.nn.utils.parameters_to_vector(model.parameters()).detach(), y)
    digits = data.load("digits", None)
    assert evaluate(model, digits.test_x, digits.test_y)[1] == pytest.approx(result["center_test_error"])
    table = done.stdout.splitlines()
    assert re.match(r"\s*train loss\s+test error %\s+steps\s+exchanges", table[0])
    assert [line.split()[:2] for line in table[2 : 2 + ranks]] == [["rank", str(r)] for r in range(ranks)]
    assert table[1].split()[3] == "300"
    summary = subprocess.run(
        [sys.executable, "-m", "lsam_hpc", "inspect", str(out)], capture_output=True, text=True, timeout=60, check=True
    ).stdout
    assert f"{ranks} ranks" in summary
    assert f"test error {result['center_test_error']:.2f} %" in summary


def test_the_quickstart_reaches_3_percent_also_when_stopped_and_resumed(mpi, tmp_path):
    """End to end as users start it: mpi.forked would have modules imported already."""
    out, words = tmp_path / "run", ("--checkpoint-every", "500", "--resume", "auto")
    command = mpi.command(4, mpi.python, "-m", "lsam_hpc", "train", "--out", str(out), *words)
    with subprocess.Popen(command, stderr=subprocess.PIPE, cwd=ROOT, env=environment(), text=True) as first:
        deadline = time.monotonic() + 120
        while not list((out / "checkpoints").glob("*.json")):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        first.send_signal(signal.SIGUSR1)
        _, said = first.communicate(timeout=120)
    assert first.returncode == 3, said
    done = run(command, timeout=240)
    assert done.returncode == 0, done.stderr
    assert "resuming from step" in done.stderr
    with Run(out) as logs:
        assert logs.logs[0].result["center_test_error"] <= 3.0
        assert sum(len(logs.steps(rank)["loss"]) for rank in logs.ranks) == 5055


@pytest.mark.parametrize("coupling", ["kernel", pytest.param("restart", marks=SLOW)])
def test_the_other_couplings_train(mpi, coupling, tmp_path):
    # Stiffness and pull of the kernel as in docs/explanation/algorithm.md; chance is 90 %.
    options = ("--coupling", coupling, "--pull", "0.5", "--steps", "1500")
    done = lsam(mpi, 2, "train", *options, "--out", str(tmp_path / "run"))
    assert done.returncode == 0, done.stderr
    with Run(tmp_path / "run") as logs:
        assert logs.logs[0].result["center_test_error"] <= 6.0


def test_lockstep_runs_are_the_same_to_the_bit(mpi, tmp_path):
    centers, losses = [], []
    words = ("--steps", "120", "--mode", "lockstep", "--temperature", "1e-6", "--momentum", "0")
    for name in ("a", "b"):
        done = lsam(mpi, 3, "train", *words, "--out", str(tmp_path / name))
        assert done.returncode == 0, done.stderr
        centers.append(torch.load(tmp_path / name / "checkpoints" / "center.pt", weights_only=True))
        with Run(tmp_path / name) as logs:
            losses.append([logs.steps(r)["loss"] for r in logs.ranks])
    assert all(torch.equal(centers[0][key], centers[1][key]) for key in centers[0])
    np.testing.assert_array_equal(losses[0], losses[1])


def test_training_starts_from_a_file(mpi, tmp_path):
    model = mlp((1, 8, 8), 10)
    file, out = tmp_path / "model.pt", tmp_path / "run"
    torch.save(model.state_dict(), file)
    words = ("train", "--steps", "40", "--pull", "0", "--initial-state", str(file), "--snapshot-every", "log")
    done = lsam(mpi, 2, *words, "--checkpoint-every", "20", "--out", str(out))
    assert done.returncode == 0, done.stderr
    flat = torch.cat([p.detach().reshape(-1) for p in model.parameters()]).numpy()
    with Run(out) as logs:
        for rank in logs.ranks:
            np.testing.assert_array_equal(logs.snapshot(rank, 0), flat)
            np.testing.assert_array_equal(logs.snapshot(rank, -1, "center"), flat)  # with a pull of 0 it stays
    file.unlink()  # it is needed at the start only
    done = lsam(mpi, 2, *words, "--steps", "60", "--resume", "must", "--out", str(out))
    assert done.returncode == 0, done.stderr


def bad(done, message):
    """Check that a job exited with 2 and printed one line with the message."""
    assert done.returncode == 2, done.stderr
    lines = [line for line in done.stderr.splitlines() if "lsam train:" in line]
    assert len(lines) == 1, done.stderr
    assert message in lines[0]
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--rhoo", "1"], "--rhoo: expected a known option such as --rho"),
        (["--data", "imagenet"], "--data: expected one of digits, mnist,"),
        (["--rho", "-1"], "--rho: expected a finite number >= 0, found -1.0"),
        (["--period", "0"], "--period: expected a whole number of steps >= 1, found 0"),
        (["--data", "cifar10", "--data-dir", "/nonexistent"], "/nonexistent: expected the file data_batch_1"),
        (["--initial-state", "none.pt"], "none.pt: expected a file with a state_dict, found: No such file"),
    ],
)
def test_bad_input_is_reported_in_one_line_and_writes_nothing(mpi, words, message, tmp_path):
    bad(lsam(mpi, 2, "train", "--out", str(tmp_path / "run"), *words), message)
    assert not (tmp_path / "run").exists()


def test_a_run_is_not_replaced_without_overwrite(mpi, tmp_path):
    out = tmp_path / "run"
    assert lsam(mpi, 3, "train", "--steps", "12", "--out", str(out)).returncode == 0
    (out / "notes.txt").write_text("mine")
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    bad(
        lsam(mpi, 2, "train", "--steps", "12", "--out", str(out)),
        "--out: expected a directory without a run, found one in",
    )
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    assert lsam(mpi, 2, "train", "--steps", "12", "--out", str(out), "--overwrite").returncode == 0
    assert (out / "notes.txt").read_text() == "mine"
    with Run(out) as logs:
        assert logs.ranks == [0, 1]


def test_an_output_that_cannot_be_made(mpi, tmp_path):
    (tmp_path / "file").touch()
    bad(lsam(mpi, 2, "train", "--out", str(tmp_path / "file")), "--out: expected a directory, found a file")
    bad(
        lsam(mpi, 2, "train", "--out", str(tmp_path / "file" / "run")),
        "--out: expected a directory that can be written",
    )


@pytest.mark.parametrize(
    ("others", "message"),
    [
        (["--model", "cnn"], "--model: expected the same on every rank, found None on rank 0, 'cnn' on rank 1"),
        (["--period", "0"], "rank 1: --period: expected a whole number of steps >= 1, found 0"),
    ],
)
def test_ranks_that_disagree_stop_together(mpi, others, message, tmp_path):
    words = [mpi.forked, "-m", "lsam_hpc", "train", "--out", str(tmp_path / "run")]
    bad(run([*mpi.mpiexec, "-n", "1", *words, ":", "-n", "2", *words, *others], 120), message)
    assert not (tmp_path / "run").exists()


def test_a_log_that_one_rank_cannot_create_stops_all(mpi, tmp_path):
    # As when two jobs race for one directory: rank 1's file appears after the directory was checked.
    code = (
        "import sys, time; from mpi4py import MPI; import lsam_hpc.train.loop as loop, lsam_hpc.cli as cli\n"
        "prepare = loop.prepare\n"
        "def racing(*arguments, **options):\n"
        "    run_dir = prepare(*arguments, **options)\n"
        "    if arguments[2] == 1:\n"
        "        deadline = time.monotonic() + 60\n"
        "        while not (run_dir / 'config.json').exists(): assert time.monotonic() < deadline; time.sleep(0.01)\n"
        "        (run_dir / 'rank-0001.h5').touch()\n"
        "    return run_dir\n"
        "loop.prepare = racing\n"
        f"sys.exit(cli.main(['train', '--steps', '8', '--out', {str(tmp_path / 'run')!r}]))"
    )
    bad(run(mpi.command(2, mpi.forked, "-c", code), 120), "rank 1: ")


def test_help_and_unknown_verbs(mpi):
    done = lsam(mpi, 2, "train", "--help")
    assert done.returncode == 0, done.stderr
    assert "--coupling" in done.stdout
    done = subprocess.run([sys.executable, "-m", "lsam_hpc", "trian"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr.startswith("lsam: VERB: invalid choice: 'trian'")
    assert len(done.stderr.splitlines()) == 1


def test_a_bug_on_one_rank_ends_the_job(mpi, tmp_path):
    # Without an abort the first rank would wait forever for the second.
    code = (
        "import sys; from mpi4py import MPI; import lsam_hpc.train.ending as ending, lsam_hpc.cli as cli\n"
        "if MPI.COMM_WORLD.rank == 1: ending.results = None\n"
        f"sys.exit(cli.main(['train', '--steps', '8', '--out', {str(tmp_path / 'run')!r}]))"
    )
    done = run(mpi.command(2, mpi.forked, "-c", code), 120)
    assert done.returncode not in (0, 2)
    assert "TypeError: 'NoneType' object is not callable" in done.stderr


def test_inspect_into_a_closed_pipe(tmp_path):
    read_end, write_end = os.pipe()
    os.close(read_end)
    command = [sys.executable, "-m", "lsam_hpc", "inspect", str(make_run(tmp_path / "run", ranks=2, rows=1))]
    done = subprocess.run(command, stdout=write_end, stderr=subprocess.PIPE, text=True, timeout=60)
    os.close(write_end)
    assert (done.returncode, done.stderr) == (0, "")


def test_inspect_without_a_run(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "lsam_hpc", "inspect", str(tmp_path)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2
    assert done.stderr == f"lsam inspect: {tmp_path}: expected a run directory with config.json, found none\n"


@pytest.mark.parametrize("coupling", ["elastic", pytest.param("restart", marks=SLOW)])
def test_the_bench_in_one_process_equals_the_job(mpi, coupling, tmp_path):
    """Data-parallel steps, then two chains: 50 steps each, of two passes in the last half; both in float32."""
    text = f"--coupling {coupling} --steps 100 --synchronous-start 0.2 --period 2 --rho-from 0.5 --batch-size 16"
    words = [*text.split(), "--no-overlap", "--seed", "3"]
    done = lsam(mpi, 2, "train", "--mode=lockstep", *words, "--out", str(tmp_path / "run"))
    assert done.returncode == 0, done.stderr
    config = parse(words)
    bench = Bench(config, 2, make_dataset(config))
    bench.take_together(Event(0.0, 0, "together", step) for step in range(10))
    replay(bench.players(), in_turn(2))
    model = mlp((1, 8, 8), 10)
    torch.nn.utils.vector_to_parameters(bench.center.vector, model.parameters())
    center = torch.load(tmp_path / "run/checkpoints/center.pt", weights_only=True)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(center[name], value, rtol=0, atol=1e-5)
