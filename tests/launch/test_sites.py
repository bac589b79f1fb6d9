"""Files of sites: their options reach the script, flags win, and mistakes are one line."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from lsam_hpc import InputError
from lsam_hpc.launch import site_files, submit
from tests.helpers.mpis import ROOT
from tests.helpers.sites import GOLDEN, script

SITES = ["alps", "aurora", "frontier", "leonardo", "lumi-g", "marenostrum5", "perlmutter", "polaris"]


def test_the_sites_are_those_of_the_issue() -> None:
    assert site_files.known() == SITES
    assert {file.stem for file in GOLDEN.iterdir()} == set(SITES)


@pytest.mark.parametrize("site", SITES)
def test_the_script_of_a_site_is_the_golden_one(site: str) -> None:
    """If this fails, run python -m tests.helpers.sites and check the differences."""
    assert script(site) == (GOLDEN / f"{site}.sh").read_text()


@pytest.mark.parametrize("site", SITES)
def test_every_line_of_a_site_names_its_source(site: str) -> None:
    lines = (ROOT / "jobs" / "sites" / f"{site}.toml").read_text().splitlines()
    sources = {match[1] for line in lines if (match := re.match(r"#   (\w+): \S", line))}
    for line in lines:
        if line and not line.startswith("#") and not re.fullmatch(r"[a-z-]+ = \[|\]", line):
            comment = line.rpartition(" # ")[2]
            assert re.match(r"\w+", comment)[0] in sources, line  # type: ignore[index]


def test_the_sites_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert submit.main(["--site", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == SITES
    assert all("--account" in line for line in lines)


def test_a_site_file(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    site = tmp_path / "site.toml"
    site.write_text(
        'system = "lsf"\nnodes = 2\nranks-per-node = 3\npartition = "q"\nsetup = """\nmodule load a\nb=1\n"""\n'
    )
    assert submit.main(["--dry-run", "--site", str(site), "--nodes", "5", "--", "lsam", "train"]) == 0
    text = capsys.readouterr().out
    assert "#BSUB -n 15" in text  # flags win
    assert "#BSUB -q q" in text
    assert "setup() { # puts python, lsam and MPI on the PATH\n  module load a\n  b=1\n}" in text


def test_flags_win_over_a_site(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--partition", "debug", "--nodes", "2", "--gpus-per-node", "2", "--environment", "A=1"]
    assert submit.main(["--dry-run", "--site", "leonardo", *flags, "--", "lsam", "train"]) == 0
    text = capsys.readouterr().out
    assert "boost_usr_prod" not in text
    for line in ("#SBATCH --partition=debug", "#SBATCH --gres=gpu:2", "#SBATCH --ntasks-per-node=2", "export A=1"):
        assert re.search(rf"(?m)^{line}( |$)", text), line


def test_variables_and_directives_are_added_to_those_of_a_site(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--environment", "MPIR_CVAR_ENABLE_GPU=1", "--directives=-m ae"]
    assert submit.main(["--dry-run", "--site", "aurora", *flags, "--", "lsam", "train"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "#PBS -k doe" in lines
    assert "#PBS -m ae" in lines
    assert "export ZE_FLAT_DEVICE_HIERARCHY=FLAT" in lines
    assert lines.index("export MPIR_CVAR_ENABLE_GPU=0") < lines.index("export MPIR_CVAR_ENABLE_GPU=1")  # it wins


def test_lists_are_lines(tmp_path: Path) -> None:
    (tmp_path / "s.toml").write_text('directives = ["-k doe", "-m n"]\nenvironment = ["A=1"]\nsystem = "pbs"\n')
    job = submit.parse(["--site", str(tmp_path / "s.toml"), "--", "x"])[1]
    assert (job.directives, job.environment) == ("-k doe\n-m n", "A=1")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ndoes = 3", "ndoes: expected a known option such as nodes, found an unknown one"),
        ('nodes = "many"', "nodes: expected int, found 'many'"),
        ("qos = [1]", "qos: expected str, found [1]"),
        ("exclusive = 1", "exclusive: expected bool, found 1"),
        ("nodes = 0", "--nodes: expected 1 or more, found 0"),
        ('system = "slurm"\nqos = "a b"', "--qos: expected what slurm can read, found 'a b'"),
        ('modules = "$(rm)"', "--modules: expected names separated by spaces, found '$(rm)'"),
        ("nodes = ", "expected TOML, found: "),
    ],
)
def test_mistakes_in_a_site_file_are_one_line_that_names_it(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "site.toml"
    file.write_text(text + "\n")
    with pytest.raises(InputError) as error:
        submit.parse(["--system", "slurm", "--site", str(file), "--", "x"])
    assert str(error.value).startswith(f"{file}: {message}")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("summit", "--site: expected list, one of alps, aurora, .*, polaris, or a TOML file, found 'summit'$"),
        ("gone.toml", "--site: expected a readable file, found gone.toml: No such file or directory$"),
    ],
)
def test_an_unknown_site_is_refused(name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        submit.parse(["--site", name, "--", "x"])
