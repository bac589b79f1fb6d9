"""Compares the hot paths' instructions with the committed figures: it shows slow-downs without a clock."""

import json

import pytest

from lsam_hpc import InputError
from lsam_hpc.tools import instructions
from lsam_hpc.tools.instructions import FIGURES, count, differences, environment_changes


def test_differences():
    figures = {"a": 1000, "b": 1000, "c": 1000, "gone": 5}
    counts = {"a": 1050, "b": 1100, "c": 900, "new": 7}
    assert differences(counts, figures) == [
        "b: expected 1,000 instructions, found 1,100 (+10.0 %)",
        "c: expected 1,000 instructions, found 900 (-10.0 %)",
        "gone: expected 5, found no count",
        "new: expected no figure, found 7",
    ]
    assert environment_changes({"torch": "2", "numpy": "1"}, {"torch": "2", "numpy": "1"}) == ""
    assert environment_changes({"torch": "2"}, {"torch": "3"}) == "torch: figures for 3, this is 2"


def test_no_valgrind(monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(InputError) as caught:
        count()
    assert str(caught.value) == "valgrind: expected the program on the PATH, found none: bash tests/debian.sh valgrind"


@pytest.mark.slow("runs under valgrind")
def test_hot_paths_match_the_committed_figures():
    figures = json.loads(FIGURES.read_text())
    try:
        current, counts = count()
    except InputError as error:
        if "found none" not in str(error):
            raise
        pytest.skip(str(error))
    assert list(counts) == list(figures["instructions"])
    assert all(n > 1000 for n in counts.values()), counts  # one call from Python takes more than 1,000
    if changes := environment_changes(current, figures["environment"]):
        pytest.skip(f"the figures are of another environment: {changes}")
    lines = differences(counts, figures["instructions"])
    assert not lines, f"{'; '.join(lines)}. If the change is intended: python {instructions.__file__} --write"
