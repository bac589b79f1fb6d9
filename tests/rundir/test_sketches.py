"""Sketches by torch equal those by numpy, and states are logged when they are due."""

import numpy as np
import pytest
import torch

from lsam_hpc import InputError
from lsam_hpc.rundir.sketches import DeviceSketch, SketchLog, StateLog
from lsam_hpc.trajectory import CountSketch, Run, Snapshots, TrajectoryWriter, layer_groups
from tests.helpers.logs import LAYOUT, attributes

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("shapes", [[(3,), (100, 7), ()], [(200_000,)], [(70_000, 3), (5,), (61_000,)]])
def test_sketches_by_torch_equal_those_by_numpy(device, shapes):
    generator = torch.Generator().manual_seed(0)
    layout = [(f"layer{i}.weight", shape) for i, shape in enumerate(shapes)]
    groups = layer_groups(layout, 2)
    sketch = CountSketch(groups[-1].stop, groups, seed=5)
    tensors = [torch.randn(shape, generator=generator) for shape in shapes]
    on_device = DeviceSketch(sketch, device)
    for _ in range(2):  # the second call must not add to the first's sums
        values = on_device(*[t.to(device) for t in tensors])
        # Rounding: sums of about P / buckets terms of size 1, in another order.
        np.testing.assert_allclose(values.cpu(), sketch(*[t.numpy() for t in tensors]), atol=2e-4)
    flat = torch.cat([t.reshape(-1) for t in tensors]).to(device)
    np.testing.assert_allclose(on_device(flat).cpu(), values.cpu(), atol=2e-4)


def test_a_wrong_size_is_an_error():
    with pytest.raises(InputError, match="sketch: expected 10 elements, found 9"):
        DeviceSketch(CountSketch(10), "cpu")(torch.ones(9))


def test_states_are_logged_when_they_are_due(tmp_path):
    sketch = CountSketch(10, buckets=8)
    with TrajectoryWriter(tmp_path, 0, LAYOUT, attributes(), sketch=sketch, snapshots=Snapshots(every=10)) as writer:
        log = StateLog(SketchLog(writer, sketch, ("sample", "center")), writer, every=8)
        for n in range(1, 9):
            x, y = torch.full((10,), float(n), dtype=torch.float64), torch.arange(10.0)
            log.on_states(4 * n, 100 + n, {"sample": x, "center": y, "perturbation": x})
    run = Run(writer.path)
    rows = run.sketch(0)
    np.testing.assert_array_equal(rows["iteration"], [4, 8, 16, 24, 32])
    np.testing.assert_array_equal(rows["version"], [101, 102, 104, 106, 108])
    np.testing.assert_array_equal(rows["values"][1], sketch(np.full(10, 2, np.float32))[0])
    np.testing.assert_array_equal(run.sketch(0, "center")["values"][0], sketch(np.arange(10, dtype=np.float32))[0])
    # The first exchange at or after each multiple of ten.
    np.testing.assert_array_equal(run.snapshots(0)["iteration"], [4, 12, 20, 32])
    np.testing.assert_array_equal(run.snapshot(0, -1), np.full(10, 8))
    np.testing.assert_array_equal(run.snapshot(0, 0, "center"), np.arange(10))
    assert writer.tables == (
        "step",
        "exchange",
        "sketch/sample",
        "sketch/center",
        "snapshot/sample",
        "snapshot/center",
        "dropped",
        "result",
    )
