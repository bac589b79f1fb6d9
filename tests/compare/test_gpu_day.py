"""The script gpu-day.sh: its plan, its page, what it refuses, and a rehearsal on the CPU."""

import csv
import importlib
import json
import math
import os
import stat
import subprocess
import sys
import zipfile

import pytest

from lsam_hpc.errors import InputError
from tests.helpers.mpis import ROOT, available, environment

FOLDER = ROOT / "jobs" / "experiments"
MODULES = ("gpu_day_page", "gpu_day_state", "gpu_day")


@pytest.fixture
def day(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    for name in MODULES:
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield importlib.import_module("gpu_day")
    for name in MODULES:
        sys.modules.pop(name, None)


def options(rehearse=True):
    return {"data": "digits", "images": 1348, "ranks": 2, "rehearse": rehearse}


PACE = {"sam-one": 1.0, "sam": 3.0, "lsam": 2.0}  # s per epoch
STEPS = {"sam-one": 100, "sam": 100, "lsam": 200}  # per epoch, of all chains


class Trainings:
    """Imitates run_cell: trainings take a second more than their steps."""

    def __init__(self, day, monkeypatch, cut_at=math.inf):
        self.cells, self.cut_at, self.clock = [], cut_at, 0.0
        monkeypatch.setattr(day, "run_cell", self)
        monkeypatch.setattr(day, "exchanges", lambda _: {"exchange_seconds": 0.6, "exchange_blocked": 0.12})
        monkeypatch.setattr(day.time, "monotonic", lambda: self.clock)

    def __call__(self, cell, suite, folder, start, seconds):
        if len(self.cells) == self.cut_at:
            raise KeyboardInterrupt
        self.cells.append(cell)
        pace, steps = PACE[cell.method], STEPS[cell.method]
        total = cell.options["steps"] if "steps" in cell.options else steps * cell.options["epochs"]
        result = {
            "center_test_error": 20.0 - len(self.cells),
            "seconds": pace * total / steps,
            "total_steps": total,
            "images_per_second": total * cell.options["batch_size"] * (1 if cell.method == "lsam" else cell.ranks),
            "staleness_mean": 1.0,
        }
        result["images_per_second"] /= result["seconds"]
        self.clock += result["seconds"] + 1.0
        return result, []


def suite(day):
    return day.suite_of("digits", None, 2, rehearse=False)


def test_the_epochs_are_those_that_fit(day):
    pilots = {"sam-one": {"epoch": 1.0, "else": 5.0}, "sam": {"epoch": 3.0, "else": 6.0}}
    pilots["lsam"] = {"epoch": 2.0, "else": 7.0}
    # A seed: (5 + 6 + 7) + 2 * 7 = 32 s, and 1 + 3 + 2 and, for the seconds of SAM and of one rank, 3 + 1 s an epoch.
    assert day.epochs_for(pilots, 2 * (32 + 12 * 10)) == 12  # of two seeds
    assert day.epochs_for(pilots, 32 + 9 * 10 + 9) == 9  # of one: two would get less than ten
    assert day.epochs_for(pilots, 1.0) == 1
    assert day.epochs_for(pilots, 1e9) == day.MOST
    assert day.epochs_for(pilots, 1e9, 2) == 2


def test_lsam_trains_for_as_many_seconds_as_sam(day, monkeypatch, tmp_path):
    done, kept = Trainings(day, monkeypatch), day.Day(tmp_path, options())
    assert day.pilots(kept, day.Clock(10.0), suite(day))
    kept.state["epochs"] = 4
    day.trainings(kept, day.Clock(1.2), suite(day))
    names = [(cell.method, cell.budget, cell.seed, cell.ranks) for cell in done.cells[3:]]
    assert names[:5] == [
        ("sam-one", "samples", 0, 1),
        ("sam", "samples", 0, 2),
        ("lsam", "samples", 0, 2),
        ("lsam", "seconds-of-sam", 0, 2),
        ("lsam", "seconds-of-sam-one", 0, 2),
    ]
    assert [cell.options["batch_size"] for cell in done.cells[3:6]] == [512, 256, 256]
    steps = [record["result"]["total_steps"] for record in kept.state["records"]]
    assert steps[:5] == [400, 400, 800, 1200, 400]
    seconds = [record["result"]["seconds"] for record in kept.state["records"]]
    assert seconds[3:5] == [seconds[1], seconds[0]]
    assert names[5][2] == 1  # the next seed began
    assert done.clock <= 3 * 2 + 6 + 1.2 * 60 - 5  # and nothing that did not fit


def test_a_cut_day_goes_on_where_it_stopped(day, monkeypatch, tmp_path):
    whole = Trainings(day, monkeypatch)
    day.trainings(day.Day(tmp_path / "whole", options()), day.Clock(1.0), suite(day))
    both = []
    for cut_at in (0, 2, 5, math.inf):
        part = Trainings(day, monkeypatch, cut_at)
        try:
            day.trainings(day.Day(tmp_path / "cut", options()), day.Clock(1.0), suite(day))
        except KeyboardInterrupt:
            assert len(part.cells) == cut_at
        both += part.cells
    names = [cell.name for cell in both]
    assert len(set(names)) == len(names)  # none twice
    assert names[: len(whole.cells)] == [cell.name for cell in whole.cells]
    written = json.loads((tmp_path / "cut" / "gpu-day.json").read_text())
    assert [record["cell"]["method"] for record in written["records"]] == [cell.method for cell in both[3:]]


def test_the_page_shows_ratios(day, monkeypatch, tmp_path):
    Trainings(day, monkeypatch)
    kept = day.Day(tmp_path, options())
    kept.state["machines"].append({"gpu": "a GPU", "driver": "1.2"})
    kept.state["parts"]["tests"] = {"result": "5 passed", "seconds": 3.0}
    day.trainings(kept, day.Clock(1.0), day.replace(suite(day), seeds=(0,)))
    assert kept.state["epochs"] == 2  # 45 s are left after the pilots: 2 * (3 + 2) + 10 each; one seed, at most 2
    text = (tmp_path / "gpu-day.md").read_text()
    assert "rehearsal: the numbers mean nothing" in text
    assert "driver: 1.2" in text
    assert "digits (1,348 images), 2 ranks, 2 epochs" in text
    assert "5 passed (3 s)" in text
    rows = [line for line in text.splitlines() if line.startswith(("| SAM", "| LSAM"))]
    # error of the trainings 4 to 8; seconds 2, 6, 4, 6, 2; samples alike where epochs are
    assert rows == [
        "| SAM, one rank with all images | 1 | 1 | 16.00 | 1.07 | 0.333 | 1 | 3 | 10 |  |  |",
        "| SAM, data parallel | 2 | 1 | 15.00 | 1 | 1 | 1 | 1 | 30 |  |  |",
        "| LSAM | 2 | 1 | 14.00 | 0.933 | 0.667 | 1 | 1.5 | 20 | 7.5 | 1.5 |",
        "| SAM, data parallel | 2 | 1 | 15.00 | 1 | 1 | 1 | 1 | 30 |  |  |",
        "| LSAM | 2 | 1 | 13.00 | 0.867 | 1 | 1.5 | 1.5 | 20 | 5 | 1 |",
        "| SAM, one rank with all images | 1 | 1 | 16.00 | 1 | 1 | 1 | 1 | 10 |  |  |",
        "| LSAM | 2 | 1 | 12.00 | 0.75 | 1 | 0.5 | 0.5 | 20 | 15 | 3 |",
    ]
    table = list(csv.DictReader((tmp_path / "gpu-day.csv").open()))
    errors = [row["value"] for row in table if row["quantity"] == "center_test_error"]
    assert errors == ["16", "15", "14", "13", "12"]
    assert {row["part"] for row in table} == {"machine", "tests", "pilot", "training"}


def test_the_driver_is_read_from_nvidia_smi(day, monkeypatch, tmp_path):
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho '580.1, 143771 MiB'\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("CUDA_MPS_PIPE_DIRECTORY", str(tmp_path))
    about = day.page.machine()
    assert (about["driver"], about["gpu memory"], about["mps"]) == ("580.1", "143771 MiB", "off")
    (tmp_path / "control").touch()
    assert day.page.machine()["mps"] == "on"


def error_line(day, capsys, *words):
    assert day.main([str(word) for word in words]) == 2
    line = capsys.readouterr().err
    assert line.startswith("gpu-day: ")
    assert line.count("\n") == 1
    return line


def test_bad_input_is_one_line(day, capsys, tmp_path):
    out, foreign = tmp_path / "out", tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "notes.txt").touch()
    assert "OUT" in error_line(day, capsys, "digits")
    assert "a GPU that torch can use, or --rehearse, found none" in error_line(day, capsys, "digits", out)
    line = error_line(day, capsys, tmp_path, out, "--rehearse")
    assert "DATA: expected a folder with the files of cifar10 or fashion-mnist" in line
    assert "--minutes" in error_line(day, capsys, "digits", out, "--rehearse", "--minutes", "0")
    assert "one of this script" in error_line(day, capsys, "digits", foreign, "--rehearse")
    assert "notes.txt" in error_line(day, capsys, "digits", foreign / "notes.txt", "--rehearse")
    assert not out.exists()
    (foreign / "gpu-day.json").write_text("[]")
    assert "what this script has written" in error_line(day, capsys, "digits", foreign, "--rehearse")
    day.Day(out, options(rehearse=False)).save()
    line = error_line(day, capsys, "digits", out, "--rehearse")
    assert "data=digits images=1348 ranks=2 rehearse=False, found data=digits images=1348 ranks=2 rehearse=True" in line


