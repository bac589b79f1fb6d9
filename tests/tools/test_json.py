"""`--json`: one valid document with the numbers of the files, exactly, and nothing else on stdout, of every verb."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest

from lsam_hpc import cli
from lsam_hpc.shell import words
from lsam_hpc.util.document import document
from tests.helpers.landscapes import WORDS, write_run
from tests.helpers.logs import make_run

# Verbs that print no numbers, but paths, scripts and texts; `train` prints its result, and `inspect` reads it.
WITHOUT = {*("train", "wrap", "submit", "help", "completion", "merge", "export", "redraw", "timeline", "report")}


def strict(text: str) -> object:
    """Return a JSON document that holds neither NaN nor infinity."""

    def refuse(name: str) -> None:
        raise AssertionError(name)

    return json.loads(text, parse_constant=refuse)


def test_every_verb_that_prints_numbers_has_the_option() -> None:
    for verb in words.verbs():
        flags = {flag for option in verb.options for flag in option.flags}
        assert ("--json" in flags) == (verb.name not in WITHOUT), verb.name


def test_documents() -> None:
    value = {"a": np.float32(0.1), "b": [math.nan, math.inf, 1e-300], 3: (Path("x"), None, True), "c": np.arange(2)}
    known = {"a": float(np.float32(0.1)), "b": [None, None, 1e-300], "3": ["x", None, True], "c": [0, 1]}
    assert strict(document(value)) == known


def printed(capsys: pytest.CaptureFixture[str], *argv: str) -> object:
    assert cli.main(argv) == 0
    return strict(capsys.readouterr().out)


def test_the_monitor_prints_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = make_run(tmp_path / "run", ranks=3, rows=1)
    found = printed(capsys, "monitor", str(path), "--json")
    assert [(rank["rank"], rank["step"], rank["loss"], rank["rate"]) for rank in found["ranks"]] == [
        (rank, 1, 0.0, None) for rank in range(3)
    ]
    assert printed(capsys, "inspect", str(path), "--json")["problems"] == []


def check(found: dict[str, list[dict[str, object]]]) -> None:
    """Check that each table is that of its file, to the last bit; an empty cell is a number that is not known."""
    assert found
    for path, rows in found.items():
        with Path(path).open(newline="") as file:
            known = list(csv.DictReader(file))
        assert len(rows) == len(known)
        for row, cells in zip(rows, known, strict=True):
            assert list(row) == list(cells)
            for name, value in row.items():
                if isinstance(value, float):
                    assert value == float(cells[name]), (path, name)
                elif value is None:
                    assert cells[name] in ("", "inf", "-inf"), (path, name)
                else:
                    assert str(value) == cells[name], (path, name)


FAST = {"surface": ("--x=-1:1:5", "--name", "plane"), "basins": ()}
SLOW = {
    "sharpness": ("--case", "average", "--norm", "l2"),
    "outliers": ("--count", "2"),
    "path": ("--points", "3"),
    "spectrum": ("--kinds", "eigenvalues,trace", "--eigenvalues", "2"),
    "trajectory": (),
    "learning-coefficient": ("--chains", "2", "--draws", "100", "--warmup", "50"),
}


def of_verbs(path: Path, capsys: pytest.CaptureFixture[str], verbs: dict[str, tuple[str, ...]]) -> None:
    for verb, options in verbs.items():
        quiet = () if verb == "basins" else ("--quiet",)
        where = [str(path / "figures" / "plane.h5")] if verb == "basins" else [str(path), *WORDS]
        assert cli.main([verb, *where, *options, *quiet, "--json"]) == 0
        out, err = capsys.readouterr()
        assert not quiet or err == ""
        check(strict(out))


def test_the_tables_are_those_of_the_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    of_verbs(write_run(tmp_path / "run"), capsys, FAST)


@pytest.mark.slow("programs that compute")
def test_the_tables_of_the_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_run(tmp_path / "run", states=60, sketches=True)
    of_verbs(path, capsys, SLOW)
    for verb, options in (("diagnose", ()), ("predict", WORDS)):
        assert isinstance(printed(capsys, verb, str(path), *options, "--json"), dict)
    other = write_run(tmp_path / "other")
    found = printed(
        capsys,
        "sharpness",
        str(path),
        str(other),
        *WORDS,
        "--case",
        "average",
        "--out",
        str(tmp_path / "both"),
        "--json",
    )
    check(found)
    assert any("compare-sharpness" in file for file in found)


def test_simulate_prints_what_it_would_write(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("simulate", "--ranks", "2", "--steps", "50", "--node-mtbf-hours", "inf")
    found = printed(capsys, *options, "--json")
    assert cli.main([*options, "--json", str(tmp_path / "out.json")]) == 0
    assert "steps/s of all ranks" in capsys.readouterr().out
    assert found == strict((tmp_path / "out.json").read_text())
    assert found["LSAM"]["ranks"] == 2


def test_an_error_prints_no_document(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["surface", str(tmp_path / "none"), "--json"]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
