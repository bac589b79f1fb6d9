"""Loaders on small files in the canonical layouts, intact and damaged."""

import dataclasses
import gzip
import io
import pickle
import random
import struct
from os import rename

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import loadmat, savemat

from lsam_hpc import InputError
from lsam_hpc.train.data import DATASETS, load
from lsam_hpc.train.matfile import arrays


def write_idx(path, array, packed=True):
    raw = struct.pack(">BBBB", 0, 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()
    path = path.with_name(path.name + (".gz" if packed else ""))
    path.write_bytes(gzip.compress(raw) if packed else raw)


@pytest.fixture
def fashion(tmp_path):
    rng = np.random.default_rng(0)
    for part, count in (("train", 30), ("t10k", 10)):
        write_idx(tmp_path / f"{part}-images-idx3-ubyte", rng.integers(0, 256, (count, 28, 28), np.uint8))
        write_idx(
            tmp_path / f"{part}-labels-idx1-ubyte", (np.arange(count) % 10).astype(np.uint8), packed=part == "train"
        )
    return tmp_path


@pytest.fixture
def cifar(tmp_path):
    rng = np.random.default_rng(0)
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]:
        batch = {b"data": rng.integers(0, 256, (20, 3072), np.uint8), b"labels": [i % 10 for i in range(20)]}
        with (folder / name).open("wb") as file:
            pickle.dump(batch, file, protocol=2)
    return tmp_path


def test_digits():
    data = load("digits", None)
    assert data.train_x.shape == (1348, 1, 8, 8)
    assert data.test_x.shape == (449, 1, 8, 8)
    assert data.train_x[:].mean().abs() < 1e-5
    assert abs(data.train_x[:].std() - 1) < 1e-3
    assert set(data.test_y.tolist()) == set(data.train_y.tolist()) == set(range(10))
    assert not data.mirror


def test_digits_are_scikit_learns():
    datasets = pytest.importorskip("sklearn.datasets")
    truth, data = datasets.load_digits(), load("digits", None)
    train = np.arange(len(truth.target)) % 4 != 3
    np.testing.assert_array_equal(data.train_y, truth.target[train])
    np.testing.assert_array_equal(data.test_y, truth.target[~train])
    mean, std = truth.images[train].mean(), truth.images[train].std()
    np.testing.assert_allclose(data.test_x[:][:, 0], (truth.images[~train] - mean) / std, atol=1e-5)


