"""The loss of a training step for each kind of mini-batch."""

import torch
from torch.nn import functional

from lsam_hpc.optim.samples import conadv_loss
from lsam_hpc.train.batches import Batches
from lsam_hpc.train.builders import make_adversary, make_dataset, make_model, make_selection
from lsam_hpc.train.config import TrainConfig
from lsam_hpc.train.losses import batch_loss, sample_losses


def parts(**options):
    config = TrainConfig(**options)
    dataset = make_dataset(config)
    return config, dataset, make_model(config, dataset), Batches(dataset.train_x, dataset.train_y, 8, 0)


def test_the_loss_of_images_and_labels_is_the_mean_of_the_samples_losses():
    _, _, model, batches = parts()
    x, y = batch = next(batches)
    expected = functional.cross_entropy(model(x), y, reduction="none")
    torch.testing.assert_close(batch_loss(model, batch), expected.mean())
    losses = sample_losses(model, batch)
    torch.testing.assert_close(losses(None), expected)
    torch.testing.assert_close(losses(torch.tensor([5, 2])), expected[[5, 2]])


def test_adversarial_images_keep_to_the_range_of_bytes_and_count_half():
    config, dataset, model, batches = parts(adversarial="conadv", adversarial_epsilon=0.4)
    x, y, x_adv = batch = next(make_adversary(config, batches, model, dataset))
    low, high = dataset.train_x.limits
    assert ((x_adv - x).abs() <= 0.4 + 1e-6).all()
    assert (x_adv >= low).all()
    assert (x_adv <= high).all()
    assert (x == low).any()  # black pixels, which the limit holds
    torch.testing.assert_close(batch_loss(model, batch), conadv_loss(model, x, y, x_adv))


def test_selections_have_random_streams_of_their_own():
    config = TrainConfig(selection="ausam")
    states = [make_selection(config, seed).generator.get_state() for seed in (0, 0, 1)]
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])
    assert not torch.equal(states[0], torch.Generator().manual_seed(0).get_state())  # that of the mini-batches
    assert make_selection(TrainConfig(), 0) is None
