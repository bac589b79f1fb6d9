"""`lsam spectrum` on a small model and run: files, numbers, and one line per input error."""

import json
import re

import h5py
import numpy as np
import pytest
import torch

from lsam_hpc import InputError
from lsam_hpc.cli import main
from lsam_hpc.landscape.curvature import blocks, spectrum
from lsam_hpc.landscape.curvature.directional import directional_sharpness
from lsam_hpc.landscape.curvature.products import Operator, curvature, dense
from lsam_hpc.landscape.curvature.spectrum import eigenpairs
from lsam_hpc.landscape.objective import Objective
from lsam_hpc.trajectory import Snapshots, TrajectoryWriter
from lsam_hpc.util import progress
from tests.helpers.logs import attributes, make_run, step_row
from tests.helpers.small_model import LAYOUT, read, setting

__all__ = ["setting"]  # a fixture


def test_spectrum(setting, tmp_path, capsys, monkeypatch):
    path, options, states = setting
    monkeypatch.setattr(progress, "PAUSE", -1.0)  # a line for each point
    words = ["--layers", "--vectors", "--along", "sample", "--eigenvalues", "3", "--steps", "10", "--repeats", "2"]
    words += ["--kinds", "eigenvalues,trace,density"]
    assert main(["spectrum", str(path), *options, *words, "--out", str(tmp_path), "--double"]) == 0
    out, err = capsys.readouterr()
    # For each of 2 matrices: 3 times the eigenvalues, 2 estimates of the trace (1 for a small block), 2 of the density.
    assert "lsam spectrum: 26 of 26 points, " in err
    assert "lsam spectrum, snapshots: 6 of 6 points, " in err
    assert out.splitlines()[0].split() == [
        "matrix",
        "layer",
        "parameters",
        "largest",
        "second",
        "trace",
        "+-",
        "smallest",
        "node",
    ]
    import spectrum_model

    model = spectrum_model.model().double()
    f = Objective(model, [(x.double(), y) for x, y in spectrum_model.loader()])
    values, vectors = eigenpairs(f, f.vector(states[0, 2] / 2), 3)
    rows = [
        row
        for row in read(tmp_path / "spectrum-center-eigenvalues.csv")
        if (row["matrix"], row["layer"]) == ("hessian", "all")
    ]
    np.testing.assert_allclose([float(row["eigenvalue"]) for row in rows], values)
    traces = {
        (row["matrix"], row["layer"]): float(row["trace"]) for row in read(tmp_path / "spectrum-center-traces.csv")
    }
    assert len(traces) == 6
    # The traces of the blocks are exact, since the blocks are small; that of the whole is an estimate.
    assert traces["ggn", "0"] + traces["ggn", "2"] == pytest.approx(traces["ggn", "all"], rel=0.2)
    with h5py.File(tmp_path / "spectrum-center.h5") as file:
        np.testing.assert_allclose(file["hessian/all/eigenvectors"][:], vectors, atol=1e-6)
        assert file["ggn/2/density/weights"][:].sum() == pytest.approx(1)
        assert json.loads(file.attrs["lsam_hpc"])["at"] == "center"
    edges = read(tmp_path / "spectrum-center-edge.csv")
    assert [(row["rank"], row["iteration"]) for row in edges] == [(r, i) for r in "01" for i in "012"]
    top = eigenpairs(f, f.vector(states[1, 0]), 1)[0][0]
    assert float(edges[3]["sharpness"]) == pytest.approx(top)
    update = (states[1, 1] - states[1, 0]).astype(np.float64)
    along = directional_sharpness(f, f.vector(states[1, 0]), torch.from_numpy(update[None]))[0]
    assert float(edges[3]["update_sharpness"]) == pytest.approx(along, rel=1e-6)
    assert [row["update_sharpness"] == "" for row in edges] == [False, False, True] * 2
    assert float(edges[3]["limit"]) == pytest.approx(20)
    assert float(edges[3]["momentum_limit"]) == pytest.approx(30)
    for name in ("spectrum-center.png", "spectrum-center-layers.png", "spectrum-center-edge.png"):
        assert (tmp_path / name).read_bytes()[:4] == b"\x89PNG"
    assert main(["spectrum", str(path), *options, *words, "--out", str(tmp_path)]) == 2
    assert "spectrum-center.png: expected no such file, found one" in capsys.readouterr().err