@pytest.mark.parametrize("name", ["fashion-mnist", "mnist"])
def test_fashion_mnist_and_mnist(fashion, name):
    data = load(name, str(fashion))
    assert data.train_x.shape == (30, 1, 28, 28)
    assert data.train_x.bytes == 30 * 28 * 28
    assert data.test_y.tolist() == list(range(10))
    assert data.mirror == (name == "fashion-mnist")
    # The pixels are the file's, scaled by the training set's mean and deviation.
    raw = np.frombuffer(gzip.decompress((fashion / "train-images-idx3-ubyte.gz").read_bytes()), np.uint8, offset=16)
    raw = raw.reshape(30, 1, 28, 28).astype(np.float64)
    expected = torch.from_numpy((raw - raw.mean()) / raw.std()).float()
    for images in (data.train_x[:], torch.cat(list(data.train_x.split(7))), data.train_x[torch.arange(30)]):
        assert images.dtype == torch.float32
        torch.testing.assert_close(images, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(data.train_x[torch.tensor([4, 2])], expected[[4, 2]], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(data.train_x.subset(torch.tensor([4, 2]))[:], expected[[4, 2]], atol=1e-5, rtol=1e-5)


def test_cifar10(cifar):
    for directory in (cifar, cifar / "cifar-10-batches-py"):
        data = load("cifar10", str(directory))
        assert data.train_x.shape == (100, 3, 32, 32)
        assert data.test_y.tolist() == [i % 10 for i in range(20)]
        np.testing.assert_allclose(data.train_x[:].mean((0, 2, 3)), 0, atol=1e-4)
        np.testing.assert_allclose(data.train_x[:].std((0, 2, 3), correction=0), 1, atol=1e-4)
    with (cifar / "cifar-10-batches-py" / "data_batch_1").open("rb") as file:
        raw = pickle.load(file, encoding="bytes")[b"data"]  # noqa: S301 - this test wrote it
    red = data.train_x[:1][0, 0].reshape(-1).numpy()
    assert np.corrcoef(red, raw[0, :1024])[0, 1] > 0.9999


@pytest.mark.parametrize("order", ["C", "F"])
def test_a_batch_whose_labels_are_an_array(cifar, order):
    path = cifar / "cifar-10-batches-py" / "test_batch"
    pixels = np.random.default_rng(5).integers(0, 256, (20, 3072), np.uint8)
    batch = {b"data": np.asarray(pixels, order=order), b"labels": np.arange(20).astype(">i4") % 10}
    path.write_bytes(pickle.dumps(batch, protocol=2))
    data = load("cifar10", str(cifar))
    assert data.test_y.tolist() == [i % 10 for i in range(20)]
    np.testing.assert_array_equal(data.test_x._stored.flatten(1), pixels)


def test_a_batch_as_python_2_wrote_it(cifar):
    """The canonical files are of 2009: strings are bytes, numpy's functions have their old names."""
    pixels = np.random.default_rng(6).integers(0, 256, (2, 3072), np.uint8)
    raw = b"\x80\x02}q\x01(U\x0bbatch_labelq\x02U\x15training batch 1 of 5q\x03U\x06labelsq\x04]q\x05(K\x06K\te"
    raw += b"U\x04dataq\x06cnumpy.core.multiarray\n_reconstruct\nq\x07cnumpy\nndarray\nq\x08K\x00\x85U\x01b\x87Rq\x09"
    raw += b"(K\x01K\x02M\x00\x0c\x86cnumpy\ndtype\nq\x0aU\x02u1K\x00K\x01\x87Rq\x0b(K\x03U\x01|NNNJ\xff\xff\xff\xff"
    raw += b"J\xff\xff\xff\xffK\x00tb\x89T" + struct.pack("<I", pixels.size) + pixels.tobytes() + b"tb"
    raw += b"U\tfilenamesq\x0c]q\x0d(U\x05a.pngq\x0eU\x05b.pngq\x0feu."
    np.testing.assert_array_equal(pickle.loads(raw, encoding="bytes")[b"data"], pixels)  # noqa: S301 - of this test
    (cifar / "cifar-10-batches-py" / "test_batch").write_bytes(raw)
    data = load("cifar10", str(cifar))
    assert data.test_y.tolist() == [6, 9]
    np.testing.assert_array_equal(data.test_x._stored.flatten(1), pixels)


@pytest.fixture
def cifar100(tmp_path):
    rng = np.random.default_rng(1)
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    for name, count in (("train", 200), ("test", 100)):
        pixels, fine = rng.integers(0, 256, (count, 3072), np.uint8), [i % 100 for i in range(count)]
        batch = {b"data": pixels, b"fine_labels": fine, b"coarse_labels": fine[::-1], b"filenames": [b"a.png"] * count}
        (folder / name).write_bytes(pickle.dumps(batch, protocol=2))
    return tmp_path


def test_cifar100_has_fine_labels(cifar100):
    data = load("cifar100", str(cifar100))
    assert data.train_x.shape == (200, 3, 32, 32)
    assert data.classes == 100
    assert data.train_y.tolist() == [i % 100 for i in range(200)]


@pytest.fixture
def svhn(tmp_path):
    rng = np.random.default_rng(2)
    for part, count in (("train", 40), ("test", 20)):
        x = rng.integers(0, 256, (32, 32, 3, count), np.uint8)
        y = (np.arange(count) % 10 + 1).astype(np.uint8)[:, None]
        savemat(tmp_path / f"{part}_32x32.mat", {"X": x, "y": y}, do_compression=part == "train")
    return tmp_path


def test_svhn(svhn):
    data = load("svhn", str(svhn))
    assert data.train_y.tolist() == [*range(1, 10), 0] * 4  # its label 10 is the digit 0
    x = loadmat(svhn / "train_32x32.mat")["X"].transpose(3, 2, 0, 1).astype(np.float64)
    expected = (x - x.mean((0, 2, 3), keepdims=True)) / x.std((0, 2, 3), keepdims=True)
    np.testing.assert_allclose(data.train_x[:], expected, atol=1e-5)
    assert not data.mirror


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("kind", ["u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8"])
def test_matlab_files_are_read_as_scipy_reads_them(tmp_path, compressed, kind):
    values = np.random.default_rng(0).integers(0, 100, (3, 4, 2)).astype(kind)
    content = {
        "X": values,
        "a": values[:1, :1, 0],
        "none": np.zeros((0, 3)),
        "words": "text",
        "i": 1j * values,
        "cell": np.array([1, "a"], object),
        "part": {"x": 1},
        "a_name_longer_than_four": values[0],
    }
    savemat(tmp_path / "m.mat", content, do_compression=compressed)
    ours, theirs = arrays((tmp_path / "m.mat").read_bytes()), loadmat(tmp_path / "m.mat")
    assert set(ours) == {"X", "a", "none", "a_name_longer_than_four"}
    for name, value in ours.items():
        assert value.dtype == theirs[name].dtype
        np.testing.assert_array_equal(value, theirs[name])


def test_matlab_files_of_big_endian_machines_and_narrow_storage():
    """As MATLAB writes whole numbers that are doubles; scipy writes neither."""

    def element(kind, body):
        return struct.pack(">II", kind, len(body)) + body + bytes(-len(body) % 8)

    body = element(6, struct.pack(">II", 6, 0)) + element(5, struct.pack(">ii", 2, 3)) + element(1, b"y")
    body += element(4, struct.pack(">6H", 1, 2, 3, 4, 5, 600))
    raw = b"MATLAB 5.0 MAT-file".ljust(124) + b"\1\0MI" + element(14, body)
    y = arrays(raw)["y"]
    assert y.dtype == np.float64
    np.testing.assert_array_equal(y, [[1, 3, 5], [2, 4, 600]])
    np.testing.assert_array_equal(y, loadmat(io.BytesIO(raw))["y"])


def picture(path, pixels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)


@pytest.fixture
def tiny(tmp_path):
    """As Tiny-ImageNet: three classes of four training images, six others."""
    rng = np.random.default_rng(3)
    pixels, lines = {}, []
    for name in ("n02", "n01", "n03"):
        for i in range(4):
            pixels["train", name, i] = rng.integers(0, 256, (6, 8, 3), np.uint8)
            picture(tmp_path / "train" / name / "images" / f"{name}_{i}.png", pixels["train", name, i])
        (tmp_path / "train" / name / f"{name}_boxes.txt").write_text("n01_0.png\t0\t0\t62\t62\n")
    for i in range(6):
        pixels["val", i] = rng.integers(0, 256, (6, 8, 3), np.uint8)
        picture(tmp_path / "val" / "images" / f"val_{i}.png", pixels["val", i])
        lines.append(f"val_{i}.png\tn0{i % 3 + 1}\t0\t32\t44\t62\n")
    (tmp_path / "val" / "val_annotations.txt").write_text("".join(lines))
    return tmp_path, pixels


def stored(images):
    return images._stored.numpy().transpose(0, 2, 3, 1)


def test_a_folder_as_tiny_imagenet_s(tiny):
    directory, pixels = tiny
    data = load("folder", str(directory))
    assert data.classes == 3
    assert data.train_x.shape == (12, 3, 6, 8)
    assert data.test_y.tolist() == [0, 1, 2, 0, 1, 2]
    np.testing.assert_array_equal(stored(data.test_x), [pixels["val", i] for i in range(6)])
    for label, name in enumerate(("n01", "n02", "n03")):
        of_class = stored(data.train_x)[data.train_y.numpy() == label]
        assert {image.tobytes() for image in of_class} == {pixels["train", name, i].tobytes() for i in range(4)}
    for begin in range(0, 12, 3):  # mixed: every three images are of three classes
        assert sorted(data.train_y[begin : begin + 3].tolist()) == [0, 1, 2]


def test_a_folder_with_test_images_in_classes_of_many_formats(tmp_path):
    rng = np.random.default_rng(4)
    for part, suffix in (("train", "png"), ("test", "bmp")):
        for name in ("cat", "dog"):
            for i in range(2):
                picture(tmp_path / part / name / f"{i}.{suffix}", rng.integers(0, 256, (5, 5, 3), np.uint8))
    gray = np.arange(25, dtype=np.uint8).reshape(5, 5)
    picture(tmp_path / "train" / "dog" / "below" / "gray.PNG", gray)
    picture(tmp_path / "train" / "dog" / "photo.JPEG", np.full((5, 5, 3), 200, np.uint8), format="JPEG")
    (tmp_path / "train" / ".cache").mkdir()
    (tmp_path / "train" / "cat" / "._0.png").write_text("what macOS leaves behind")
    data = load("folder", str(tmp_path))
    assert data.train_y.bincount().tolist() == [2, 4]
    assert data.test_y.tolist() == [0, 0, 1, 1]
    assert any(np.array_equal(image, np.repeat(gray[..., None], 3, 2)) for image in stored(data.train_x))
    assert any((image == 200).all() for image in stored(data.train_x))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d: rename(d / "train", d / "training"), "train: expected a folder for each class in it, found: No s"),
        (lambda d: rename(d / "val", d / "valid"), "test: expected a folder for each class in it, found: No such file"),
        (lambda d: (d / "train" / "n04").mkdir(), "n04: expected images .*, found none"),
        (lambda d: picture(d / "train/n01/x.png", np.zeros((8, 6, 3), "u1")), "expected an image of 8 x 6, .* 6 x 8"),
        (lambda d: (d / "train/n01/x.png").write_text("no image"), "x.png: expected an image, found: Unidentified"),
        (lambda d: (d / "train/n01/x.jpg").mkdir(), None),
        (lambda d: (d / "val/images/val_3.png").unlink(), "val_3.png: expected an image, found: FileNotFoundError"),
        (lambda d: (d / "val/val_annotations.txt").write_text("val_0.png n01\n"), "txt, line 1: expected a file"),
        (lambda d: (d / "val/val_annotations.txt").write_text("val_0.png\tn09\n"), "txt, line 1: expected a file"),
        (lambda d: (d / "val/val_annotations.txt").write_text("../../x.png\tn01\n"), "txt, line 1: expected a file"),
        (lambda d: (d / "val/val_annotations.txt").write_text(""), "annotations.txt: expected a line for each image"),
        (lambda d: (d / "val/val_annotations.txt").unlink(), "val/images: expected a class of .*/train, found another"),
    ],
)
def test_names_what_is_wrong_in_a_folder(tiny, damage, message):
    directory, _ = tiny
    damage(directory)
    if message is None:
        load("folder", str(directory))
        return
    with pytest.raises(InputError, match=message) as caught:
        load("folder", str(directory))
    assert "\n" not in str(caught.value)


