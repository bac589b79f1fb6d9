"""Checkpoint sets: complete or not there, whatever happens while they are written."""

import json
import os
import random
import signal
import time

import pytest
import torch

from lsam_hpc import InputError
from lsam_hpc.train import checkpoint
from lsam_hpc.train.batches import Batches
from lsam_hpc.train.checkpoint import Checkpoints, check, clear, load, newest

LAYOUT = [("w", (2, 3)), ("b", ())]
CONFIG = {"data": "digits", "topology": "center", "center_momentum": 0.0, "coupling": "elastic", "schedule": "async",
          "budget": "total"}  # fmt: skip
KILLS = int(os.environ.get("LSAM_CHECKPOINT_KILLS", "100"))


def writers(folder, ranks=2, keep=2):
    return [Checkpoints(folder, rank, ranks, LAYOUT, CONFIG, keep, lambda: None) for rank in range(ranks)]


def state(step):
    return {"opt": {"x": torch.full((1000,), float(step))}, "batches": {}, "buffers": {}, "step": step}


def write(writer, step):
    writer.write(step, state(step))
    writer.wait()


def names(folder):
    return sorted(file.name for file in folder.iterdir())


def test_a_set_counts_when_all_ranks_have_written_and_not_before(tmp_path):
    first, second = writers(tmp_path)
    write(first, 10)
    first.tend(at_once=True)
    assert newest(tmp_path) is None
    write(second, 10)
    second.tend(at_once=True)  # only rank 0 says so
    assert newest(tmp_path) is None
    first.tend(at_once=True)
    found = newest(tmp_path)
    assert (found.step, found.ranks, found.layout, found.finished) == (10, 2, LAYOUT, False)
    assert load(tmp_path, found, 1)["step"] == 10
    assert load(tmp_path, found, 2) is None


def test_a_file_is_a_copy_of_the_state_as_it_was(tmp_path):
    (writer,) = writers(tmp_path, 1)
    given = state(1)
    writer.write(1, given)
    given["opt"]["x"].fill_(-1)
    writer.wait()
    writer.tend(at_once=True)
    assert (load(tmp_path, newest(tmp_path), 0)["opt"]["x"] == 1).all()


def test_a_rank_that_comes_by_late_stands_for_the_sets_it_skipped(tmp_path):
    first, second = writers(tmp_path, keep=9)
    for step in (10, 20, 30):
        write(first, step)
    write(second, 20)
    first.tend(at_once=True)
    assert newest(tmp_path).step == 20
    found = {file: json.loads((tmp_path / file).read_text())["files"] for file in names(tmp_path) if "set" in file}
    assert found["set-000000000010.json"] == ["rank-0000-000000000010.pt", "rank-0001-000000000020.pt"]
    assert len(found) == 2


def test_ranks_that_were_lost_have_no_file(tmp_path):
    writers(tmp_path, 3)
    _, second, third = writers(tmp_path, 3)
    for writer in (second, third):
        write(writer, 5)
    second.tend(lost=[0], at_once=True)  # the lowest that lives
    found = newest(tmp_path)
    assert found.files == [None, "rank-0001-000000000005.pt", "rank-0002-000000000005.pt"]
    assert load(tmp_path, found, 0) is None


def test_only_the_newest_sets_and_what_they_need_stay(tmp_path):
    first, second = writers(tmp_path, keep=2)
    for step in range(10, 60, 10):
        write(first, step)
        if step != 40:
            write(second, step)
        first.tend(at_once=True)
    (tmp_path / "mine.txt").touch()
    assert [n for n in names(tmp_path) if "set" in n] == ["set-000000000040.json", "set-000000000050.json"]
    assert [n for n in names(tmp_path) if n.startswith("rank")] == [
        "rank-0000-000000000040.pt", "rank-0000-000000000050.pt", "rank-0001-000000000050.pt"]  # fmt: skip
    assert "mine.txt" in names(tmp_path)


def test_what_is_newer_than_the_set_that_a_job_goes_on_from_is_removed(tmp_path):
    first, second = writers(tmp_path)
    for step in (10, 20):
        write(first, step)
    write(second, 10)
    first.tend(at_once=True)
    (tmp_path / "rank-0001-000000000020.pt.tmp").touch()
    (tmp_path / "mine.txt").touch()
    clear(tmp_path, newest(tmp_path))
    assert names(tmp_path) == ["mine.txt", "rank-0000-000000000010.pt", "rank-0001-000000000010.pt",
                               "set-000000000010.json"]  # fmt: skip


def test_a_disk_that_fails_is_reported_once_and_training_goes_on(tmp_path):
    (writer,) = writers(tmp_path, 1)
    (tmp_path / "rank-0000-000000000001.pt.tmp").mkdir()
    (tmp_path / "rank-0000-000000000002.pt.tmp").mkdir()
    with pytest.warns(UserWarning, match=r"no checkpoint, and training goes on: .*Is a directory") as caught:
        [write(writer, step) for step in (1, 2)]
    assert len(caught) == 1
    write(writer, 3)
    writer.tend(at_once=True)
    assert newest(tmp_path).step == 3