def test_ranks_divide_the_images(day, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(day, "kind_of", lambda _: "cuda")
    for ranks in (1, 3):
        assert "--ranks: expected 2, 4, 8" in error_line(day, capsys, "digits", tmp_path, "--ranks", ranks)


def test_the_trainings_are_those_of_the_issue(day):
    cell = day.cells_of(day.suite_of("cifar10", "/data", 4, rehearse=False), 3, 7)["lsam"]
    expected = {"model": "resnet18", "precision": "bf16", "channels_last": True, "device": "cuda", "epochs": 7}
    assert cell.options.items() >= {**expected, "data": "cifar10", "data_dir": "/data", "batch_size": 128}.items()
    with pytest.raises(InputError, match="DATA"):
        day.data_of("digits", rehearse=False)


def script(*words, **env):
    return subprocess.run(
        ["bash", str(FOLDER / "gpu-day.sh"), *map(str, words)],
        capture_output=True,
        text=True,
        timeout=800,
        env={**environment(), **env},
        check=False,
    )


def test_missing_packages_are_named_in_one_line(tmp_path):
    bare = tmp_path / "python"  # without site-packages
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -I -S "$@"\n')
    bare.chmod(0o755)
    done = script("digits", tmp_path / "out", "--rehearse", PYTHON=str(bare), PATH="/usr/bin:/bin")
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("lsam-hpc: gpu-day: missing: torch, numpy, mpi4py, ")
    assert "LSAM_WHEELS" in line
    done = script("digits", tmp_path / "out", PYTHON=str(tmp_path / "none"))
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert "found no" in done.stderr
    done = script("digits", tmp_path / "out", PYTHON=sys.executable, LSAM_WHEELS=str(tmp_path))
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert "LSAM_WHEELS: expected a folder of wheels" in done.stderr


@pytest.mark.slow("makes an environment")
def test_wheels_are_used_beside_the_environment_that_has_torch(tmp_path):
    # One that is installed already must not be taken for the wheel: its copy here writes a file when Python starts.
    wheels, info = tmp_path / "wheels", "pytorch_optimizer-99.0.dist-info"
    wheels.mkdir()
    files = {
        "probe.pth": f"import pathlib; pathlib.Path({str(tmp_path / 'used')!r}).touch()\n",
        f"{info}/METADATA": "Metadata-Version: 2.1\nName: pytorch_optimizer\nVersion: 99.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    files[f"{info}/RECORD"] = "".join(f"{name},,\n" for name in [*files, f"{info}/RECORD"])
    with zipfile.ZipFile(wheels / "pytorch_optimizer-99.0-py3-none-any.whl", "w") as wheel:
        for name, text in files.items():
            wheel.writestr(name, text)
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    where = {"PYTHON": sys.executable, "LSAM_WHEELS": str(wheels), "TMPDIR": str(temporary)}
    done = script(tmp_path / "none", tmp_path / "out", "--rehearse", **where)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("gpu-day: DATA: expected a folder")  # torch and the other packages were imported
    assert (tmp_path / "used").exists()
    assert not list(temporary.iterdir())


@pytest.mark.slow("trains and benchmarks with every part of the script")
@pytest.mark.jobs
@pytest.mark.timeout(900)
def test_a_rehearsal_measures_everything(tmp_path):
    python = next(iter(available().values())).forked
    done = script("digits", tmp_path, "--rehearse", "--minutes", "60", PYTHON=python)
    assert done.returncode == 0, done.stderr + (tmp_path / "gpu-day.log").read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f"gpu-day.{end}" for end in ("csv", "json", "log", "md")
    ]
    state = json.loads((tmp_path / "gpu-day.json").read_text())
    assert set(state["parts"]) == {"tests", "exchange", "optimizer", "train"}
    assert "skipped" in state["parts"]["tests"]["result"]  # there is no GPU
    assert [record["cell"]["method"] for record in state["records"]] == ["sam-one", "sam", "lsam", "lsam", "lsam"]
    results = [record["result"] for record in state["records"]]
    assert all(result["center_test_error"] < 89 for result in results)  # 90 by chance
    assert all(result["exchange_seconds"] > 0 for result in results[2:])
    page = (tmp_path / "gpu-day.md").read_text()
    assert page.count("| LSAM |") == 3
    again = script("digits", tmp_path, "--rehearse", "--minutes", "60", PYTHON=python)
    assert again.returncode == 0, again.stderr
    assert json.loads((tmp_path / "gpu-day.json").read_text())["records"] == state["records"]
