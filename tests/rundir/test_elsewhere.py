"""Files that cannot be written where they belong."""

import errno
from pathlib import Path

import pytest

from lsam_hpc.rundir import elsewhere
from lsam_hpc.rundir.elsewhere import persist, places, write_elsewhere


class Disk:
    """Fails as often as asked."""

    def __init__(self, *errors):
        self.errors, self.calls = list(errors), 0

    def write(self, folder=None):
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)
        return 7


FULL = OSError(errno.ENOSPC, "No space left on device")


@pytest.fixture(autouse=True)
def fast(monkeypatch):
    monkeypatch.setattr(elsewhere, "RETRIES", (0.01, 0.01))


def test_a_disk_with_room_again_is_written_to():
    disk = Disk(FULL, RuntimeError("file write failed\nmore"))
    assert persist(disk.write) == (7, "")
    assert disk.calls == 3


def test_retries_end():
    disk = Disk(*[FULL] * 9)
    assert persist(disk.write) == (None, "No space left on device")
    assert disk.calls == 3


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.ENOENT])
def test_what_lasts_is_not_tried_again(number):
    disk = Disk(*[OSError(number, "why")] * 9)
    assert persist(disk.write) == (None, "why")
    assert disk.calls == 1


def test_places_are_tried_in_order(tmp_path, monkeypatch):
    slurm, temporary, here = (tmp_path / name for name in ("slurm", "tmp", "here"))
    here.mkdir()
    monkeypatch.chdir(here)
    env = {"SLURM_TMPDIR": str(slurm), "TMPDIR": str(temporary)}
    folders = [folder / "run-saved-1" for folder in (slurm, temporary, here)]
    assert list(places(Path("runs/run"), "1", env)) == folders
    assert list(places(Path("runs/run"), "1", {"TMPDIR": ""})) == folders[2:]
    disk = Disk(FULL)
    temporary.mkdir()  # the first does not exist, the second fails
    assert write_elsewhere(iter(folders), disk.write) == (7, folders[2])
    assert list(temporary.iterdir()) == []
    assert write_elsewhere(iter(folders[:1]), disk.write) == (None, None)
