"""`lsam redraw`: the same figures from the numbers alone, without the run, and on other scales."""

import re
import shutil
import subprocess
import sys

import matplotlib.figure
import numpy as np
import pytest

from lsam_hpc.cli import main
from lsam_hpc.landscape import Edge, Limits
from lsam_hpc.tools.spectrum_files import write_edge
from tests.helpers.landscapes import WORDS, write_run

GRID = ("--x=-1:1:5", "--y=-2:1:4")
CONCAVE = ("--loss", "tests.helpers.landscapes:wrong")  # with a barrier
SLOW = pytest.mark.slow("each kind of figure, drawn twice")
# Verb and options, and the ends of the names of the figures.
FIGURES = [
    pytest.param(("surface", *WORDS, *GRID, "--kinds", "loss,sam"), [""], id="surface"),
    pytest.param(("surface", *WORDS, "--line", "--x=-1:1:5", "--split", "test"), [""], id="line", marks=SLOW),
    pytest.param(("trajectory", *WORDS, "--surface", "4", "--losses"), [""], id="snapshots", marks=SLOW),
    pytest.param(("trajectory", "--source", "sketches", "--mark", "0@1"), [""], id="sketches"),
    pytest.param(("path", *WORDS, "--points", "5"), [""], id="matrix"),
    pytest.param(
        ("path", *WORDS, "--points", "5", "--between", "0,1", "--curve", "--curve-steps", "2", "--single", *CONCAVE),
        [""],
        id="curve",
        marks=SLOW,
    ),
    pytest.param(
        ("spectrum", *WORDS, "--layers", "--steps", "5", "--products", "3", "--eigenvalues", "2"),
        ["", "-layers"],
        id="spectrum",
        marks=SLOW,
    ),
    pytest.param(
        (
            "spectrum",
            *WORDS,
            "--class",
            "0,1",
            "--steps",
            "5",
            "--products",
            "3",
            "--eigenvalues",
            "2",
            "--smallest",
            "1",
        ),
        ["", "-classes"],
        id="classes",
    ),
    pytest.param(("spectrum", *WORDS, "--along", "sample"), ["-edge"], id="edge"),
    pytest.param(("sharpness", *WORDS, "--steps", "2", "--at", "center,0"), [""], id="sharpness", marks=SLOW),
    pytest.param(("diagnose", "--from", "0"), [""], id="diagnose", marks=SLOW),
]


@pytest.fixture
def path(tmp_path):
    return write_run(tmp_path / "run", states=24, sketches=True)


@pytest.fixture
def numbers(path, tmp_path):
    """Return a function that runs a verb, and returns the folder and the file of numbers that it wrote."""

    def make(*words):
        assert main([words[0], str(path), *words[1:], "--out", str(tmp_path / "out"), "--name", "a"]) == 0
        return tmp_path / "out" / ("a-edge.h5" if "--along" in words else "a.h5")

    return make


def refused(capsys, *words):
    capsys.readouterr()
    assert main(["redraw", *map(str, words)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.mark.parametrize(("words", "ends"), FIGURES)
def test_the_same_figure_without_the_run(path, numbers, words, ends, tmp_path, capsys):
    file = numbers(*words)
    shutil.rmtree(path)
    assert main(["redraw", str(file), "--out", str(tmp_path / "again"), "--name", "b"]) == 0
    again = sorted((tmp_path / "again").iterdir())
    assert [f.name for f in again] == sorted(f"b{end.removeprefix('-edge')}.png" for end in ends)
    for figure in again:
        first = file.with_name(figure.name.replace("b", file.stem, 1))
        assert figure.read_bytes() == first.read_bytes()
    assert capsys.readouterr().out.splitlines()[-len(again) :] == [
        str(tmp_path / "again" / f"b{end.removeprefix('-edge')}.png") for end in ends
    ]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--kinds", "eigenvalues"], "expected the numbers of a figure, found a spectrum without one"),
        (["--kinds", "trace", "--smallest", "1"], "expected the numbers of a figure, found a spectrum without one"),
    ],
)
def test_numbers_without_a_figure(numbers, words, message, capsys):
    file = numbers("spectrum", *WORDS, "--eigenvalues", "2", *words)
    assert message in refused(capsys, file)


