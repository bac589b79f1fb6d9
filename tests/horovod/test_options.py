"""The sources of the drop-in's options and their order."""

import dataclasses
import inspect

import pytest

from lsam_hpc.errors import InputError
from lsam_hpc.horovod.options import Options, resolve
from lsam_hpc.options.ascent import AscentOptions
from lsam_hpc.options.communication import CommunicationOptions
from lsam_hpc.options.coupling import CouplingOptions, StartOptions, StepOptions
from lsam_hpc.options.logging import LoggingOptions
from lsam_hpc.options.training import TrainingOptions
from lsam_hpc.train.config import TrainConfig


def test_keywords_win_over_variables_over_the_file_over_the_defaults(tmp_path):
    file = tmp_path / "options.yaml"
    file.write_text("rho: 0.2\nperiod: 7\npull: 1e-1\n")
    options = resolve({"period": 9}, {"LSAM_CONFIG": str(file), "LSAM_RHO": "0.3", "LSAM_PERIOD": "8", "HOME": "/"})
    assert (options.rho, options.period, options.pull, options.gamma) == (0.3, 9, 0.1, 1e-12)


def test_toml_too(tmp_path):
    file = tmp_path / "options.toml"
    file.write_text('wire-dtype = "bfloat16"\noverlap = false\n')
    options = resolve({}, {"LSAM_CONFIG": str(file)})
    assert (options.wire_dtype, options.overlap) == ("bfloat16", False)


@pytest.mark.parametrize(
    ("keywords", "env", "message"),
    [
        ({}, {"LSAM_RHOO": "1"}, "LSAM_RHOO: expected a known option such as LSAM_RHO, found an unknown one"),
        ({"perod": 1}, {}, "DistributedOptimizer: perod: expected a known option such as period, found an unknown one"),
        ({}, {"LSAM_PERIOD": "often"}, "LSAM_PERIOD: expected int, found 'often'"),
        ({}, {"LSAM_OVERLAP": "maybe"}, "LSAM_OVERLAP: expected bool, found 'maybe'"),
        ({"period": 1.5}, {}, "period: expected int, found 1.5"),
        (
            {"ascent": "sampa"},
            {},
            "ascent: expected auto, sam, dp-sat, msam, center in a Horovod script, found 'sampa'",
        ),
    ],
)
def test_bad_options_are_reported_in_one_line(keywords, env, message):
    with pytest.raises(InputError) as error:
        resolve(keywords, env)
    assert str(error.value) == message


@pytest.mark.parametrize(("word", "value"), [("1", True), ("yes", True), ("Off", False), ("false", False)])
def test_words_for_yes_and_no(word, value):
    assert resolve({}, {"LSAM_EVAL_CENTER": word}).eval_center is value


def test_callables_are_kept():
    assert resolve({"rho": abs}, {}).rho is abs
    assert "abs" in resolve({"rho": abs}, {}).described()["rho"]


def test_every_option_has_one_owner():
    """A second default, help or list of choices can stand nowhere: the fields are inherited."""
    concerns = (AscentOptions, CouplingOptions, StepOptions, CommunicationOptions, LoggingOptions, TrainingOptions)
    names = [field.name for concern in concerns for field in dataclasses.fields(concern)]
    assert len(names) == len(set(names))
    assert {field.name for field in dataclasses.fields(TrainConfig)} == set(names)
    assert not {field.name for field in dataclasses.fields(StartOptions)} & set(names)
    assert inspect.get_annotations(TrainConfig) == {}
    drop_in_only = {
        "ascent",
        "group_ascent",
        "eval_center",
        "save_center",
        "out",
        "overwrite",
    }  # Horovod's scripts have less
    assert set(inspect.get_annotations(Options)) == drop_in_only