@pytest.mark.slow("kills 100 writers")
def test_killed_at_any_moment_of_writing_the_newest_complete_set_is_whole(tmp_path):
    chance = random.Random(0)
    steps = []
    for trial in range(KILLS):
        folder = tmp_path / str(trial)
        folder.mkdir()
        ready, told = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                first, second = writers(folder)
                for step in range(1, 10**9):
                    write(second, step)
                    write(first, step)
                    first.tend(at_once=True)
                    os.write(told, b".")
            finally:
                os._exit(1)
        os.close(told)
        for _ in range(chance.randint(1, 8)):
            assert os.read(ready, 1)
        time.sleep(chance.uniform(0, 0.02))  # the moment of the kill, not a wait
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(ready)
        found = newest(folder)
        clear(folder, found)
        for rank in range(2):
            got = load(folder, found, rank)
            assert got["step"] == found.step
            assert (got["opt"]["x"] == found.step).all()
        steps.append(found.step)
    assert len(set(steps)) > 5  # the kills came at different moments


class Code:
    def __reduce__(self):
        return (print, ("code ran",))


def complete(folder, step=10):
    (writer,) = writers(folder, 1)
    write(writer, step)
    writer.tend(at_once=True)
    return folder / "rank-0000-000000000010.pt"


def test_refuses_damage(tmp_path, capsys):
    file = complete(tmp_path)
    data = file.read_bytes()
    file.write_bytes(data[:-1])
    with pytest.raises(InputError, match=rf"pt: expected {len(data)} bytes, found {len(data) - 1}: remove set-0"):
        newest(tmp_path)
    flipped = bytearray(data)
    flipped[data.index(torch.full((1000,), 10.0).numpy().tobytes())] ^= 1
    file.write_bytes(flipped)
    with pytest.raises(InputError, match="expected what was written, found another check sum of"):
        load(tmp_path, newest(tmp_path), 0)
    file.unlink()
    with pytest.raises(InputError, match="found none: remove set-0"):
        newest(tmp_path)
    torch.save(Code(), file)
    manifest = tmp_path / "set-000000000010.json"
    said = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({**said, "bytes": [file.stat().st_size]}))
    with pytest.raises(InputError, match=r"pt: expected a checkpoint that torch.load\(weights_only=True\) reads"):
        load(tmp_path, newest(tmp_path), 0)
    assert "code ran" not in capsys.readouterr().out
    torch.save([1, 2], file)
    with pytest.raises(InputError, match="expected a state of a rank, found something else"):
        load(tmp_path, newest_unchecked(manifest), 0)


def newest_unchecked(manifest):
    return checkpoint._parsed(manifest)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "x"}, "expected format 'lsam-hpc checkpoint' of version 1, found another"),
        ({"version": 2}, "expected format 'lsam-hpc checkpoint' of version 1, found another"),
        ({"files": ["../../secret.pt"]}, "expected names of files beside it, found others"),
        ({"files": ["/etc/passwd"]}, "expected names of files beside it, found others"),
        ({"more": 1}, "expected a checkpoint's manifest, found"),
        ({"layout": 3}, "expected a checkpoint's manifest, found"),
    ],
)
def test_refuses_manifests_that_are_not_ours(tmp_path, change, message):
    complete(tmp_path)
    manifest = tmp_path / "set-000000000010.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), **change}))
    with pytest.raises(InputError, match=message):
        newest(tmp_path)
    manifest.write_text("{")
    with pytest.raises(InputError, match=r"expected a checkpoint's manifest, found"):
        newest(tmp_path)


def test_refuses_another_model_and_another_job(tmp_path):
    complete(tmp_path)
    found = newest(tmp_path)
    check(found, LAYOUT, CONFIG)
    with pytest.raises(InputError, match=r"difference in w: \(2, 3\) in the checkpoint, \(3, 2\) here"):
        check(found, [("w", (3, 2)), ("b", ())], CONFIG)
    with pytest.raises(InputError, match=r"--center-momentum: expected 0.0, as in the checkpoint, found 0.5"):
        check(found, LAYOUT, {**CONFIG, "center_momentum": 0.5})
    with pytest.raises(InputError, match=r"--subset: expected None, as in the checkpoint, found 100"):
        check(found, LAYOUT, {**CONFIG, "subset": 100})


def test_batches_go_on_where_they_were_saved():
    x = torch.arange(10.0)[:, None]
    whole, saved, other = (Batches(x, x[:, 0], 3, seed) for seed in (7, 7, 8))
    order = [next(whole)[1].tolist() for _ in range(20)]
    assert [next(saved)[1].tolist() for _ in range(8)] == order[:8]
    other.load_state_dict(saved.state_dict())
    assert [next(other)[1].tolist() for _ in range(12)] == order[8:]