def test_bad_input(setting, tmp_path, capsys):
    path, options, _ = setting
    bare = make_run(tmp_path / "bare")
    torch.save({name: torch.full(shape, torch.nan) for name, shape in LAYOUT}, tmp_path / "nan.pt")
    for words, message in (
        ([str(bare), *options], "model: expected the run's parameters, found a difference in weight"),
        (
            [str(path), "--make-batches", options[3], "--make-model", "torch.nn:Identity"],
            "model: expected parameters that can be tr",
        ),
        (
            [str(path), *options[:2], "--make-batches", "spectrum_model:nothing"],
            "data: expected at least one sample, found none",
        ),
        (
            [str(path), *options, "--at", str(tmp_path / "nan.pt")],
            "loss: expected a finite number at the given state, fo",
        ),
        ([str(path), *options, "--at", "7"], "expected a rank of 0, 1, found 7"),
        ([str(path), *options, "--matrix", "fisher"], "--matrix: expected some of hessian, ggn, found 'fisher'"),
        ([str(path), *options, "--eigenvalues", "0"], "--eigenvalues: expected 1 or more, found 0"),
        ([str(path), *options, "--products", "4"], "--products: expected a multiple of 3, found 4"),
        (
            [str(path), *options, "--kinds", "norm"],
            "--kinds: expected some of eigenvalues, trace, density, found 'norm",
        ),
        ([str(path), *options, "--kinds", "trace", "--vectors"], "--vectors: expected eigenvalues among --kinds"),
        ([str(path), *options, "--smallest", "0"], "--smallest: expected 1 or more, found 0"),
        (
            [str(path), *options, "--smallest", "1", "--matrix", "ggn"],
            "--smallest: expected --matrix hessian, found ggn",
        ),
        ([str(path), *options, "--class", "0,7"], "--class: expected all, or some of 0, 1, 2, 3, found '7'"),
        ([str(bare), *options, "--along", "sample"], "expected snapshots of the sample, found none: train with --snap"),
    ):
        assert main(["spectrum", *words, "--out", str(tmp_path / "out")]) == 2
        err = capsys.readouterr().err
        assert err.startswith("lsam spectrum: ")
        assert message in err
        assert err.count("\n") == 1


def test_classes_and_smallest_eigenvalues(setting, tmp_path, capsys):
    path, options, states = setting
    words = ["--class", "all", "--smallest", "2", "--eigenvalues", "3", "--steps", "5", "--repeats", "2"]
    assert main(["spectrum", str(path), *options, *words, "--out", str(tmp_path), "--double"]) == 0
    import spectrum_model

    f = Objective(spectrum_model.model().double(), [(x.double(), y) for x, y in spectrum_model.loader()])
    at = f.vector(states[0, 2] / 2)
    parts = {"all": f, **f.of_classes()}
    rows = read(tmp_path / "spectrum-center-eigenvalues.csv")
    lines = {
        words[2]: words for words in map(str.split, capsys.readouterr().out.splitlines()) if words[:1] == ["hessian"]
    }
    assert list(lines) == ["all", "0", "1", "2", "3"]
    for name, part in parts.items():
        with curvature(part, at) as operator:
            values = np.linalg.eigvalsh(dense(operator).numpy())[::-1]
        chosen = [(int(row["number"]), float(row["eigenvalue"])) for row in rows if row["class"] == name]
        found = dict(chosen[:5])  # of the Hessian
        assert list(found) == [1, 2, 3, 51, 52]
        np.testing.assert_allclose(list(found.values()), values[[0, 1, 2, 50, 51]], rtol=1e-6)
        assert [number for number, _ in chosen[5:]] == [1, 2, 3]  # of the GGN
        assert lines[name][7:9] == [f"{values[-1]:.5g}", f"{-values[-1] / values[0]:.4g}"]
        assert lines[name][3] == str(part.samples)
        with h5py.File(tmp_path / "spectrum-center.h5") as file:
            group = file["hessian/all" if name == "all" else f"hessian/class {name}"]
            np.testing.assert_allclose(group["smallest"][:], values[[51, 50]], rtol=1e-6)
    assert (tmp_path / "spectrum-center-classes.png").read_bytes()[:4] == b"\x89PNG"


