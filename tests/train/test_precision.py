"""bfloat16 passes and channels last: the same training, up to rounding."""

import torch

from lsam_hpc.optim.center import LocalCenter
from lsam_hpc.optim.lsam import LocalLSAM
from lsam_hpc.train.batches import Batches
from lsam_hpc.train.builders import make_adversary, make_dataset, make_model
from lsam_hpc.train.config import TrainConfig
from lsam_hpc.train.losses import batch_loss, sample_losses


def trained(steps=5, *, channels_last=False, bf16=False):
    """Return the center, the sample and the losses of a chain."""
    config = TrainConfig(model="cnn-tiny", batch_size=48, augment="standard")
    dataset = make_dataset(config)
    model = make_model(config, dataset).to(
        memory_format=torch.channels_last if channels_last else torch.contiguous_format
    )
    batches = Batches(dataset.train_x, dataset.train_y, 48, 0, channels_last=channels_last)
    center = LocalCenter(torch.cat([t.detach().reshape(-1) for t in (*model.parameters(), *statistics(model))]))
    base = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    opt = LocalLSAM(base, center, rho=0.1, pull=0.5, period=2, model=model)
    losses = []
    for _ in range(steps):
        batch = next(batches)

        def closure():
            opt.zero_grad()
            loss = batch_loss(model, batch, bf16=bf16)  # noqa: B023 - called in this step
            loss.backward()
            return loss

        losses.append(opt.step(closure).detach())
    assert model[3].weight.is_contiguous() != channels_last  # the second convolution's
    assert {t.dtype for p in model.parameters() for t in (p, p.grad) if t is not None} == {torch.float32}
    return (
        center.vector,
        torch.cat([p.detach().reshape(-1) for p in model.parameters()]),
        torch.stack(losses or [torch.zeros(())]),
    )


def statistics(model):
    return [s for m in model if isinstance(m, torch.nn.BatchNorm2d) for s in (m.running_mean, m.running_var)]


def test_channels_last_changes_the_order_in_memory_only():
    for plain, last in zip(trained(), trained(channels_last=True), strict=True):
        torch.testing.assert_close(last, plain, rtol=1e-4, atol=1e-5)


def test_bf16_trains_float32_weights_like_float32():
    (_, plain, losses), (_, half, half_losses) = trained(), trained(bf16=True)
    start = trained(0)[1]
    torch.testing.assert_close(half_losses, losses, rtol=0.02, atol=0)
    assert not torch.equal(half_losses, losses)
    assert half_losses.dtype == torch.float32
    moved, half_moved = plain - start, half - start
    assert torch.nn.functional.cosine_similarity(moved, half_moved, dim=0) > 0.99
    assert not torch.equal(half, half.bfloat16().float())  # the weights are not rounded


def test_every_kind_of_loss_has_bf16_passes():
    config = TrainConfig(model="cnn-tiny", adversarial="conadv")
    dataset = make_dataset(config)
    model = make_model(config, dataset)
    batches = Batches(dataset.train_x, dataset.train_y, 16, 0)
    x, y, _ = batch = next(make_adversary(config, batches, model, dataset))
    dtypes = []
    model[0].register_forward_hook(lambda *values: dtypes.append(values[-1].dtype))
    for bf16, dtype in ((True, torch.bfloat16), (False, torch.float32)):
        dtypes.clear()
        batch_loss(model, batch, bf16=bf16)
        losses = sample_losses(model, (x, y), bf16=bf16)
        assert losses(None).dtype == losses(torch.tensor([0, 3])).dtype == torch.float32
        assert dtypes
        assert set(dtypes) == {dtype}
