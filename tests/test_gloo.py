"""The helper that runs a function on ranks of torch.distributed reports which rank failed or hung."""

import time

import pytest
from torch import distributed

from tests.helpers import gloo


def hang(folder):
    while distributed.get_rank() == 1:
        time.sleep(0.01)


def fail(folder):
    assert distributed.get_rank() == 0, "the failing rank"
    distributed.barrier()


def test_a_rank_that_hangs_is_named(tmp_path):
    with pytest.raises(AssertionError, match=r"(?s)hang on 2 ranks.*rank 1 ended with.*line 13 in hang"):
        gloo.run(hang, tmp_path, limit=3)


def test_a_rank_that_fails_is_named_although_the_other_waits_for_it(tmp_path):
    with pytest.raises(AssertionError, match=r"(?s)fail on 2 ranks.*rank 1 ended with 1:.*the failing rank"):
        gloo.run(fail, tmp_path)
