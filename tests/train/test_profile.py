"""`--profile`: which steps it names."""

import pytest

from lsam_hpc import InputError
from lsam_hpc.train.config import parse
from lsam_hpc.train.profile import profiled


def test_steps_that_are_named():
    assert profiled("10:20") == range(10, 20)
    assert not profiled("none")


@pytest.mark.parametrize("text", ["20:10", "10", "10:10", "a:b", "-1:3", "1:2:3", ""])
def test_bad_steps(text):
    with pytest.raises(InputError) as caught:
        parse([f"--profile={text}"])
    assert str(caught.value) == f"--profile: expected FIRST:END, steps as in 10:20, or none, found {text!r}"
