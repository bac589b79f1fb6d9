"""A collective close is not called after an error: the other ranks do not come to it."""

import pytest

from lsam_hpc.rma.collective_context import CollectiveContext


class Counted(CollectiveContext):
    closed = 0

    def close(self):
        self.closed += 1


def test_closes_at_the_end_but_not_after_an_error():
    with Counted() as good:
        assert good.closed == 0
    assert good.closed == 1
    with pytest.raises(ValueError, match="on this rank"), Counted() as bad:
        raise ValueError("on this rank")
    assert bad.closed == 0
