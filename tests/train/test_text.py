"""Windows of text files against slices of their bytes."""

import mmap
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from lsam_hpc import InputError
from lsam_hpc.train.batches import Batches
from lsam_hpc.train.builders import make_dataset
from lsam_hpc.train.config import parse
from lsam_hpc.train.data import load
from lsam_hpc.train.text import BUILT_IN

SIZES = {"b.txt": 100, "a.txt": 41, "c.txt": 9, "d.txt": 64}
CONTEXT = 8


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    for name, size in SIZES.items():
        (tmp_path / name).write_bytes(rng.integers(0, 256, size, np.uint8).tobytes())
    (tmp_path / "notes.md").write_text("not a text file")
    (tmp_path / "x.txt").mkdir()
    return tmp_path


def by_slices(folder, context=CONTEXT):
    """The windows of the files in the order of their names, and the bytes one place later."""
    pairs = []
    for name in sorted(SIZES):
        content = list((folder / name).read_bytes())
        begins = [at for at in range(0, len(content), context) if at + context + 1 <= len(content)]
        pairs += [(content[at : at + context], content[at + 1 : at + context + 1]) for at in begins]
    return pairs


def test_windows_are_the_bytes_of_the_files_and_labels_those_that_follow(folder):
    data = load("text", str(folder), context=CONTEXT)
    pairs = by_slices(folder)
    assert len(pairs) == 5 + 12 + 1 + 7
    assert (len(data.train_x), len(data.test_x)) == (23, 2)  # the last tenth
    assert data.classes == 256
    assert data.train_x.shape == data.train_y.shape == (23, CONTEXT)
    for x, y, expected in ((data.train_x, data.train_y, pairs[:23]), (data.test_x, data.test_y, pairs[23:])):
        assert x[:].dtype == y[:].dtype == torch.int64
        assert x[:].tolist() == [inputs for inputs, _ in expected]
        assert y[:].tolist() == [labels for _, labels in expected]
    chosen = torch.tensor([17, 0, 22, 5, 0])
    assert data.train_x[chosen].tolist() == [pairs[i][0] for i in chosen]
    assert torch.equal(torch.cat(list(data.train_y.split(5))), data.train_y[:])


def test_subset_and_validation_take_other_windows(folder):
    whole = load("text", str(folder), context=CONTEXT)
    data = load("text", str(folder), context=CONTEXT, subset=9, validation=6)
    used = [tuple(row) for part in (data.train_x, data.test_x) for row in part[:].tolist()]
    assert (len(data.train_x), len(data.test_x), len(set(used))) == (9, 6, 15)
    following = {tuple(x): y for x, y in by_slices(folder)[: len(whole.train_x)]}
    assert [following[window] for window in used] == data.train_y[:].tolist() + data.test_y[:].tolist()


def is_mapped(array):
    while array is not None and not isinstance(array, mmap.mmap):
        array = getattr(array, "base", None)
    return array is not None


def test_the_text_stays_on_the_disk(folder):
    data = load("text", str(folder), context=CONTEXT, subset=9).to(torch.device("cpu"))
    for text in (data.train_x, data.train_y, data.test_x, data.test_y):
        assert all(is_mapped(rows) and not rows.flags.owndata and not rows.flags.writeable for rows in text._rows)
    before = data.train_x[:].clone()
    data.train_x[:].zero_()  # a mini-batch that a model changes in place is a copy
    assert torch.equal(data.train_x[:], before)


def test_windows_are_read_to_the_device(folder):
    data = load("text", str(folder), context=CONTEXT).to(torch.device("meta"))
    assert data.train_x.device == data.train_y.device == data.test_y[2:].device == torch.device("meta")
    assert data.train_x[:5].shape == data.train_y[torch.arange(5)].shape == (5, CONTEXT)
    assert data.train_x.subset(torch.arange(3))[:].is_meta
    assert all(is_mapped(rows) for rows in data.train_x._rows)


def test_mini_batches_go_on_where_they_were_saved(folder):
    data = load("text", str(folder), context=CONTEXT)
    straight = Batches(data.train_x, data.train_y, 4, seed=3)
    expected = [next(straight) for _ in range(20)]  # 5 to a pass
    first = Batches(data.train_x, data.train_y, 4, seed=3)
    for _ in range(7):
        next(first)
    resumed = Batches(data.train_x, data.train_y, 4, seed=99)
    resumed.load_state_dict(first.state_dict())
    for x, y in expected[7:]:
        ours = next(resumed)
        assert torch.equal(ours[0], x)
        assert torch.equal(ours[1], y)
    seen = {tuple(row) for x, _ in expected[:5] for row in x.tolist()}
    assert len(seen) == 20  # a pass sees no window twice


def test_the_built_in_text():
    data = load("text", None)
    content = BUILT_IN.read_bytes()
    assert 300_000 < len(content) < 400_000
    assert len(data.train_x) + len(data.test_x) == (len(content) - 1) // 128
    assert bytes(data.train_x[:1][0].tolist()) == content[:128]
    paragraphs = [p for p in content.split(b"\n\n") if len(p) > 80]
    assert len(paragraphs) == len(set(paragraphs))  # else the test set would contain what was trained on
    license_text = Path(BUILT_IN).with_suffix(".LICENSE").read_text()
    assert "Python Software Foundation; All Rights Reserved" in " ".join(license_text.split())


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        ("missing", None, r"--data-dir .*missing: expected a text file or a folder, found: No such file or directory"),
        ("empty.txt", 0, r"empty.txt: expected at least 33 bytes, with --context 32, found 0"),
        ("short.txt", 32, r"short.txt: expected at least 33 bytes, with --context 32, found 32"),
        ("one.txt", 64, r"one.txt: expected at least 65 bytes, with --context 32, found fewer"),
        ("", None, r"--data-dir .*: expected a text file, or a folder with \*.txt in it, found none"),
    ],
)
def test_texts_that_are_too_short_or_missing(tmp_path, name, size, message):
    if size is not None:
        (tmp_path / name).write_bytes(bytes(size))
    with pytest.raises(InputError, match=message) as caught:
        load("text", str(tmp_path / name), context=32)
    assert "\n" not in str(caught.value)
    (tmp_path / "enough.txt").write_bytes(bytes(65))
    assert len(load("text", str(tmp_path / "enough.txt"), context=32).train_x) == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--augment standard", "--augment: expected none with text, found standard"),
        ("--cutout 4", "--cutout: expected 0 with text, found 4"),
        ("--adversarial conadv", "--adversarial: expected none with text, found conadv"),
        ("--selection esam", "--selection: expected none with text, found esam"),
        ("--channels-last", "--channels_last: expected False with text, found True"),
        ("--label-noise 0.1", "--label-noise: expected 0 with text, found 0.1"),
        ("--context 0", "--context: expected a whole number >= 1, found 0"),
    ],
)
def test_options_for_images_are_refused(words, message):
    with pytest.raises(InputError, match=re.escape(message.replace("_", "-"))):
        make_dataset(parse(["--data", "text", *words.split()]))
