"""Options from flags and files, and what is said of wrong ones."""

import dataclasses
import json

import pytest

from lsam_hpc import InputError
from lsam_hpc.options.recipes import RECIPES
from lsam_hpc.options.schedules import late
from lsam_hpc.train.builders import make_dataset, make_model, sampler_options, synchronous_steps
from lsam_hpc.train.config import TrainConfig, parse


def test_defaults_are_valid_and_flags_change_them():
    assert parse([]) == TrainConfig()
    config = parse(["--rho", "0.2", "--period", "8", "--overwrite", "--pull", "0.5", "--out", "here"])
    assert config == dataclasses.replace(TrainConfig(), rho=0.2, period=8, overwrite=True, pull=0.5, out="here")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("o.toml", 'rho = 0.2\nperiod = 8\noverwrite = true\ncoupling = "kernel"\nbatch-size = 16\n'),
        ("o.yaml", "rho: 0.2\nperiod: 8\noverwrite: true\ncoupling: kernel\nbatch_size: 16\nlr: 1e-1\n"),
    ],
)
def test_flags_win_over_a_file_and_a_file_over_defaults(tmp_path, name, text):
    file = tmp_path / name
    file.write_text(text)
    config = parse(["--config", str(file), "--period", "2"])
    assert config == dataclasses.replace(
        TrainConfig(), rho=0.2, period=2, overwrite=True, coupling="kernel", batch_size=16
    )


def test_a_file_and_flags_win_over_a_recipe(tmp_path):
    recipe = parse(["--recipe", "large-batch"])
    assert recipe == dataclasses.replace(TrainConfig(), **RECIPES["large-batch"])
    file = tmp_path / "o.toml"
    file.write_text("period = 8\nmomentum = 0.9\n")
    config = parse(["--recipe", "large-batch", "--config", str(file), "--period", "2"])
    assert config == dataclasses.replace(recipe, period=2, momentum=0.9)
    assert parse(["--recipe", "large-batch", "--synchronous"]).synchronous_start == 0
    with pytest.raises(InputError, match=r"^--recipe: expected one of large-batch, found small$"):
        parse(["--recipe", "small"])


def test_a_run_s_own_config_can_be_used_again(tmp_path):
    file = tmp_path / "config.json"
    file.write_text(json.dumps(dataclasses.asdict(TrainConfig(rho=0.3))))
    assert parse(["--config", str(file)]) == TrainConfig(rho=0.3)


