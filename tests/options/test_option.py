"""Options: their ranges, choices and texts, as keywords, flags and in the docs."""

import argparse
import inspect
import math
from dataclasses import dataclass
from typing import Literal

import pytest

from lsam_hpc import SAM, InputError
from lsam_hpc.distributed.lsam import LSAM
from lsam_hpc.options import page
from lsam_hpc.options.command_line import add_flags
from lsam_hpc.options.option import Range, check, choices, fields, kind, option, part
from lsam_hpc.options.schedules import ScalarOrSchedule
from tests.helpers.mpis import ROOT


@dataclass(frozen=True)
class Concern:
    """A concern of the tests."""

    number: float = option(1.0, "a number", Range(least=0))
    schedule: ScalarOrSchedule = option(2.0, "a number or a function", Range(least=0))
    word: Literal["a", "b"] = option("a", "a word")
    count: int | None = option(None, "a count", Range(least=1, whole=True, unit="steps"))
    switch: bool = option(True, "a switch")


@dataclass(frozen=True)
class More(Concern):
    """More of it."""

    more: int = option(3, "more")


@pytest.mark.parametrize(
    ("limits", "inside", "outside", "text"),
    [
        (Range(least=0), [0, 0.5, 1e300], [-1e-9, math.inf, math.nan, True, "1", None], "a finite number >= 0"),
        (Range(above=0, unit="seconds"), [1e-9], [0], "a finite number of seconds > 0"),
        (Range(above=1, infinite=True), [1.1, math.inf], [1, math.nan], "a number > 1"),
        (Range(least=0, most=1), [0, 1], [-0.1, 1.1], "a number from 0 to 1"),
        (Range(least=0, below=1), [0, 0.99], [1], "a number >= 0 and < 1"),
        (Range(least=1, whole=True, unit="steps"), [1, 2.0], [0, 1.5], "a whole number of steps >= 1"),
    ],
)
def test_a_range_says_what_it_holds(limits, inside, outside, text):
    assert str(limits) == text
    assert all(value in limits for value in inside)
    assert not any(value in limits for value in outside)


def test_the_first_wrong_option_is_named():
    check(Concern(count=3, schedule=lambda step: -1.0))
    for wrong, message in (
        ({"number": -1}, "number: expected a finite number >= 0, found -1"),
        ({"word": "c"}, "word: expected one of a, b, found 'c'"),
        ({"count": 0}, "count: expected a whole number of steps >= 1, found 0"),
    ):
        with pytest.raises(InputError) as caught:
            check(Concern(**wrong))
        assert str(caught.value) == message
    with pytest.raises(InputError, match="--number: expected"):
        check(Concern(number=-1), lambda name: f"--{name}")


def test_types_say_what_a_command_line_gives():
    assert [kind(hint) for hint in (float, int | None, ScalarOrSchedule, Literal["a"], bool)] == [
        float,
        int,
        float,
        str,
        bool,
    ]
    assert choices(Literal["a", "b"] | None) == ("a", "b")
    assert choices(float) == ()


def test_flags_of_each_concern_stand_together():
    parser = argparse.ArgumentParser()
    add_flags(parser, More)
    shown = parser.parse_args(["--count", "4", "--no-switch", "--more", "5"])
    assert vars(shown) == {"count": 4, "switch": False, "more": 5}
    text = parser.format_help().partition("a concern of the tests")[2]
    assert text.index("--number") < text.index("more of it") < text.index("--more")
    assert "a number (default: 1.0)" in text
    assert "{a,b}" in text
    assert part(More(count=2), Concern) == Concern(count=2)


@pytest.mark.parametrize(
    ("optimizer", "names"), [(SAM, {"rho", "mask"}), (LSAM, {"rho", "period", "topology", "budget"})]
)
def test_optimizers_take_and_document_their_options(optimizer, names):
    parameters = inspect.signature(optimizer).parameters
    assert names <= set(parameters)
    assert [*parameters][:3] == ["base", "rho", "gamma"]
    for name in names:
        assert f"\n        {name}: " in optimizer.__doc__
    assert "{options}" not in optimizer.__doc__


def test_the_page_of_options_is_up_to_date():
    """If this fails: python -m lsam_hpc.options.page > docs/reference/options.md."""
    assert (ROOT / "docs" / "reference" / "options.md").read_text() == page.page()
    assert all(f"| `{item.name}` |" in page.page() for concern in page.CONCERNS for item in fields(concern))
