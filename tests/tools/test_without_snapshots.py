"""The programs that analyse one state work at the center of a run without snapshots."""

import pytest
import torch

from lsam_hpc.cli import main
from tests.helpers.landscapes import WORDS, walks, write_run

pytestmark = pytest.mark.usefixtures("torch_threads")


@pytest.mark.parametrize(
    "words",
    [
        ("surface", "--x=-1:1:3"),
        ("surface", "--directions", "eigenvector", "--line", "--x=-1:1:3"),
        ("spectrum", "--eigenvalues", "2", "--steps", "5"),
        ("sharpness", "--case", "average", "--steps", "2"),
    ],
)
def test_the_center_is_that_of_the_checkpoint(tmp_path, words):
    numbers = {}
    for name, snapshots in (("with", True), ("without", False)):
        path = write_run(tmp_path / name, snapshots=snapshots)
        if not snapshots:
            center = torch.from_numpy(walks()[0, -1] / 2)
            (path / "checkpoints").mkdir()
            torch.save({"weight": center[:12].reshape(3, 4), "bias": center[12:]}, path / "checkpoints" / "center.pt")
        verb, *more = words
        assert main([verb, str(path), *WORDS, *more]) == 0
        numbers[name] = {file.name: file.read_text() for file in (path / "figures").glob("*.csv")}
    assert numbers["with"]
    assert numbers["with"] == numbers["without"]