def test_a_flag_wins_over_the_file_s_other_way_to_say_how_long(tmp_path):
    (tmp_path / "o.toml").write_text("steps = 12")
    assert parse(["--config", str(tmp_path / "o.toml"), "--epochs", "2"]).steps is None
    (tmp_path / "o.toml").write_text("epochs = 12")
    assert parse(["--config", str(tmp_path / "o.toml"), "--steps", "2"]).steps == 2


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--rhoo", "1"], "--rhoo: expected a known option such as --rho, found an unknown one"),
        (["--zzz"], "--zzz: expected a known option, found an unknown one"),
        (
            ["--data", "imagenet"],
            "--data: expected one of digits, mnist, fashion-mnist, cifar10, cifar100, svhn, folder, text or "
            "MODULE:FUNCTION, found 'imagenet'",
        ),
        (
            ["--model", "bert"],
            "--model: expected one of mlp, cnn, cnn-tiny, resnet18, wrn16-8, vgg16, vit, gpt-tiny, gpt-small or "
            "MODULE:FUNCTION, found 'bert'",
        ),
        (["--subset", "0"], "--subset: expected a whole number >= 1, found 0"),
        (["--validation", "-1"], "--validation: expected a whole number >= 0, found -1"),
        (["--label-noise", "1.5"], "--label-noise: expected a number from 0 to 1, found 1.5"),
        (["--label-noise", "nan"], "--label-noise: expected a number from 0 to 1, found nan"),
        (["--augment", "all"], "--augment: expected one of none, standard, found 'all'"),
        (["--cutout", "-1"], "--cutout: expected a whole number >= 0, found -1"),
        (["--data-seed", "-1"], "--data-seed: expected a whole number >= 0, found -1"),
        (["--rho", "-0.1"], "--rho: expected a finite number >= 0, found -0.1"),
        (["--rho", "nan"], "--rho: expected a finite number >= 0, found nan"),
        (["--rho", "large"], "--rho: invalid float value: 'large'"),
        (["--period", "0"], "--period: expected a whole number of steps >= 1, found 0"),
        (["--period", "1.5"], "--period: invalid int value: '1.5'"),
        (["--batch-size", "0"], "--batch-size: expected a whole number >= 1, found 0"),
        (["--epochs", "0"], "--epochs: expected a finite number > 0, found 0.0"),
        (["--steps", "0"], "--steps: expected a whole number >= 1, found 0"),
        (
            ["--seed", "99999999999999999999"],
            "--seed: expected a whole number >= 0 and < 2147483648, found 99999999999999999999",
        ),
        (["--steps", "5", "--epochs", "1"], "--steps and --epochs exclude each other"),
        (["--warmup", "1"], "--warmup: expected a number >= 0 and < 1, found 1.0"),
        (["--pull", "-1"], "--pull: expected a finite number >= 0, found -1.0"),
        (["--sketch-every", "-1"], "--sketch-every: expected a whole number >= 0, found -1"),
        (["--sketch-buckets", "0"], "--sketch-buckets: expected a whole number >= 1, found 0"),
        (
            ["--sketch-states", "sample,centre"],
            "--sketch-states: expected states of sample, center, perturbation, found centre",
        ),
        (["--snapshot-every", "0"], "--snapshot-every: expected a number of steps >= 1, log or none, found '0'"),
        (
            ["--snapshot-every", "often"],
            "--snapshot-every: expected a number of steps >= 1, log or none, found 'often'",
        ),
        (["--snapshot-dtype", "int8"], "--snapshot-dtype: expected one of float32, bfloat16, found 'int8'"),
        (["--flush-seconds", "0"], "--flush-seconds: expected a finite number of seconds > 0, found 0.0"),
        (["--coupling", "loose"], "--coupling: expected one of elastic, kernel, restart, found 'loose'"),
        (["--center-momentum", "1"], "--center-momentum: expected a number >= 0 and < 1, found 1.0"),
        (["--selection-fraction", "0"], "--selection-fraction: expected a number > 0 and <= 1, found 0.0"),
        (["--adversarial-epsilon", "-1"], "--adversarial-epsilon: expected a finite number >= 0, found -1.0"),
        (["--selection", "esam", "--ascent", "msam"], "--ascent: expected sam with --selection esam, found msam"),
        (
            ["--selection", "ausam", "--adversarial", "conadv"],
            "--adversarial: expected none with --selection ausam, found conadv",
        ),
        (
            ["--selection", "esam", "--stragglers", "0:2"],
            "--stragglers: expected none with --selection esam, found 0:2",
        ),
        (["--selection", "esam", "--rho", "0"], "--rho: expected > 0 with --selection esam, found 0.0"),
        (["--synchronous-start", "1.5"], "--synchronous-start: expected a number from 0 to 1, found 1.5"),
        (
            ["--synchronous-start", "0.1", "--topology", "leader"],
            "--synchronous-start: expected 0 with the topology leader, found 0.1",
        ),
        (
            ["--synchronous-start", "0.1", "--ascent", "sampa"],
            "--synchronous-start: expected 0 with the ascent sampa, found 0.1",
        ),
        (["--synchronous-start", "0.1", "--synchronous"], "--synchronous and --synchronous-start exclude each other"),
        (["--data", "cifar10"], "--data-dir: expected the directory of cifar10's files, found none"),
        (
            ["--config", "/no/such.toml"],
            "--config: expected a readable file, found /no/such.toml: No such file or directory",
        ),
    ],
)
def test_says_what_is_wrong_in_one_line(argv, message):
    with pytest.raises(InputError) as caught:
        parse(argv)
    assert str(caught.value) == message


def test_a_file_that_is_no_text(tmp_path):
    (tmp_path / "o.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match=r"o.toml: expected UTF-8 text, found: "):
        parse(["--config", str(tmp_path / "o.toml")])


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("o.toml", "roh = 1", "o.toml: roh: expected a known option such as rho, found an unknown one"),
        ("o.toml", "rho = [1]", "o.toml: rho: expected float, found [1]"),
        ("o.toml", 'overwrite = "yes"', "o.toml: overwrite: expected bool, found 'yes'"),
        ("o.toml", "period = 1.5", "o.toml: period: expected int, found 1.5"),
        ("o.toml", "period = true", "o.toml: period: expected int, found True"),
        ("o.toml", "period = inf", "o.toml: period: expected int, found inf"),
        ("o.toml", "steps = 3\nepochs = 2", "--steps and --epochs exclude each other"),
        ("o.toml", "rho =", "o.toml: expected TOML, found: "),
        ("o.yaml", "- 1\n- 2", "o.yaml: expected options and their values, found list"),
        ("o.yaml", "a: [", "o.yaml: expected YAML, found: "),
        ("o.yaml", "rho: -1", "--rho: expected a finite number >= 0, found -1.0"),
    ],
)
def test_says_what_is_wrong_in_a_file(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError) as caught:
        parse(["--config", str(tmp_path / name)])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_synchronous_start_is_a_part_of_the_steps_shared_by_the_chains():
    config = parse(["--steps", "121", "--synchronous-start", "0.5"])
    dataset = make_dataset(config)
    assert [synchronous_steps(config, dataset, chains) for chains in (1, 2, 8)] == [61, 31, 8]
    assert synchronous_steps(parse(["--steps", "121"]), dataset, 2) == 0


def test_late_sam_takes_one_pass_until_its_part_of_the_steps():
    config = parse(["--steps", "40", "--rho-from", "0.85", "--rho", "0.25"])
    dataset = make_dataset(config)
    rho = sampler_options(config, make_model(config, dataset), dataset, 1)["rho"]
    assert [rho(step) for step in (0, 33, 34, 39)] == [0.0, 0.0, 0.25, 0.25]
    assert late(lambda step: 2.0 * step, 3)(5) == 10.0
    with pytest.raises(InputError, match=r"^--rho-from: expected 0\.0 with --selection esam, found 0\.5$"):
        parse(["--selection", "esam", "--rho-from", "0.5"])
