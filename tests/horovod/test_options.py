"""Where the drop-in's options come from."""

import dataclasses

import pytest

from lsam_hpc import linkoptions, logoptions
from lsam_hpc.errors import InputError
from lsam_hpc.horovod.options import Options, resolve
from lsam_hpc.train.config import TrainConfig

DEFAULTS = {f.name: f.default for f in dataclasses.fields(Options)}


def test_keywords_win_over_variables_over_the_file_over_the_defaults(tmp_path):
    file = tmp_path / "options.yaml"
    file.write_text("rho: 0.2\nperiod: 7\npull: 1e-1\n")
    found = resolve({"period": 9}, {"LSAM_CONFIG": str(file), "LSAM_RHO": "0.3", "LSAM_PERIOD": "8", "HOME": "/"})
    assert (found.rho, found.period, found.pull, found.gamma) == (0.3, 9, 0.1, 1e-12)


def test_toml_too(tmp_path):
    file = tmp_path / "options.toml"
    file.write_text('wire-dtype = "bfloat16"\noverlap = false\n')
    found = resolve({}, {"LSAM_CONFIG": str(file)})
    assert (found.wire_dtype, found.overlap) == ("bfloat16", False)


@pytest.mark.parametrize(
    ("keywords", "env", "message"),
    [
        ({}, {"LSAM_RHOO": "1"}, "LSAM_RHOO: expected a known option such as LSAM_RHO, found an unknown one"),
        ({"perod": 1}, {}, "DistributedOptimizer: perod: expected a known option such as period, found an unknown one"),
        ({}, {"LSAM_PERIOD": "often"}, "LSAM_PERIOD: expected int, found 'often'"),
        ({}, {"LSAM_OVERLAP": "maybe"}, "LSAM_OVERLAP: expected bool, found 'maybe'"),
        ({"period": 1.5}, {}, "period: expected int, found 1.5"),
        ({"ascent": "parallel"}, {}, "ascent: expected auto, exact or stale in a Horovod script, found 'parallel'"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(keywords, env, message):
    with pytest.raises(InputError) as error:
        resolve(keywords, env)
    assert str(error.value) == message


@pytest.mark.parametrize(("word", "value"), [("1", True), ("yes", True), ("Off", False), ("false", False)])
def test_words_for_yes_and_no(word, value):
    assert resolve({}, {"LSAM_EVAL_CENTER": word}).eval_center is value


def test_callables_are_kept():
    assert resolve({"rho": abs}, {}).rho is abs
    assert "abs" in resolve({"rho": abs}, {}).described()["rho"]


def test_the_defaults_are_those_of_the_other_rooms():
    others = {**linkoptions.DEFAULTS, **logoptions.DEFAULTS}
    train = {f.name: f.default for f in dataclasses.fields(TrainConfig)}
    # Horovod averages in groups: the climb is the mean's there, and the way to sum is its own.
    assert set(others) - set(DEFAULTS) == {"group_ascent", "group_reduce", "group_ranks", "group_average"}
    for name in set(DEFAULTS) & set(others):
        assert DEFAULTS[name] == others[name], name
    for name in (set(DEFAULTS) & set(train)) - {"ascent"}:
        assert DEFAULTS[name] == train[name], name
