"""Parts of sharded tensors, saved by some number of ranks and loaded by another."""

import pytest
import torch

from lsam_hpc.optim.parts import copied_to_host, is_part, placed, redistributed

KEYS = ("part of a sharded tensor", "dimension", "shape")


def part(tensor, index, count):
    """A rank's part, by the definition: as many ranks as possible have ceil(n / count) of n columns, in order."""
    dimension = tensor.ndim - 1
    n = -(-tensor.shape[dimension] // count)
    return {KEYS[0]: tensor[..., index * n : (index + 1) * n], KEYS[1]: dimension, KEYS[2]: list(tensor.shape)}


def state(index, count, tensors):
    parts = {i: part(tensor, index, count) for i, tensor in enumerate(tensors)}
    return {"opt": {"state": parts, "steps": [torch.tensor(7), None, 3]}, "own": index, "none": None}


@pytest.mark.parametrize("before", [1, 2, 3, 5])
@pytest.mark.parametrize("after", [1, 2, 4, 7])
def test_parts_are_cut_anew(before, after):
    tensors = [torch.arange(float(n)).reshape(2, -1) if n % 2 == 0 else torch.arange(float(n)) for n in range(1, 15)]
    saved = [state(index, before, tensors) for index in range(before)]
    for index in range(after):
        loaded = redistributed(saved, index, after)
        for number, tensor in enumerate(tensors):
            expected, found = part(tensor, index, after), loaded["opt"]["state"][number]
            assert is_part(found)
            assert found["shape"] == expected["shape"]
            assert torch.equal(found[KEYS[0]], expected[KEYS[0]])
        assert loaded["opt"]["steps"] == [torch.tensor(7), None, 3]
        assert loaded["own"] == index % before


def test_a_process_with_the_whole_model_gets_plain_tensors():
    tensors = [torch.randn(5, 3), torch.randn(4)]
    saved = [state(index, 2, tensors) for index in range(2)]
    shared = saved[0]["opt"]["state"][0]
    saved[0]["again"], saved[1]["again"] = shared, saved[1]["opt"]["state"][0]
    loaded = placed(redistributed(saved, 0, 1), None)
    for number, tensor in enumerate(tensors):
        assert torch.equal(loaded["opt"]["state"][number], tensor)
    assert torch.equal(loaded["again"], tensors[0])
    same = {"a": shared, "b": shared}
    both = placed(same, None)
    assert both["a"] is both["b"]


def test_a_copy_holds_twice_what_the_state_holds_twice():
    tensor, part = torch.ones(2), {"a": torch.zeros(1)}
    copy = copied_to_host({"last": tensor, "group": [{"last": tensor}, part], "part": part, "count": 3})
    tensor += 1
    assert copy["last"].tolist() == [1.0, 1.0]
    assert copy["group"][0]["last"] is copy["last"]
    assert copy["group"][1] is copy["part"]
    assert copy["part"] is not part
    assert copy["count"] == 3