def test_sharpness_that_was_measured_in_training(tmp_path):
    steps = np.arange(60.0)
    numbers = {"total_iteration": steps, "lr": np.full(60, 0.1), "ratio": np.full(60, 0.05)}
    limits = Limits(**numbers, momentum=0.9)
    rank, sharpness = np.repeat([0, 1], 30), 1 + steps % 30
    along = dict.fromkeys(("update_sharpness", "gradient_sharpness", "flow_sharpness"), sharpness / 2)
    of_rank = {**numbers, **along, "momentum": 0.9, "rank": rank, "iteration": rank, "logged": limits}
    edge, measured = Edge(**of_rank, sharpness=sharpness), Edge(**of_rank, sharpness=2 * sharpness)
    out = {end: tmp_path / f"a{end}" for end in ("-edge.csv", "-edge.h5", "-edge.png")}
    write_edge(out, edge, "run", format_="png", flow=True, measured=measured)
    assert main(["redraw", str(out["-edge.h5"]), "--name", "b"]) == 0
    assert (tmp_path / "b.png").read_bytes() == out["-edge.png"].read_bytes()


def test_scales_and_formats(numbers, capsys, monkeypatch):
    drawn, original = [], matplotlib.figure.Figure.savefig

    def savefig(self, *words, **options):
        drawn.append(self)
        return original(self, *words, **options)

    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", savefig)
    file = numbers("surface", *WORDS, *GRID)
    before = {f.name: f.read_bytes() for f in file.parent.iterdir()}
    assert main(["redraw", str(file), "--log", "--limits", "0.5,4", "--levels", "5", "--format", "pdf"]) == 0
    assert file.with_suffix(".pdf").read_bytes().startswith(b"%PDF")
    norm = drawn[-1].axes[0].collections[0].norm
    assert (type(norm).__name__, norm.vmin, norm.vmax) == ("LogNorm", 0.5, 4)
    assert main(["redraw", str(file), "--no-log", "--levels", "1,2,3", "--format", "svg"]) == 0
    assert list(drawn[-1].axes[0].collections[0].levels) == [1, 2, 3]
    text = file.with_suffix(".svg").read_text()
    assert "run, around center, other data, 30 samples" in text
    assert main(["redraw", str(file), "--static-3d"]) == 0
    assert drawn[-1].axes[0].name == "3d"
    assert file.with_name("a-3d.png").read_bytes().startswith(b"\x89PNG")
    assert {name: file.with_name(name).read_bytes() for name in before} == before
    assert "expected no such file, found one: choose another --name, or --overwrite" in refused(capsys, file)
    assert main(["redraw", str(file), "--log", "--overwrite"]) == 0


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("none.h5",), r"none.h5: expected the .h5 file beside a figure, found none: lsam surface RUN writes one"),
        (("text.h5",), r"text.h5: expected the .h5 file beside a figure, found: "),
        (("run/rank-0000.h5",), "expected the numbers of a figure of this version, found none: figures of surface"),
        (("out/a-directions.h5",), "expected the numbers of a figure of this version, found none"),
        (("out/a.h5", "--limits", "1"), "--limits: expected LOW,HIGH as in --limits 0,5, found '1'"),
        (("out/a.h5", "--limits", "5,1"), "--limits: expected a smaller and a larger number, found 5,1"),
        (("out/a.h5", "--limits", "0,1", "--log"), "--limits: expected numbers > 0 on a logarithmic scale, found 0"),
        (("out/a.h5", "--levels", "x"), "--levels: expected a number or values as in --levels 0.1,0.2,0.5, found 'x'"),
        (("out/a.h5", "--levels", "1"), "--levels: expected 2 or more, found 1"),
        (("out/a.h5", "--static-3d", "--name", "b"), "--static-3d: expected a surface on a plane, found one on a line"),
        (("out/t.h5", "--static-3d", "--name", "b"), "--static-3d: expected a figure of surface, found"),
        (("out/t.h5", "--limits", "0,5", "--name", "b"), "--limits: expected a figure of .*, found tracks without"),
    ],
)
def test_bad_input(files, capsys, monkeypatch, words, line):
    monkeypatch.chdir(files)
    assert re.search(line, refused(capsys, *words))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    path = str(write_run(folder / "run", states=24, sketches=True))
    (folder / "text.h5").write_text("no numbers")
    for verb, name, *words in (("surface", "a", *WORDS, "--line", "--x=-1:1:3"), ("trajectory", "t")):
        assert main([verb, path, *words, "--out", str(folder / "out"), "--name", name]) == 0
    return folder


def test_a_missing_package(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    line = "lsam redraw: expected the package matplotlib, found none: pip install 'lsam-hpc[analysis]'"
    assert refused(capsys, "a.h5") == line


def test_neither_torch_nor_mpi_is_loaded():
    code = "import sys, lsam_hpc.tools.redraw; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60).stdout
    assert not {"torch", "mpi4py", "matplotlib"} & set(loaded.split())
