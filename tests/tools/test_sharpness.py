"""`lsam sharpness` on a small model and run: files, numbers, and one line per input error."""

import json

import h5py
import numpy as np

from lsam_hpc.cli import main
from lsam_hpc.landscape.curvature.sharpness import RHOS, sharpness
from lsam_hpc.landscape.objective import Objective
from tests.helpers.small_model import read, setting

__all__ = ["setting"]  # a fixture


def test_sharpness(setting, tmp_path, capsys):
    path, options, states = setting
    words = ["--at", "center,1@0", "--steps", "5", "--m", "15", "--double", "--out", str(tmp_path)]
    assert main(["sharpness", str(path), *options, *words]) == 0
    assert capsys.readouterr().out.splitlines()[0].split() == [
        "state",
        "case",
        "norm",
        "rho",
        "sharpness",
        "standard_error",
        "loss",
    ]
    rows = read(tmp_path / "sharpness.csv")
    assert len(rows) == 2 * 4 * 4
    import spectrum_model

    f = Objective(spectrum_model.model().double(), [(x.double(), y) for x, y in spectrum_model.loader()])
    x = f.vector(states[1, 0])
    for case, norm in (("worst", "linf"), ("average", "l2")):
        chosen = [row for row in rows if (row["state"], row["case"], row["norm"]) == ("1@0", case, norm)]
        assert tuple(float(row["rho"]) for row in chosen) == RHOS[case, norm, True]
        expected = [sharpness(f, x, rho, case, norm, m=15, steps=5).value for rho in RHOS[case, norm, True]]
        np.testing.assert_allclose([float(row["sharpness"]) for row in chosen], expected, rtol=1e-9)
    with h5py.File(tmp_path / "sharpness.h5") as file:
        assert len(file["rho"]) == len(rows)
        assert json.loads(file.attrs["lsam_hpc"])["m"] == 15
    assert (tmp_path / "sharpness.png").stat().st_size > 1000
    for more, message in (
        (["--case", "best"], "--case: expected some of average, worst, found 'best'"),
        (["--norm", "l1"], "--norm: expected some of l2, linf, found 'l1'"),
        (["--rho", "a"], "--rho: expected numbers as in 0.001,0.002, found 'a'"),
        (["--rho", "0"], "--rho: expected numbers > 0, found [0.0]"),
        (["--m", "0"], "--m: expected 1 or more, found 0"),
    ):
        assert main(["sharpness", str(path), *options, *more, "--out", str(tmp_path / "out")]) == 2
        assert f"lsam sharpness: {message}\n" == capsys.readouterr().err
