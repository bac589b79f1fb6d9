"""The hot paths' instructions against the committed figures: a slow-down that needs no clock to be seen."""

import json

import pytest
from lsam_hpc.tools import instructions
from lsam_hpc.tools.instructions import FIGURES, count, differences, other

from lsam_hpc import InputError


def test_differences_are_told():
    figures = {"a": 1000, "b": 1000, "c": 1000, "gone": 5}
    found = {"a": 1050, "b": 1100, "c": 900, "new": 7}
    assert differences(found, figures) == [
        "b: expected 1,000 instructions, found 1,100 (+10.0 %)",
        "c: expected 1,000 instructions, found 900 (-10.0 %)",
        "gone: expected 5, found no count",
        "new: expected no figure, found 7",
    ]
    assert other({"torch": "2", "numpy": "1"}, {"torch": "2", "numpy": "1"}) == ""
    assert other({"torch": "2"}, {"torch": "3"}) == "torch: figures of 3, here 2"


def test_no_valgrind(monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(InputError) as caught:
        count()
    assert str(caught.value) == "valgrind: expected it for counting (bash tests/debian.sh valgrind), found none"


@pytest.mark.slow("runs under valgrind")
def test_the_hot_paths_take_as_many_instructions_as_before():
    figures = json.loads(FIGURES.read_text())
    try:
        here, found = count()
    except InputError as error:
        if "found none" not in str(error):
            raise
        pytest.skip(str(error))
    assert list(found) == list(figures["instructions"])
    assert all(n > 1000 for n in found.values()), found  # a call from Python alone takes as many
    if unlike := other(here, figures["environment"]):
        pytest.skip(f"the figures are of another environment: {unlike}")
    lines = differences(found, figures["instructions"])
    assert not lines, f"{'; '.join(lines)}. If that is wanted: python {instructions.__file__} --write"
