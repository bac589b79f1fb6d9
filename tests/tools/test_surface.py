"""`lsam surface`: files equal the library's results, for any number of ranks and after a kill."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import h5py
import numpy as np
import pytest
import torch

from lsam_hpc.cli import main
from lsam_hpc.landscape import read_directions, read_surface
from lsam_hpc.landscape.geometry.surface import Settings, scan
from lsam_hpc.landscape.objective import Objective
from lsam_hpc.trajectory import Run
from tests.helpers.landscapes import WORDS, classifier, images, walks, write_run
from tests.helpers.mpis import ROOT, run

GRID = ("--x=-1:1:5", "--y=-2:1:4")
MODULE = "tests.helpers.landscapes"
pytestmark = pytest.mark.usefixtures("torch_threads")


@pytest.fixture
def path(tmp_path):
    return write_run(tmp_path / "run")


def surface(path, *words):
    return main(["surface", str(path), *WORDS, *map(str, words)])


def table(file):
    return np.genfromtxt(file, delimiter=",", names=True)


def test_files_hold_what_the_library_returns(path, capsys):
    assert surface(path, *GRID, "--kinds", "loss,sam,regularised,smoothed", "--temperature", 0.5, "--samples", 3) == 0
    out = path / "figures"
    assert {f.name for f in out.iterdir()} == {
        f"surface-center-random{end}" for end in (".png", ".h5", ".csv", "-directions.h5")
    }
    directions = read_directions(out / "surface-center-random-directions.h5", Run(path).layout)
    np.testing.assert_array_equal(directions.origin, walks()[0, -1] / 2)
    # Of the run: rho 0.1, stiffness 2.
    settings = Settings(("loss", "sam", "regularised", "smoothed"), 0.1, 0.5, 2.0, 3)
    f = Objective(classifier(), images())
    x, y = np.linspace(-1, 1, 5), np.linspace(-2, 1, 4)
    expected = scan(f, directions.origin, np.stack([directions.x, directions.y]), x, y, settings=settings)
    written = read_surface(out / "surface-center-random.h5")
    assert written.directions == "surface-center-random-directions.h5"
    for name, values in expected.values.items():
        values_written = 100 - written.values["train_acc"] if name == "error" else written.values[f"train_{name}"]
        np.testing.assert_allclose(values_written, values, rtol=1e-6, atol=1e-9)
        np.testing.assert_allclose(table(out / "surface-center-random.csv")[name], values.reshape(-1), rtol=1e-6)
    np.testing.assert_array_equal(table(out / "surface-center-random.csv")["x"][:6], [*x, x[0]])
    with h5py.File(out / "surface-center-random.h5") as file:
        notes = json.loads(file.attrs["lsam_hpc"])
    assert (notes["rho"], notes["temperature"], notes["stiffness"]) == (0.1, 0.5, 2.0)
    printed = capsys.readouterr().out
    assert "smoothed: F(y) = -T log E[exp(-f_SAM(x)/T)], x ~ N(y, T/lambda I), T = 0.5, lambda = 2" in printed


@pytest.mark.parametrize(
    ("words", "shape"),
    [
        (("--directions", "pca"), (4, 5)),
        (("--line", "--to", "1@2"), (25,)),
        (("--to", "1@2,0@0", "--at", "0"), (4, 5)),
        (("--line", "--normalise", "layer", "--small", "keep"), (25,)),
        (("--directions", "pca", "--normalise", "model", "--split", "test"), (4, 5)),
    ],
)
def test_other_lines_and_planes(path, words, shape):
    assert surface(path, *words, *(GRID if len(shape) == 2 else ()), "--name", "s", "--format", "svg") == 0
    written = read_surface(path / "figures" / "s.h5")
    split = "test" if "test" in words else "train"
    assert written.values[f"{split}_loss"].shape == shape
    assert np.isfinite(written.values[f"{split}_loss"]).all()
    assert (path / "figures" / "s.svg").read_text().startswith("<?xml")


def test_eigenvectors(path):
    assert surface(path, "--directions", "eigenvector", "--double", "--line", "--x=-0.1:0.1:3", "--name", "s") == 0
    written = read_surface(path / "figures" / "s.h5")
    f = Objective(classifier().double(), [(x.double(), y) for x, y in images()])
    at = torch.from_numpy(walks()[0, -1] / 2).double()
    x, y = (torch.cat(parts) for parts in zip(*images(), strict=True))

    def loss(w):
        return torch.nn.functional.cross_entropy(x.double() @ w[:12].reshape(3, 4).T + w[12:], y)

    top = float(torch.linalg.eigvalsh(torch.autograd.functional.hessian(loss, at))[-1])
    low, middle, high = written.values["train_loss"]
    assert middle == pytest.approx(f(at).loss, rel=1e-12)
    assert (low + high - 2 * middle) / 0.01 == pytest.approx(top, rel=0.02)  # up to the fourth order


def test_the_ends_of_a_line_are_the_states(path):
    assert surface(path, "--line", "--at", "0", "--to", "1", "--x=0:1:3", "--name", "s") == 0
    values = read_surface(path / "figures" / "s.h5").values["train_loss"]
    f = Objective(classifier(), images())
    np.testing.assert_allclose(values[[0, 2]], [f(torch.from_numpy(walks()[r, -1])).loss for r in (0, 1)], rtol=1e-6)


def test_the_default_temperature_is_as_wide_as_the_chains(path, capsys):
    assert surface(path, "--line", "--x=0:1:2", "--kinds", "smoothed") == 0
    # lambda d^2 / P = 2 * 0.25 / 15
    printed = capsys.readouterr().out
    assert "T = 0.03333, lambda = 2" in printed


def test_nan_losses_are_kept_and_reported(path, capsys):
    assert surface(path, *GRID, "--loss", f"{MODULE}:diverging", "--name", "s", "--x=-9:9:5") == 0
    values = read_surface(path / "figures" / "s.h5").values["train_loss"]
    lost = int(np.isnan(values).sum())
    assert 0 < lost < 20
    assert f"not finite at {lost} of 20 points, which are left empty" in capsys.readouterr().out
    assert np.isnan(table(path / "figures" / "s.csv")["loss"]).sum() == lost


def test_no_mpi_without_a_launcher(path):
    code = "import sys; from lsam_hpc.cli import main; main(sys.argv[1:]); sys.exit('mpi4py.MPI' in sys.modules)"
    words = [sys.executable, "-c", code, "surface", str(path), *WORDS, *GRID]
    assert subprocess.run(words, cwd=ROOT, timeout=200, capture_output=True).returncode == 0


@pytest.mark.slow("five jobs; tests/mpi/test_workqueue.py tests the same in one")
def test_the_same_bits_for_any_number_of_ranks(path, mpi):
    files = {}
    words = ["surface", str(path), *WORDS, *GRID, "--kinds", "loss,sam,smoothed", "--samples", "2"]
    for ranks in (0, 1, 2, 4):
        command = [mpi.forked, "-m", "mpi4py", "-m", "lsam_hpc", *words, "--name", f"s{ranks}"]
        done = run(mpi.command(ranks, *command) if ranks else command, timeout=200)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("smoothed: F(y)") == 1
        files[ranks] = (path / "figures" / f"s{ranks}.csv").read_bytes()
    assert len(set(files.values())) == 1
    assert not list((path / "figures").glob("*.part"))


def test_after_a_kill_only_the_remaining_points_are_evaluated(path, tmp_path, mpi):
    calls, part = tmp_path / "calls", path / "figures" / "s.part"
    slow = ("--make-model", f"{MODULE}:slow_classifier", "--make-batches", f"{MODULE}:images")
    words = ["surface", str(path), *slow, "--x=-1:1:8", "--y=-1:1:8", "--name", "s"]
    command = mpi.command(2, mpi.forked, "-m", "mpi4py", "-m", "lsam_hpc", *words)

    def done():
        return sum(file.stat().st_size // (12 + 8 * 2) for file in part.glob("points-*.bin")) if part.exists() else 0

    with ThreadPoolExecutor() as pool:
        first = pool.submit(run, command, 200, LSAM_TEST_CALLS=str(calls))
        deadline = time.monotonic() + 120
        while done() < 20 or not _processes_using(part):
            assert time.monotonic() < deadline
            assert not first.done()
            time.sleep(0.01)
        os.kill(_processes_using(part)[0], signal.SIGKILL)  # MPI then ends the other rank
        assert first.result().returncode != 0
    while _processes_using(part):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    settled = done()
    calls.write_text("")
    again = run(command, timeout=200, LSAM_TEST_CALLS=str(calls))
    assert again.returncode == 0, again.stderr
    # Four batches at each remaining point, and two checks of four batches on rank 0.
    assert len(calls.read_text()) == 4 * (64 - settled) + 4 * 2
    assert 20 <= settled < 64
    values = read_surface(path / "figures" / "s.h5").values["train_loss"]
    assert surface(path, "--x=-1:1:8", "--y=-1:1:8", "--name", "alone") == 0
    np.testing.assert_array_equal(values, read_surface(path / "figures" / "alone.h5").values["train_loss"])


def _processes_using(part):
    """Return the processes that hold a file of the folder open."""
    processes = []
    for process in os.listdir("/proc"):
        if process.isdigit():
            try:
                targets = [os.readlink(f"/proc/{process}/fd/{fd}") for fd in os.listdir(f"/proc/{process}/fd")]
            except OSError:  # the process has ended
                continue
            if any(link.startswith(str(part)) for link in targets):
                processes.append(int(process))
    return processes


def refused(capsys, *words):
    assert main(["surface", *map(str, words)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("--at", "centre"), r"state: expected center\[@I\], RANK\[@I\] or FILE.pt .*, found 'centre'"),
        (("--at", "9"), "expected a rank of 0, 1, found 9"),
        (("--to", "0,1,2"), "--to: expected one state for a line or two for a plane, found 0,1,2"),
        (("--to", "0", "--directions", "pca"), "--to excludes --directions and --normalise"),
        (("--line", "--y=0:1:3"), "--y: a line has no second axis"),
        (("--x=0:1",), "--x: expected FROM:TO:POINTS as in --x=-1:1:51, found '0:1'"),
        (("--x=1:0:5",), "--x: expected two points or more from a smaller to a larger number, found '1:0:5'"),
        (("--kinds", "mood"), "kinds: expected some of loss, sam, regularised, smoothed, found mood"),
        (("--kinds", "smoothed", "--temperature", "0"), "temperature: expected a number > 0"),
        (("--threads", "0"), "--threads: expected 1 or more, found 0"),
        (("--name", "a/b"), "--name: expected a name without folders, found 'a/b'"),
        (
            ("--make-model", f"{MODULE}:other_classifier"),
            "model: expected the run's parameters, found a difference in "
            r"weight: \(3, 4\) in the run, \(3, 5\) in the model",
        ),
        (("--make-batches", f"{MODULE}:nothing"), "data: expected at least one sample, found none"),
        (("--loss", f"{MODULE}:diverging", "--at", "far.pt"), "loss: expected a finite number at the given state"),
    ],
)
def test_bad_input(path, tmp_path, capsys, monkeypatch, words, line):
    monkeypatch.syspath_prepend(str(ROOT))
    monkeypatch.chdir(tmp_path)
    torch.save({"weight": torch.full((3, 4), 50.0), "bias": torch.zeros(3)}, "far.pt")
    assert re.search(line, refused(capsys, path, *WORDS, *words))


def test_a_run_without_snapshots(tmp_path, capsys):
    path = write_run(tmp_path / "run", snapshots=False)
    neither = "or checkpoints/center.pt, found neither: train with --snapshot-every log, or name a file"
    assert neither in refused(capsys, path, *WORDS)
    assert neither in refused(capsys, path, *WORDS, "--directions", "pca")
    (path / "checkpoints").mkdir()
    torch.save(classifier().state_dict(), path / "checkpoints" / "center.pt")
    assert "expected 3 snapshots of the sample" in refused(capsys, path, *WORDS, "--directions", "pca")


def test_existing_files_and_points(path, capsys):
    assert surface(path, "--line", "--name", "s") == 0
    assert refused(capsys, path, *WORDS, "--line", "--name", "s").endswith(
        "expected no such file, found one: choose another --name, or --overwrite"
    )
    before = (path / "figures" / "s.h5").read_bytes()
    assert surface(path, "--line", "--name", "s", "--overwrite", "--seed", 1) == 0
    assert (path / "figures" / "s.h5").read_bytes() != before
    part = path / "figures" / "t.part"
    part.mkdir()
    (part / "options.json").write_text('{"model": "another"}')
    assert 'expected points of the same options, found model "another" there' in refused(
        capsys, path, *WORDS, "--line", "--name", "t"
    )
