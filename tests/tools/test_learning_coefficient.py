"""`lsam learning-coefficient` on a small model and run: files, numbers, and one line per input error."""

import contextlib
import json

import h5py
import numpy as np
import pytest

from lsam_hpc.cli import main
from lsam_hpc.landscape import learning_coefficient
from lsam_hpc.landscape.chains import learning_coefficient as learning_coefficients
from lsam_hpc.landscape.objective import Objective
from lsam_hpc.util import progress
from tests.helpers.mpis import run
from tests.helpers.small_model import read, setting

__all__ = ["setting"]  # a fixture
SMALL = ["--draws", "25", "--warmup", "10", "--chains", "2", "--leapfrog", "2", "--gamma", "5", "--double"]


def test_learning_coefficient(setting, tmp_path, capsys, monkeypatch):
    path, options, states = setting
    monkeypatch.setattr(progress, "PAUSE", -1.0)  # a line for each draw
    words = ["--at", "center,1@0", *SMALL, "--seed", "3", "--out", str(tmp_path), "--name", "llc"]
    assert main(["learning-coefficient", str(path), *options, *words]) == 0
    out, err = capsys.readouterr()
    assert "lsam learning-coefficient: 140 of 140, " in err
    rows = read(tmp_path / "llc.csv")
    import spectrum_model

    f = Objective(spectrum_model.model().double(), [(x.double(), y) for x, y in spectrum_model.loader()])
    with h5py.File(tmp_path / "llc.h5") as file:
        for row, name, state in zip(rows, ("center", "1@0"), (states[0, 2] / 2, states[1, 0]), strict=True):
            more = {"draws": 25, "warmup": 10, "chains": 2, "leapfrog": 2, "seed": 3}
            expected = learning_coefficient(f, f.vector(state), gamma=5.0, **more)
            assert row["state"] == name
            for column, value in (
                ("lambda", expected.value),
                ("standard_error", expected.error),
                ("half_parameters", 26),
                ("loss", f(f.vector(state)).loss),
                ("rhat", expected.rhat),
                ("ess_bulk", expected.mixing.ess_bulk),
                ("ess_tail", expected.mixing.ess_tail),
                ("acceptance", expected.acceptance.min()),
            ):
                assert float(row[column]) == pytest.approx(value, rel=1e-9), column
            np.testing.assert_allclose(file[f"losses/{name}"][()], expected.losses, rtol=1e-9)
            for check in expected.checks():
                assert (f" BAD  {name}: {check.name}: " in out) == (not check.good)
        notes = json.loads(file.attrs["lsam_hpc"])
    assert (notes["gamma"], notes["samples"], notes["beta"]) == (5.0, 40, 1 / np.log(40))
    assert "1@0: minimum: the loss is" in out  # random numbers are no minimum
    assert (tmp_path / "llc.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--gamma", "0"], "--gamma: expected a number > 0, found 0.0"),
        (["--draws", "19"], "--draws: expected 20 or more, found 19"),
        (["--warmup", "0"], "--warmup: expected 1 or more, found 0"),
        (["--chains", "0"], "--chains: expected 1 or more, found 0"),
        (["--images", "1"], "data: expected two samples or more, found 1"),
    ],
)
def test_input_errors(setting, tmp_path, capsys, words, message):
    path, options, _ = setting
    assert main(["learning-coefficient", str(path), *options, *words, "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"lsam learning-coefficient: {message}\n"


def test_finished_chains_survive_a_kill(setting, tmp_path, capsys, monkeypatch):
    path, options, _ = setting
    words = ["learning-coefficient", str(path), *options, *SMALL, "--at", "center,0@1"]
    assert main([*words, "--out", str(tmp_path / "whole")]) == 0
    made, chain = [], learning_coefficients.chain

    def killed(*args, **more):
        made.append(more["seed"])
        if len(made) == 4:
            raise KeyboardInterrupt
        return chain(*args, **more)

    monkeypatch.setattr(learning_coefficients, "chain", killed)
    capsys.readouterr()
    with contextlib.suppress(KeyboardInterrupt):
        main([*words, "--out", str(tmp_path / "cut")])
    assert (tmp_path / "cut" / "learning-coefficient.part").is_dir()
    assert main([*words, "--out", str(tmp_path / "cut"), "--draws", "26"]) == 2
    assert "expected points of the same options, found draws 25 there and 26 now" in capsys.readouterr().err
    monkeypatch.setattr(progress, "PAUSE", -1.0)
    assert main([*words, "--out", str(tmp_path / "cut")]) == 0
    assert made == [0, 1, 0, 1, 1]  # of two states; only the chain that was killed is computed again
    err = capsys.readouterr().err
    assert "3 of 4 chains were finished before" in err
    assert "lsam learning-coefficient: 35 of 35, " in err
    files = [tmp_path / out / "learning-coefficient.csv" for out in ("whole", "cut")]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert not (tmp_path / "cut" / "learning-coefficient.part").exists()


def test_the_figure_says_how_well_the_chains_mix(setting, tmp_path):
    path, options, _ = setting
    assert main(["learning-coefficient", str(path), *options, *SMALL, "--format", "svg", "--out", str(tmp_path)]) == 0
    text = (tmp_path / "learning-coefficient.svg").read_text()
    (row,) = read(tmp_path / "learning-coefficient.csv")
    assert f"R-hat {float(row['rhat']):.3f}" in text
    assert f"ESS bulk {float(row['ess_bulk']):.0f}, tail {float(row['ess_tail']):.0f} of 50 draws" in text
    assert "not good: " in text


@pytest.mark.slow("a job on two ranks")
def test_the_same_bits_on_two_ranks(setting, tmp_path, mpi):
    path, options, _ = setting
    words = ["learning-coefficient", str(path), *options, *SMALL, "--chains", "3"]
    assert main([*words, "--out", str(tmp_path / "one")]) == 0
    command = mpi.command(2, mpi.forked, "-m", "mpi4py", "-m", "lsam_hpc", *words, "--out", str(tmp_path / "two"))
    done = run(command, timeout=120, PYTHONPATH=str(path.parent))
    assert done.returncode == 0, done.stderr
    one, two = ((tmp_path / out / "learning-coefficient.csv").read_bytes() for out in ("one", "two"))
    assert one == two
