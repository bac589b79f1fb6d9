"""Checkpoint sets: only complete sets count, even if a rank is killed while it writes."""

import json
import os
import random
import signal
import time

import pytest
import torch

from lsam_hpc import InputError
from lsam_hpc.train.batches import Batches
from lsam_hpc.train.checkpoint import Checkpoints, check, clear, load
from lsam_hpc.train.manifest import newest, parsed

LAYOUT = [("w", (2, 3)), ("b", ())]
CONFIG = {
    "data": "digits",
    "topology": "center",
    "center_momentum": 0.0,
    "coupling": "elastic",
    "mode": "async",
    "budget": "total",
}
KILLS = int(os.environ.get("LSAM_CHECKPOINT_KILLS", "100"))


def make(folder, rank, ranks, keep):
    return Checkpoints(folder, rank, ranks, layout=LAYOUT, config=CONFIG, keep=keep, flush=lambda: None)


def writers(folder, ranks=2, keep=2):
    return [make(folder, rank, ranks, keep) for rank in range(ranks)]


def state(step):
    return {"opt": {"x": torch.full((1000,), float(step))}, "batches": {}, "buffers": {}, "step": step}


def write(writer, step):
    writer.write(step, state(step))
    writer.wait()


def test_a_set_without_the_center_does_not_count(tmp_path):
    # Ranks 0 and 1 hold a chain together. Rank 0, with a part of the center, is lost before it writes.
    ranks = [
        Checkpoints(tmp_path, rank, 4, layout=LAYOUT, config=CONFIG, keep=2, flush=lambda: None, parts=2)
        for rank in range(4)
    ]
    for rank in (1, 2, 3):
        ranks[rank].write(10, state(10), center=False)
        ranks[rank].wait()
    ranks[2].write_manifests([0, 1], at_once=True)
    assert not any(name.startswith("set") for name in names(tmp_path))
    for rank in (2, 3):
        ranks[rank].write(20, state(20))  # now these ranks are the lowest ones
        ranks[rank].wait()
    ranks[2].write_manifests([0, 1], at_once=True)
    assert "set-000000000020.json" in names(tmp_path)
    for rank in range(4):  # the first chain has written, and its center is in the set
        ranks[rank].write(30, state(30), center=rank < 2)
        ranks[rank].wait()
    ranks[2].write_manifests([0, 1], at_once=True)
    assert "set-000000000030.json" in names(tmp_path)


def test_files_of_sets_that_stay_incomplete_are_removed(tmp_path):
    first, second = writers(tmp_path)
    for writer in (first, second):
        write(writer, 10)
    for step in (20, 30, 40, 50):  # the other rank's disk is full
        write(first, step)
        first.write_manifests(at_once=True)
    assert names(tmp_path) == [
        "rank-0000-000000000010.pt",
        "rank-0000-000000000050.pt",
        "rank-0001-000000000010.pt",
        "set-000000000010.json",
    ]
    write(second, 60)
    first.write_manifests(at_once=True)
    manifest = newest(tmp_path)
    assert manifest.step == 50
    assert [load(tmp_path, manifest, rank)["step"] for rank in range(2)] == [50, 60]


def test_a_slow_rank_does_not_remove_files(tmp_path):
    first, second = writers(tmp_path)
    write(first, 10)
    write(first, 20)
    first.write_manifests(at_once=True)
    write(second, 10)
    first.write_manifests(at_once=True)
    assert [load(tmp_path, newest(tmp_path), rank)["step"] for rank in range(2)] == [10, 10]


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="checkpoints: expected a folder that can be made, found: Not a directory"):
        make(tmp_path / "file" / "checkpoints", 0, 1, 2)


def names(folder):
    return sorted(file.name for file in folder.iterdir())


def test_a_set_is_complete_only_when_all_ranks_have_written(tmp_path):
    first, second = writers(tmp_path)
    write(first, 10)
    first.write_manifests(at_once=True)
    assert newest(tmp_path) is None
    write(second, 10)
    second.write_manifests(at_once=True)  # only rank 0 writes the manifest
    assert newest(tmp_path) is None
    first.write_manifests(at_once=True)
    manifest = newest(tmp_path)
    assert (manifest.step, manifest.ranks, manifest.layout, manifest.finished) == (10, 2, LAYOUT, False)
    assert load(tmp_path, manifest, 1)["step"] == 10
    assert load(tmp_path, manifest, 2) is None


def test_the_file_holds_the_state_at_the_call_of_write(tmp_path):
    (writer,) = writers(tmp_path, 1)
    before = state(1)
    writer.write(1, before)
    before["opt"]["x"].fill_(-1)
    writer.wait()
    writer.write_manifests(at_once=True)
    assert (load(tmp_path, newest(tmp_path), 0)["opt"]["x"] == 1).all()


def test_the_next_file_of_a_slow_rank_serves_for_skipped_sets(tmp_path):
    first, second = writers(tmp_path, keep=9)
    for step in (10, 20, 30):
        write(first, step)
    write(second, 20)
    first.write_manifests(at_once=True)
    assert newest(tmp_path).step == 20
    sets = {file: json.loads((tmp_path / file).read_text())["files"] for file in names(tmp_path) if "set" in file}
    assert sets["set-000000000010.json"] == ["rank-0000-000000000010.pt", "rank-0001-000000000020.pt"]
    assert len(sets) == 2


def test_failed_ranks_have_no_file(tmp_path):
    writers(tmp_path, 3)
    _, second, third = writers(tmp_path, 3)
    for writer in (second, third):
        write(writer, 5)
    second.write_manifests(failed=[0], at_once=True)  # the lowest living rank
    manifest = newest(tmp_path)
    assert manifest.files == [None, "rank-0001-000000000005.pt", "rank-0002-000000000005.pt"]
    assert load(tmp_path, manifest, 0) is None


