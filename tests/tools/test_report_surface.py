"""The surface of `lsam report`: a stored one of the same states and data is used, any other is computed again."""

import shutil
import sys

import h5py
import numpy as np
import pytest

from lsam_hpc import cli
from lsam_hpc.landscape.geometry import surface
from lsam_hpc.landscape.geometry.tracks import from_snapshots
from lsam_hpc.tools.report import arguments
from lsam_hpc.tools.report_surface import background
from lsam_hpc.trajectory import Run
from tests.helpers.landscapes import MODULE, WORDS, write_run


def made(path, *words):
    """Return the surface for the page of a run, and the text beside it."""
    run = Run(path)
    return background(arguments([str(path), *words]), run, from_snapshots(run))


@pytest.fixture
def scans(monkeypatch):
    """Count the surfaces that are computed."""
    computed, scan = [], surface.scan

    def counted(*words, **more):
        computed.append(words)
        return scan(*words, **more)

    monkeypatch.setattr(surface, "scan", counted)
    return computed


def test_a_stored_surface_of_the_same_states_and_data_is_not_computed_again(tmp_path, scans, capsys, monkeypatch):
    path = write_run(tmp_path / "run")
    assert cli.main(["trajectory", str(path), "--surface", "6", "--losses", *WORDS]) == 0
    found, text = made(path, *WORDS)
    assert (found.where, text, len(scans)) == ("figures/trajectory.h5", "", 1)
    assert "trajectory.h5: its surface is of the same states and data, and is not computed" in capsys.readouterr().err
    with h5py.File(path / "figures" / "trajectory.h5") as file:
        np.testing.assert_array_equal(found.surface.values["loss"], file["surface/loss"][()])
        np.testing.assert_array_equal(np.concatenate([found.losses[rank].true for rank in (0, 1)]), file["loss"][()])
    # Another number of points, and then the report's own file.
    first, _ = made(path, "--surface", "5", *WORDS)
    again, _ = made(path, "--surface", "5", *WORDS)
    assert (first.where, again.where, len(scans)) == ("", "figures/report-surface.h5", 2)
    np.testing.assert_array_equal(first.surface.values["loss"], again.surface.values["loss"])
    assert made(path, *WORDS)[0].where == "figures/trajectory.h5"  # the finer one, with losses
    # The data are not there, and then no torch: it is used, and the page says that it is not checked.
    for why in ("--data: expected ", "expected the package torch, found none"):
        found, text = made(path, "--quiet")
        assert found.where.startswith("figures/")
        assert text.startswith(f"The surface was stored, and is not checked: {why}")
        assert made(path, "--images", "7", "--quiet")[0] is None  # none of the stored ones is of 7 samples
        monkeypatch.setitem(sys.modules, "torch", None)
    assert len(scans) == 2


@pytest.mark.parametrize(
    "other", ["images", "data", "loss", "states", "values", "damaged", "plane", "narrow", "precision"]
)
def test_a_stored_surface_of_something_else_is_computed_again(tmp_path, scans, capsys, other):
    path = write_run(tmp_path / "run")
    made(path, "--surface", "4", *WORDS)
    words, file = list(WORDS), path / "figures" / "report-surface.h5"
    if other == "images":
        words += ["--images", "20"]
    elif other == "data":
        words[words.index(f"{MODULE}:images")] = f"{MODULE}:other_images"
    elif other == "loss":
        words += ["--loss", f"{MODULE}:wrong"]
    elif other == "precision":
        words.append("--double")
    elif other == "states":
        path = write_run(tmp_path / "longer", states=7)
        (path / "figures").mkdir()
        shutil.copy(file, path / "figures")
    elif other == "damaged":
        file.write_bytes(file.read_bytes()[:1500])
    else:
        with h5py.File(file, "r+") as opened:
            if other == "values":  # as after a change of the model's code
                opened["surface/loss"][...] *= 1.5
            elif other == "plane":
                opened["off_plane"][...] += 0.1
            else:
                x = opened["surface/x"][()]
                opened["surface/x"][...] = x[2] + 0.5 * (x - x[2])  # the point whose loss is compared stays
    capsys.readouterr()
    found, text = made(path, *words)
    assert (found.where, text, len(scans)) == ("", "", 2)
    assert ("report-surface.h5: expected a readable HDF5 file" in capsys.readouterr().err) == (other == "damaged")
