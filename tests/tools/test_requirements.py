"""What the analysis verbs need is checked before they compute: packages, and a folder that can be written."""

import shutil
import subprocess
import sys

import pytest

from lsam_hpc import InputError
from lsam_hpc.cli import main
from lsam_hpc.landscape.objective import Objective
from lsam_hpc.landscape.packages import package
from lsam_hpc.trajectory import RankLog, Run
from lsam_hpc.util.extras import EXTRAS
from tests.helpers.landscapes import WORDS, write_run
from tests.helpers.mpis import ROOT

DRAWS = (
    "diagnose",
    "learning-coefficient",
    "path",
    "predict",
    "report",
    "sharpness",
    "spectrum",
    "surface",
    "trajectory",
)  # write into RUN
OPTIONS = {
    **dict.fromkeys(("learning-coefficient", "outliers", "path", "predict", "report"), WORDS),
    **dict.fromkeys(("sharpness", "spectrum", "surface"), WORDS),
    "trajectory": (*WORDS, "--losses"),
    "diagnose": ("--from", "0"),
}
COMPUTING = {
    Objective: ("__call__", "gradient"),
    Run: ("steps", "exchanges", "sketch", "snapshot"),
    RankLog: ("blocks",),
}
MISSING = [
    *((verb, "matplotlib", "analysis") for verb in DRAWS),
    *((verb, "arviz", "analysis") for verb in ("diagnose", "learning-coefficient")),
    *(("report", name, "analysis") for name in ("arviz", "jinja2", "plotly")),
]


@pytest.fixture
def path(tmp_path):
    return write_run(tmp_path / "run", states=24, sketches=True)


@pytest.fixture
def nothing_computed(monkeypatch):
    """Let every read of a log's rows, and every loss, fail the test."""

    def computed(*_, **__):
        raise AssertionError("computed before the check")

    for owner, names in COMPUTING.items():
        for name in names:
            monkeypatch.setattr(owner, name, computed)


@pytest.mark.usefixtures("nothing_computed")
@pytest.mark.parametrize(("verb", "name", "extra"), MISSING)
def test_a_missing_package_is_named_before_anything_is_computed(path, capsys, monkeypatch, verb, name, extra):
    monkeypatch.setitem(sys.modules, name, None)
    for _ in range(2):  # the first try leaves nothing that changes the second's answer
        assert main([verb, str(path), *OPTIONS[verb]]) == 2
        expected = f"lsam {verb}: expected the package {name}, found none: pip install 'lsam-hpc[{extra}]'\n"
        assert capsys.readouterr().err == expected
    assert not (path / "figures").exists()


def test_the_package_that_another_one_lacks_is_named(tmp_path, monkeypatch):
    (tmp_path / "needs_it.py").write_text("import not_installed_here\n")
    (tmp_path / "needs_pandas.py").write_text("import pandas\n")
    (tmp_path / "broken.py").write_text("raise RuntimeError('built for\\nanother torch')\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, "pandas", None)
    for name, message in (
        (
            "needs_it",
            "spectrum: expected the package not_installed_here, which needs_it needs, found none: pip install "
            "not_installed_here",
        ),
        (
            "needs_pandas",
            "spectrum: expected the package pandas, which needs_pandas needs, found none: pip install "
            "'lsam-hpc[analysis]'",
        ),
        (
            "broken",
            "spectrum: expected the package broken, found one that cannot be imported: RuntimeError: built for "
            "another torch",
        ),
    ):
        with pytest.raises(InputError) as caught:
            package(name, "spectrum")
        assert str(caught.value) == message


@pytest.mark.parametrize("verb", DRAWS)
def test_no_other_package_is_needed(path, monkeypatch, verb):
    needed = {name for other, name, _ in MISSING if other == verb}
    small = {"surface": ("--x=-1:1:2",), "path": ("--points", "3"), "sharpness": ("--steps", "2")}
    small["learning-coefficient"] = ("--draws", "20", "--warmup", "20", "--chains", "1")
    small["spectrum"] = ("--matrix", "ggn", "--steps", "3", "--repeats", "2")
    for name in needed:  # with what these import
        package(name)
    for name in EXTRAS.keys() - needed - {"PIL"}:  # matplotlib needs Pillow to save
        monkeypatch.setitem(sys.modules, name, None)
    assert main([verb, str(path), *OPTIONS[verb], *small.get(verb, ())]) == 0


READ_ONLY = """
import sys
import tests.tools.test_requirements as t
from lsam_hpc.cli import main
for owner, names in t.COMPUTING.items():
    for name in names:
        setattr(owner, name, lambda *_, **__: sys.exit("computed before the check"))
for run in sys.argv[1:]:
    for words in (
        *((verb, run, *t.OPTIONS[verb]) for verb in t.DRAWS),
        ("merge", run, "--index"),
        ("merge", run, f"{run}/merged.h5"),
        ("timeline", run, f"{run}/trace.json"),
        *(("export", run, "--to", form, "--out", f"{run}/export") for form in ("csv", "npz", "li2018")),
    ):
        print(words[0], main(words))
"""


def test_a_read_only_run_directory_is_refused_before_anything_is_computed(tmp_path):
    runs = [write_run(tmp_path / name) for name in ("run", "run-with-figures")]
    (runs[1] / "figures").mkdir()
    mount = f"mount --bind {tmp_path} {tmp_path} && mount -o remount,bind,ro {tmp_path}"
    inside = ["unshare", "-m", "--propagation", "private", "sh", "-ec"]
    if shutil.which("unshare") is None or subprocess.run([*inside, mount], capture_output=True, timeout=60).returncode:
        pytest.skip("no mounts here")
    words = [sys.executable, "-c", READ_ONLY, *map(str, runs)]
    done = subprocess.run(
        [*inside, f'{mount}; exec "$@"', "sh", *words], capture_output=True, text=True, timeout=120, cwd=ROOT
    )
    verbs = 2 * [*DRAWS, "merge", "merge", "timeline", "export", "export", "export"]
    assert done.stdout.splitlines() == [f"{verb} 2" for verb in verbs], done.stderr
    lines = done.stderr.splitlines()
    assert [line.split(":")[0] for line in lines] == [f"lsam {verb}" for verb in verbs], done.stderr
    assert all("Read-only file system" in line for line in lines)
    for verb, line in zip(DRAWS, lines, strict=False):
        folder = runs[0] if verb == "report" else runs[0] / "figures"
        assert line == (
            f"lsam {verb}: {folder}: expected a folder that can be written, found: Read-only file system: "
            "name another in --out"
        )