IMAGES, LABELS = "train-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte"


@pytest.mark.parametrize(
    ("file", "damage", "message"),
    [
        (IMAGES, lambda p: p.unlink(), "expected the file train-images-idx3-ubyte in it"),
        (LABELS, lambda p: p.unlink(), "t10k-labels-idx1-ubyte: expected a readable file"),
        (IMAGES, lambda p: p.write_bytes(p.read_bytes()[:99]), "expected a whole gzip file"),
        (IMAGES, lambda p: p.write_bytes(b"x" * 99), "expected a whole gzip file"),
        (LABELS, lambda p: p.write_bytes(p.read_bytes()[:-1]), r"expected \(10,\) bytes after the header, found 9"),
        (LABELS, lambda p: p.write_bytes(b"\0\0\x0d\1" + p.read_bytes()[4:]), "found a header 00000d01"),
        (LABELS, lambda p: p.write_bytes(p.read_bytes()[:-1] + b"\x63"), "expected labels 0 to 9, found 0 to 99"),
        (LABELS, lambda p: p.write_bytes(b""), "expected an IDX file"),
    ],
)
def test_names_a_fashion_mnist_file_that_is_missing_or_damaged(fashion, file, damage, message):
    damage(fashion / file)
    with pytest.raises(InputError, match=message) as caught:
        load("fashion-mnist", str(fashion))
    assert "\n" not in str(caught.value)


