"""`--quiet`: nothing on stdout but what --json asks for, and nothing on stderr, of every verb that prints."""

import importlib
import json

import pytest

from lsam_hpc import cli
from lsam_hpc.shell import words
from lsam_hpc.tools.bench.main import OTHERS
from lsam_hpc.util.arguments import parser_of
from tests.helpers.landscapes import WORDS, write_run

WITHOUT = {
    "train": "its lines are the log of a batch job",
    "wrap": "it prints nothing but what the script prints",
    "submit": "it prints the script, or the number of the job",
    "doctor": "its lines are its result",
    "help": "its page is its result",
    "completion": "its script is its result",
    "monitor": "it shows a job",
}
RUN = "{run}"
FAST = {
    "surface": (RUN, *WORDS, "--x=-1:1:3", "--y=-1:1:3", "--name", "plane"),
    "basins": (f"{RUN}/figures/plane.h5",),
    "redraw": (f"{RUN}/figures/plane.h5", "--format", "svg"),
    "inspect": (RUN,),
    "merge": (RUN, f"{RUN}/all.h5"),
    "export": (RUN, "--to", "csv", "--out", f"{RUN}/csv"),
    "timeline": (RUN, f"{RUN}/trace.json"),
    "simulate": ("--ranks", "2", "--steps", "50"),
}
SLOW = {
    "diagnose": (RUN, "--from", "0"),
    "outliers": (RUN, *WORDS, "--count", "2"),
    "sharpness": (RUN, *WORDS, "--case", "average", "--norm", "l2"),
    "path": (RUN, *WORDS, "--points", "3"),
    "spectrum": (RUN, *WORDS, "--kinds", "trace"),
    "trajectory": (RUN,),
    "learning-coefficient": (RUN, *WORDS, "--chains", "1", "--draws", "50", "--warmup", "20"),
    "predict": (RUN, *WORDS, "--from", "0"),
    "report": (RUN, "--surface", "0"),
    "bench": ("log", "--quick", "--repeats", "1"),
}


def quiet_helps(options):
    return {option.help for option in options if "--quiet" in option.flags}


def test_every_verb_that_prints_has_the_option_of_one_owner():
    helps_of = {verb.name: quiet_helps(verb.options) for verb in words.verbs()}
    others = {
        name: quiet_helps(words.verb_of(name, "", parser_of(importlib.import_module(module).main)).options)
        for name, module in OTHERS.items()
    }
    assert {name for name, helps in helps_of.items() if not helps} == set(WITHOUT)
    assert all(others.values())
    assert len(set.union(*helps_of.values(), *others.values())) == 1
    assert set(helps_of) - set(WITHOUT) == set(FAST) | set(SLOW)


def check(path, capsys, verbs):
    for verb, options in verbs.items():
        command = [verb, *(word.format(run=path) for word in options)]
        assert cli.main([*command, "--quiet"]) == 0
        assert capsys.readouterr() == ("", ""), verb


def test_nothing_is_printed(tmp_path, capsys):
    path = write_run(tmp_path / "run", states=24, sketches=True)
    check(path, capsys, FAST)
    for verb, options in {"inspect": (), "surface": (*FAST["surface"][1:], "--overwrite")}.items():
        assert cli.main([verb, str(path), *options, "--quiet", "--json"]) == 0
        out, err = capsys.readouterr()
        assert isinstance(json.loads(out), dict)
        assert err == ""


@pytest.mark.slow("programs that compute")
def test_nothing_is_printed_by_the_others(tmp_path, capsys):
    paths = [write_run(tmp_path / name, states=24, sketches=True) for name in ("run", "other")]
    check(paths[0], capsys, SLOW)
    both = ["predict", *map(str, paths), *WORDS, "--from", "0", "--out", str(tmp_path / "both")]
    assert cli.main([*both, "--overwrite", "--quiet"]) == 0
    assert cli.main(["diagnose", *map(str, paths), "--from", "0", "--out", str(tmp_path / "all"), "--quiet"]) == 0
    assert capsys.readouterr() == ("", "")
