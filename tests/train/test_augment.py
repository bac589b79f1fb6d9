"""Augmentation: compared with loops over images, its distributions, and resuming mini-batches."""

import numpy as np
import pytest
import torch

from lsam_hpc import InputError
from lsam_hpc.train.augment import Augment, make_augment
from lsam_hpc.train.batches import Batches
from lsam_hpc.train.data import of_arrays


def chance(seed=0):
    return torch.Generator().manual_seed(seed)


def images(count=64, channels=3, height=6, width=8):
    return torch.rand(count, channels, height, width, generator=chance(9)) + 0.5  # no zeros


def crops(image, pad):
    """Every crop of one image and of its mirror image, by (down, right, mirrored)."""
    height, width = image.shape[1:]
    by_move = {}
    for mirrored in (0, 1):
        padded = np.pad(image[:, :, ::-1] if mirrored else image, ((0, 0), (pad, pad), (pad, pad)))
        for down in range(2 * pad + 1):
            for right in range(2 * pad + 1):
                by_move[down, right, mirrored] = padded[:, down : down + height, right : right + width]
    return by_move


@pytest.mark.parametrize(("pad", "mirror"), [(2, True), (2, False), (0, True)])
def test_every_image_is_a_crop_of_itself_and_all_crops_are_equally_likely(pad, mirror):
    x = images(6400)
    out = Augment(6, 8, pad, mirror=mirror)(x, chance()).numpy()
    counts = {}
    for before, after in zip(x.numpy(), out, strict=True):
        kinds = [kind for kind, crop in crops(before, pad).items() if np.array_equal(crop, after)]
        assert len(kinds) == 1
        counts[kinds[0]] = counts.get(kinds[0], 0) + 1
    cells = (2 * pad + 1) ** 2 * (1 + mirror)
    assert len(counts) == cells
    assert {mirrored for _, _, mirrored in counts} == ({0, 1} if mirror else {0})
    expected = 6400 / cells
    square = sum((n - expected) ** 2 / expected for n in counts.values())
    # chi-squared with cells - 1 degrees of freedom: beyond mean + 5 deviations with probability below 1e-4.
    assert square < cells - 1 + 5 * np.sqrt(2 * (cells - 1))


@pytest.mark.parametrize("cutout", [1, 3, 4, 6])
def test_a_square_around_any_pixel_is_blanked(cutout):
    x = images(3000)
    out = Augment(6, 8, cutout=cutout)(x, chance()).numpy()
    squares = {}
    for row in range(6):
        for column in range(8):
            mask = np.ones((6, 8), bool)
            top, start = row - cutout // 2, column - cutout // 2
            mask[max(top, 0) : top + cutout, max(start, 0) : start + cutout] = False
            squares[mask.tobytes()] = (row, column)
    seen = set()
    for before, after in zip(x.numpy(), out, strict=True):
        kept = after[0] != 0
        np.testing.assert_array_equal(after, before * kept)
        seen.add(squares[kept.tobytes()])
    assert len(seen) == len(set(squares.values()))  # 48 places, 3,000 images: one missed with probability below 1e-25


def test_an_image_of_one_channel_and_odd_sides():
    x = images(50, 1, 7, 5)
    out = Augment(7, 5, 1, mirror=True, cutout=3)(x, chance())
    assert out.shape == x.shape
    assert set(out[out != 0].tolist()) <= set(x.flatten().tolist())


def test_options_of_make_augment():
    digits, cifar = torch.Size((10, 1, 8, 8)), torch.Size((10, 3, 32, 32))
    assert make_augment("none", 0, cifar, mirror=True) is None
    for shape, mirror, pad in ((digits, False, 1), (cifar, True, 4), (torch.Size((1, 1, 28, 28)), True, 4)):
        augment = make_augment("standard", 2, shape, mirror=mirror)
        assert (augment._pad, augment._mirror, augment._cutout) == (pad, mirror, 2)
    cutout_only = make_augment("none", 5, cifar, mirror=True)
    assert (cutout_only._pad, cutout_only._mirror, cutout_only._cutout) == (0, False, 5)
    with pytest.raises(InputError, match="--cutout: expected at most the images' side, 8, found 9"):
        make_augment("none", 9, digits, mirror=False)


def dataset():
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 256, (50, 3, 8, 8), np.uint8), np.arange(50) % 10
    return of_arrays((x, y), (x[:10], y[:10]))


def test_batches_and_their_augmentation_resume_where_they_were_saved():
    data = dataset()
    augment = Augment(8, 8, 2, mirror=True, cutout=3)
    whole, saved, other = (Batches(data.train_x, data.train_y, 12, seed, augment) for seed in (7, 7, 8))
    order = [next(whole) for _ in range(20)]
    for _ in range(7):
        next(saved)
    other.load_state_dict(saved.state_dict())
    for x, y in order[7:]:
        again_x, again_y = next(other)
        assert torch.equal(again_x, x)
        assert torch.equal(again_y, y)
    assert not torch.equal(order[0][0], order[4][0])


def test_augmentation_does_not_change_the_order_of_images():
    data = dataset()
    plain = Batches(data.train_x, data.train_y, 12, 3)
    changed = Batches(data.train_x, data.train_y, 12, 3, Augment(8, 8, 1, mirror=True))
    for _ in range(9):
        (x, y), (other_x, other_y) = next(plain), next(changed)
        assert torch.equal(y, other_y)
        assert x.dtype == other_x.dtype == torch.float32
        assert not torch.equal(x, other_x)


def test_ranks_augment_the_same_image_differently():
    image = np.random.default_rng(0).integers(0, 256, (1, 3, 8, 8), np.uint8).repeat(50, 0)
    data = of_arrays((image, np.arange(50)), (image, np.arange(50)))
    augment = Augment(8, 8, 2, mirror=True)
    first, second, again = (next(Batches(data.train_x, data.train_y, 50, seed, augment))[0] for seed in (0, 1, 0))
    assert torch.equal(first, again)
    assert not torch.equal(first, second)