def test_refuses_images_and_labels_of_different_counts(fashion):
    write_idx(fashion / "t10k-labels-idx1-ubyte", np.zeros(9, np.uint8), packed=False)
    with pytest.raises(InputError, match="as many labels"):
        load("fashion-mnist", str(fashion))


class Evil:
    def __reduce__(self):
        return print, ("code from a data file ran",)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda p: p.unlink(), "data_batch_3: expected a readable file"),
        (lambda p: p.write_bytes(p.read_bytes()[:-9]), "data_batch_3: expected a CIFAR-10 batch"),
        (lambda p: p.write_bytes(b""), "data_batch_3: expected a CIFAR-10 batch"),
        (lambda p: p.write_bytes(pickle.dumps(Evil())), "data_batch_3: expected a CIFAR-10 batch.*print is not"),
        (lambda p: p.write_bytes(pickle.dumps({b"data": [1], b"labels": [1]})), "expected uint8 data of shape"),
        (lambda p: p.write_bytes(pickle.dumps({b"data": np.zeros((1, 3072), "u1"), b"labels": [10]})), "labels 0 to 9"),
        (lambda p: p.write_bytes(pickle.dumps([1, 2])), "data_batch_3: expected a CIFAR-10 batch"),
    ],
)
def test_names_a_cifar_file_that_is_missing_or_damaged(cifar, capfd, damage, message):
    damage(cifar / "cifar-10-batches-py" / "data_batch_3")
    with pytest.raises(InputError, match=message) as caught:
        load("cifar10", str(cifar))
    assert "\n" not in str(caught.value)
    assert "ran" not in capfd.readouterr().out