def test_only_the_newest_sets_and_their_files_are_kept(tmp_path):
    first, second = writers(tmp_path, keep=2)
    for step in range(10, 60, 10):
        write(first, step)
        if step != 40:
            write(second, step)
        first.write_manifests(at_once=True)
    (tmp_path / "mine.txt").touch()
    assert [n for n in names(tmp_path) if "set" in n] == ["set-000000000040.json", "set-000000000050.json"]
    assert [n for n in names(tmp_path) if n.startswith("rank")] == [
        "rank-0000-000000000040.pt",
        "rank-0000-000000000050.pt",
        "rank-0001-000000000050.pt",
    ]
    assert "mine.txt" in names(tmp_path)


def test_files_newer_than_the_resumed_set_are_removed(tmp_path):
    first, second = writers(tmp_path)
    for step in (10, 20):
        write(first, step)
    write(second, 10)
    first.write_manifests(at_once=True)
    (tmp_path / "rank-0001-000000000020.pt.tmp").touch()
    (tmp_path / "mine.txt").touch()
    clear(tmp_path, newest(tmp_path))
    assert names(tmp_path) == [
        "mine.txt",
        "rank-0000-000000000010.pt",
        "rank-0001-000000000010.pt",
        "set-000000000010.json",
    ]


def test_a_failing_disk_is_reported_once_and_training_continues(tmp_path):
    (writer,) = writers(tmp_path, 1)
    (tmp_path / "rank-0000-000000000001.pt.tmp").mkdir()
    (tmp_path / "rank-0000-000000000002.pt.tmp").mkdir()
    with pytest.warns(UserWarning, match=r"checkpoint not written, training continues: .*Is a directory") as caught:
        [write(writer, step) for step in (1, 2)]
    assert len(caught) == 1
    write(writer, 3)
    writer.write_manifests(at_once=True)
    assert newest(tmp_path).step == 3


@pytest.mark.slow("kills 100 writers")
def test_the_newest_set_is_complete_after_a_kill_at_any_moment(tmp_path):
    chance = random.Random(0)
    steps = []
    for trial in range(KILLS):
        folder = tmp_path / str(trial)
        folder.mkdir()
        read_end, write_end = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                first, second = writers(folder)
                for step in range(1, 10**9):
                    write(second, step)
                    write(first, step)
                    first.write_manifests(at_once=True)
                    os.write(write_end, b".")
            finally:
                os._exit(1)
        os.close(write_end)
        for _ in range(chance.randint(1, 8)):
            assert os.read(read_end, 1)
        time.sleep(chance.uniform(0, 0.02))  # the moment of the kill, not a wait
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(read_end)
        manifest = newest(folder)
        clear(folder, manifest)
        for rank in range(2):
            loaded = load(folder, manifest, rank)
            assert loaded["step"] == manifest.step
            assert (loaded["opt"]["x"] == manifest.step).all()
        steps.append(manifest.step)
    assert len(set(steps)) > 5  # the kills came at different moments


class Code:
    def __reduce__(self):
        return (print, ("code ran",))


def complete(folder, step=10):
    (writer,) = writers(folder, 1)
    write(writer, step)
    writer.write_manifests(at_once=True)
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
    with pytest.raises(InputError, match="expected the checksums that were written, found another for"):
        load(tmp_path, newest(tmp_path), 0)
    file.unlink()
    with pytest.raises(InputError, match="found no such file: remove set-0"):
        newest(tmp_path)
    torch.save(Code(), file)
    manifest = tmp_path / "set-000000000010.json"
    content = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({**content, "bytes": [file.stat().st_size]}))
    with pytest.raises(InputError, match=r"pt: expected a checkpoint that torch.load\(weights_only=True\) reads"):
        load(tmp_path, newest(tmp_path), 0)
    assert "code ran" not in capsys.readouterr().out
    torch.save([1, 2], file)
    with pytest.raises(InputError, match="expected the state of a rank, found something else"):
        load(tmp_path, newest_unchecked(manifest), 0)


def newest_unchecked(manifest):
    return parsed(manifest)


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
def test_refuses_other_manifests(tmp_path, change, message):
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
    manifest = newest(tmp_path)
    config = {**CONFIG, "selection": "none", "adversarial": "none"}  # the set is from before these options
    check(manifest, LAYOUT, config)
    with pytest.raises(InputError, match=r"difference in w: \(2, 3\) in the checkpoint, \(3, 2\) in this job"):
        check(manifest, [("w", (3, 2)), ("b", ())], config)
    with pytest.raises(InputError, match=r"--center-momentum: expected 0.0, as in the checkpoint, found 0.5"):
        check(manifest, LAYOUT, {**config, "center_momentum": 0.5})
    with pytest.raises(InputError, match=r"--subset: expected None, as in the checkpoint, found 100"):
        check(manifest, LAYOUT, {**config, "subset": 100})
    for name, value in (("selection", "ausam"), ("adversarial", "conadv")):
        with pytest.raises(InputError, match=f"--{name}: expected none, as in the checkpoint, found {value}"):
            check(manifest, LAYOUT, {**config, name: value})


def test_batches_resume_where_they_were_saved():
    x = torch.arange(10.0)[:, None]
    whole, saved, other = (Batches(x, x[:, 0], 3, seed) for seed in (7, 7, 8))
    order = [next(whole)[1].tolist() for _ in range(20)]
    assert [next(saved)[1].tolist() for _ in range(8)] == order[:8]
    next(other)  # the mini-batches that it has read are dropped
    other.load_state_dict(saved.state_dict())
    assert [next(other)[1].tolist() for _ in range(12)] == order[8:]