def test_the_gradient_flow(setting, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(progress, "PAUSE", -1.0)  # a line for each step
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    starts = np.array([[3, 0.5], [2, 1], [-1, -4]], np.float32)
    with TrajectoryWriter(folder, 0, [("w", (2,))], attributes(), snapshots=Snapshots()) as writer:
        for i, start in enumerate(starts):
            writer.step(**{**step_row(i), "lr": 0.1})
            writer.snapshot("sample", start, i)
    model = ["--make-model", "spectrum_model:Scalar", "--make-batches", "spectrum_model:loader"]
    words = ["spectrum", str(folder), *model, "--loss", "spectrum_model:product", "--flow"]
    out = ["--out", str(tmp_path / "out")]
    truth = np.sqrt(np.diff(starts.astype(np.float64) ** 2)[:, 0] ** 2 + 4)  # of the solutions
    at_start = np.linalg.eigvalsh([[[b * b, 2 * a * b - 1], [2 * a * b - 1, a * a]] for a, b in starts])[:, 1]
    assert main([*words, "--at", "0@0", "--flow-tolerance", "1e-5", *out]) == 0
    printed, err = capsys.readouterr()
    numbers = re.search(r"sharpness of the solution (\S+), at the state (\S+); loss 0.125 -> ", printed)
    np.testing.assert_allclose([float(number) for number in numbers.groups()], [truth[0], at_start[0]], rtol=1e-4)
    assert re.search(r"lsam spectrum, gradient flow: \S+ of \S+ gradients, loss \S+, about \d+ s left", err)
    rows = read(tmp_path / "out/spectrum-0@0-flow.csv")
    assert float(rows[0]["sharpness"]) == pytest.approx(at_start[0])
    assert float(rows[-1]["sharpness"]) == pytest.approx(truth[0], rel=1e-4)
    assert {row["sharpness"] for row in rows[1:-1]} == {""}
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["spectrum-0@0-flow.csv"]

    assert main([*words, "--along", "sample", "--flow-tolerance", "1e-5", *out]) == 0
    assert "gradient flow: converged from 3 of 3 snapshots" in capsys.readouterr().out
    edges = read(tmp_path / "out/spectrum-center-edge.csv")
    np.testing.assert_allclose([float(row["flow_sharpness"]) for row in edges], truth, rtol=1e-4)
    np.testing.assert_allclose([float(row["sharpness"]) for row in edges], at_start, rtol=1e-6)

    assert main([*words, "--at", "0@0", "--flow-gradients", "50", "--name", "few", *out]) == 0
    assert re.search(
        r"not converged in \d+ gradients \(--flow-gradients\): loss 0.125 -> .*, \|g\| .*", capsys.readouterr().out
    )
    assert read(tmp_path / "out/few-flow.csv")[-1]["sharpness"] == ""
    for more, message in (
        (["--flow-gradients", "0"], "gradient flow: expected 1 gradient or more, found 0"),
        (["--along", "measured"], "{}: expected a measured curvature, found none: train with --curvature-every 100"),
        (["--flow-tolerance", "2"], "gradient flow: expected a tolerance between 0 and 1, found 2.0"),
    ):
        assert main([*words, *more, *out]) == 2
        assert capsys.readouterr().err == f"lsam spectrum: {message.format(folder)}\n"


@pytest.mark.parametrize(
    ("words", "files"),
    [
        (["--along", "sample"], ["-edge.csv", "-edge.h5", "-edge.png"]),
        (["--kinds", "trace"], ["-traces.csv", ".h5"]),
        (["--kinds", "trace", "--smallest", "1"], ["-eigenvalues.csv", "-traces.csv", ".h5"]),
        (["--kinds", "eigenvalues", "--class", "2"], ["-classes.png", "-eigenvalues.csv", ".h5"]),
        (
            ["--along", "sample", "--at", "center", "--matrix", "ggn"],
            ["-density.csv", "-edge.csv", "-edge.h5", "-edge.png", "-eigenvalues.csv", "-traces.csv", ".h5", ".png"],
        ),
        (["--kinds", "density", "--matrix", "ggn"], ["-density.csv", ".h5", ".png"]),
        (["--kinds", "trace", "--layers"], ["-layers.png", "-traces.csv", ".h5"]),
        (["--layers"], ["-density.csv", "-eigenvalues.csv", "-layers.png", "-traces.csv", ".h5", ".png"]),
    ],
)
def test_only_what_was_asked_for(setting, tmp_path, words, files, monkeypatch):
    path, options, _ = setting
    calls = []

    def product(self, v, real=Operator.__matmul__):
        calls.append(1)
        return real(self, v)

    monkeypatch.setattr(Operator, "__matmul__", product)
    words = [*words, "--steps", "5", "--repeats", "2"]
    assert main(["spectrum", str(path), *options, *words, "--out", str(tmp_path)]) == 0
    assert sorted(file.name for file in tmp_path.iterdir()) == ["spectrum-center" + name for name in files]
    if "density" in words:
        assert len(calls) == 11  # one is the check's
    if "--layers" in words:  # no density of the layers
        table = {row["layer"] for row in read(tmp_path / "spectrum-center-traces.csv")}
        assert table == {"all", "0", "2"}
        if "--kinds" not in words:
            assert {row["layer"] for row in read(tmp_path / "spectrum-center-density.csv")} == {"all"}


@pytest.mark.parametrize(
    ("words", "total"),
    [
        (["--layers", "--vectors", "--matrix", "ggn"], 9),  # eigenvalues of 3 blocks, 4 traces, 2 parts of the density
        (["--along", "sample"], 6),
    ],
)
def test_a_second_call_resumes(setting, tmp_path, monkeypatch, words, total):
    path, options, _ = setting
    words = ["spectrum", str(path), *options, *words, "--steps", "5", "--repeats", "2"]
    assert main([*words, "--out", str(tmp_path / "whole")]) == 0
    jobs, stop = [], 4

    def counted(real):
        def job(*args, **kwargs):
            jobs.append(1)
            if len(jobs) == stop:
                raise KeyboardInterrupt
            return real(*args, **kwargs)

        return job

    for module, name in ((blocks, "_numbers"), (spectrum, "eigenpairs")):
        monkeypatch.setattr(module, name, counted(getattr(module, name)))
    with pytest.raises(KeyboardInterrupt):
        main([*words, "--out", str(tmp_path / "killed")])
    jobs, stop = [], None
    assert main([*words, "--out", str(tmp_path / "killed")]) == 0
    assert len(jobs) == total - 3
    for file in (tmp_path / "whole").glob("*.csv"):
        assert (tmp_path / "killed" / file.name).read_bytes() == file.read_bytes()
    assert sorted(f.name for f in (tmp_path / "killed").iterdir()) == sorted(
        f.name for f in (tmp_path / "whole").iterdir()
    )
    if "--vectors" in words:
        with (
            h5py.File(tmp_path / "whole/spectrum-center.h5") as one,
            h5py.File(tmp_path / "killed/spectrum-center.h5") as two,
        ):
            np.testing.assert_array_equal(one["ggn/2/eigenvectors"], two["ggn/2/eigenvectors"])


def test_saved_points_of_another_call_are_kept(setting, tmp_path):
    path, options, _ = setting
    for part in ("spectrum-center.part", "spectrum-center-edge.part"):
        (tmp_path / part).mkdir()
    words = ["spectrum", str(path), *options, "--out", str(tmp_path)]
    assert main([*words, "--kinds", "trace"]) == 0
    assert [part.name for part in tmp_path.glob("*.part")] == ["spectrum-center-edge.part"]
    (tmp_path / "spectrum-center.part").mkdir()
    assert main([*words, "--along", "sample"]) == 0
    assert [part.name for part in tmp_path.glob("*.part")] == ["spectrum-center.part"]


def test_points_of_other_options_are_not_used(setting, tmp_path, monkeypatch, capsys):
    path, options, _ = setting
    words = ["spectrum", str(path), *options, "--kinds", "trace", "--out", str(tmp_path)]
    with monkeypatch.context() as patch:
        patch.setattr("lsam_hpc.tools.spectrum.write", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            main(words)
    assert main([*words, "--products", "6"]) == 2
    assert "expected points of the same options, found products 30 there and 6 now" in capsys.readouterr().err


@pytest.mark.mpi(np=[2])
def test_ranks_share_the_work(comm, tmp_path):
    from lsam_hpc.tools.jobs import share
    from lsam_hpc.tools.ranks import Ranks

    ranks = Ranks()
    ranks.comm = comm
    done = []
    squares = share(ranks, [lambda i=i: (done.append(i), i**2)[1] for i in range(5)], None)
    assert squares == [0, 1, 4, 9, 16]
    assert done == list(range(comm.rank, 5, comm.size))

    def bad():
        raise InputError("it: expected good, found bad")

    with pytest.raises(InputError, match="it: expected good, found bad"):
        share(ranks, [lambda: 1, bad], None)


@pytest.mark.mpi(np=[2])
def test_spectra_on_ranks(comm, tmp_path):
    torch.manual_seed(0)
    model = torch.nn.Linear(7, 13).double()
    data = [(torch.randn(30, 7, dtype=torch.float64), torch.arange(30) % 13)]
    f = Objective(model, data)
    parts = [blocks.Block("ggn", "all", 104, None), blocks.Block("hessian", "weight", 91, [0], ("trace",))]
    settings = blocks.Settings(2, 5, 3, 6, vectors=True)
    alone = blocks.spectra(f, f.start(), parts, settings, folder=tmp_path / f"{comm.rank}")
    folder = comm.bcast(tmp_path) / "part"
    together = blocks.spectra(f, f.start(), parts, settings, folder=folder, comm=comm)
    for one, two in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one.values, two.values)
        assert one.trace == two.trace
        if one.density:
            np.testing.assert_array_equal(one.density.nodes, two.density.nodes)
            np.testing.assert_array_equal(one.density.weights, two.density.weights)
    assert together[0].vectors.shape == ((2, 104) if comm.rank == 0 else (0, 0))
    if comm.rank == 0:
        np.testing.assert_array_equal(alone[0].vectors, together[0].vectors)
        (folder / "vectors-0000.npy").unlink()
    comm.barrier()
    with pytest.raises(InputError, match=r"vectors-0000.npy: expected eigenvectors, found: .*; remove"):
        blocks.spectra(f, f.start(), parts, settings, folder=folder, comm=comm)