def test_names_a_directory_without_the_files(tmp_path):
    with pytest.raises(InputError, match="expected the file data_batch_1 in it or in cifar-10-batches-py, found none"):
        load("cifar10", str(tmp_path))


@pytest.mark.parametrize(
    ("name", "file"),
    [("cifar100", "train"), ("cifar100", "test"), ("svhn", "train_32x32.mat"), ("svhn", "test_32x32.mat")],
)
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda p: p.unlink(), "expected (a readable|the) file"),
        (lambda p: p.write_bytes(b""), "expected a "),
        (lambda p: p.write_bytes(p.read_bytes()[:-9]), "expected a "),
        (lambda p: p.write_bytes(pickle.dumps(Evil())), "expected a "),
    ],
)
def test_names_a_file_that_is_missing_or_damaged(name, file, damage, message, cifar100, svhn, capfd):
    directory = cifar100 if name == "cifar100" else svhn
    path = next(directory.rglob(file))
    damage(path)
    with pytest.raises(InputError, match=message) as caught:
        load(name, str(directory))
    assert file in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "ran" not in capfd.readouterr().out


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"X": np.zeros((32, 32, 3, 2), np.uint8)}, "expected a MATLAB 5 file with X and y, found: KeyError: 'y'"),
        ({"X": np.zeros((32, 32, 3, 2)), "y": [1, 2]}, r"expected X of shape \(32, 32, 3, N\), uint8, .*float64"),
        ({"X": np.zeros((32, 32, 3, 2), np.uint8), "y": [1, 2, 3]}, r"N numbers y, found \(32, 32, 3, 2\) uint8 and"),
        ({"X": np.zeros((32, 32, 3, 2), np.uint8), "y": [0, 1]}, "expected labels 1 to 10, found 0 to 1"),
        ({"X": np.zeros((32, 32, 3, 2), np.uint8), "y": [1.0, np.nan]}, "expected labels 1 to 10, found nan"),
        ({"X": np.zeros((32, 32, 3, 2), np.uint8), "y": "ab"}, "found: KeyError: 'y'"),
    ],
)
def test_names_what_is_wrong_in_a_mat_file(svhn, content, message):
    savemat(svhn / "test_32x32.mat", content)
    with pytest.raises(InputError, match=message) as caught:
        load("svhn", str(svhn))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["fashion-mnist", "cifar10", "cifar100", "svhn", "folder"])
@pytest.mark.filterwarnings("ignore")  # libraries may warn of what they read
def test_mutated_files_load_or_are_named(name, request):
    """100 mutations of each format: bytes flipped, stretches cut, doubled or overwritten."""
    fixture = {"fashion-mnist": "fashion", "cifar10": "cifar", "folder": "tiny"}.get(name, name)
    directory = request.getfixturevalue(fixture)
    directory = directory[0] if name == "folder" else directory
    chance = random.Random(name)
    files = [f for f in sorted(directory.rglob("*")) if f.is_file()]
    refused = 0
    for _ in range(100):
        file = chance.choice(files)
        before = file.read_bytes()
        file.write_bytes(mutated(before, chance))
        said = complaint(name, directory)
        if said is not None:
            assert str(directory) in said
            assert "\n" not in said
            refused += 1
        file.write_bytes(before)
    assert refused > 5
    load(name, str(directory))


def complaint(name, directory):
    try:
        load(name, str(directory))
    except InputError as error:
        return str(error)
    return None


def mutated(data, chance):
    content = bytearray(data)
    # Mostly in the header, where damage is most likely to matter.
    at = chance.randrange(min(len(content), 300)) if chance.random() < 0.7 else chance.randrange(len(content))
    kind = chance.randrange(4)
    if kind == 0:
        content[at] = chance.randrange(256)
    elif kind == 1:
        del content[at : at + chance.randint(1, 64)]
    elif kind == 2:
        content[at:at] = content[at : at + 16]
    else:
        content[at : at + 4] = chance.randbytes(4)
    return bytes(content)


def test_a_copy_on_a_device_is_the_same_data():
    data = load("digits", None)
    copy = data.to(torch.device("cpu"))
    for field in dataclasses.fields(data):
        ours, theirs = getattr(data, field.name), getattr(copy, field.name)
        assert ours == theirs if field.type in ("int", "bool") else torch.equal(ours[:], theirs[:])


def test_directories_without_the_files(tmp_path):
    for name in set(DATASETS) - {"digits"}:
        with pytest.raises(InputError, match=r"expected .*, found") as caught:
            load(name, str(tmp_path))
        assert "\n" not in str(caught.value)
