"""Lightning's Trainer takes the steps of a plain loop, bit for bit."""

import warnings
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from lsam_hpc import InputError
from tests.helpers.frameworks import package


@pytest.fixture(scope="module")
def lt():
    return package("tests.helpers.lightning_loop")


@pytest.fixture(autouse=True)
def _quiet():
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning")
        yield


@pytest.mark.parametrize("callback", [False, True])
def test_a_closure_is_passed_by_lightning_itself(lt, callback, tmp_path):
    module = lt.Net()
    lt.fit(module, tmp_path, callback=callback)
    lt.assert_same(module, lt.plain()[0])


@pytest.mark.parametrize("algorithm", ["norm", "value"])
def test_accumulation_and_clipping(lt, algorithm, tmp_path):
    limit = 0.3 if algorithm == "norm" else 0.05
    clip = {
        "norm": lambda p: nn.utils.clip_grad_norm_(p, limit),
        "value": lambda p: nn.utils.clip_grad_value_(p, limit),
    }[algorithm]
    module = lt.Net()
    options = {"gradient_clip_val": limit, "gradient_clip_algorithm": algorithm, "accumulate_grad_batches": 3}
    trainer = lt.fit(module, tmp_path, **options)
    lt.assert_same(module, lt.plain(parts=3, clip=clip)[0])
    assert trainer.global_step == len(module.seen) == lt.STEPS // 3
    module = lt.Net()
    lt.fit(module, tmp_path, accumulate_grad_batches=3)
    lt.assert_same(module, lt.plain(parts=3)[0])


@pytest.mark.parametrize("ascent", ["dp-sat", "msam", "gam"])
def test_other_ascents_accumulate_at_one_point(lt, ascent, tmp_path):
    module = lt.Net(ascent=ascent)
    lt.fit(module, tmp_path, accumulate_grad_batches=2)
    lt.assert_same(module, lt.plain(parts=2, ascent=ascent)[0])


def test_bfloat16(lt, tmp_path):
    module = lt.Net()
    lt.fit(module, tmp_path, precision="bf16-mixed", accumulate_grad_batches=2)
    lt.assert_same(module, lt.plain(parts=2, dtype=torch.bfloat16)[0])


@pytest.mark.parametrize("scale", [2.0**10, 2.0**19])
def test_float16_with_a_grad_scaler(lt, scale, tmp_path):
    """The larger scale overflows: some steps are skipped, and the scale falls, as in the plain loop."""
    scalers = [torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=3) for _ in range(2)]
    module = lt.Net()
    options = {"gradient_clip_val": 0.3, "accumulate_grad_batches": 2}
    lt.fit(module, tmp_path, plugins=[lt.lightning.plugins.MixedPrecision("16-mixed", "cpu", scalers[0])], **options)
    model, _ = lt.plain(
        parts=2, dtype=torch.float16, scaler=scalers[1], clip=lambda p: nn.utils.clip_grad_norm_(p, 0.3)
    )
    lt.assert_same(module, model)
    assert scalers[0].get_scale() == scalers[1].get_scale()
    assert (scalers[0].get_scale() < scale) == (scale == 2.0**19)
    assert not torch.equal(module.net[0].weight, lt.network()[0].weight)


@pytest.mark.parametrize("scaled", [False, True])
def test_manual_optimization(lt, scaled, tmp_path):
    scalers = [torch.amp.GradScaler("cpu", init_scale=2.0**10) for _ in range(2)] if scaled else [None, None]
    plugins = [lt.lightning.plugins.MixedPrecision("16-mixed", "cpu", scalers[0])] if scaled else []
    module = lt.Net(manual=True)
    trainer = lt.fit(module, tmp_path, plugins=plugins)
    model, _ = lt.plain(parts=2, whole=4, scaler=scalers[1], dtype=torch.float16 if scaled else None)
    lt.assert_same(module, model)
    assert trainer.global_step == len(module.seen) == lt.STEPS


def test_only_the_pass_at_x_is_logged(lt, tmp_path):
    module = lt.Net()
    trainer = lt.fit(module, tmp_path)
    losses = lt.plain()[1]
    assert torch.equal(torch.stack(module.logged), torch.stack(losses))
    torch.testing.assert_close(trainer.callback_metrics["loss_epoch"], torch.stack(losses).mean())
    assert torch.equal(trainer.callback_metrics["again"], losses[-1])
    assert "log" not in vars(module)
    assert "optimizer_step" not in vars(trainer.precision_plugin)


@pytest.mark.parametrize("weights_only", [False, True])
def test_the_center_is_validated_and_saved(lt, weights_only, tmp_path):
    module, probe = lt.Net(lt.chain), lt.Probe()
    save = lt.lightning.callbacks.ModelCheckpoint(dirpath=tmp_path, save_weights_only=weights_only, filename="one")
    trainer = lt.fit(module, tmp_path, callbacks=[probe, save], enable_checkpointing=True, validate=True)
    assert probe.seen
    saved = torch.load(tmp_path / "one.ckpt", weights_only=True)
    names = [*dict(module.net.named_parameters()), "1.running_mean", "1.running_var"]
    lt.assert_equal([saved["state_dict"]["net." + name] for name in names], probe.center)
    lt.assert_equal(lt.in_module(module), probe.center)
    assert trainer.callback_metrics
    model, _ = lt.plain(lt.chain)
    lt.assert_equal([*model.parameters(), model[1].running_mean, model[1].running_var], probe.sample)


def test_a_resumed_fit_continues_bit_for_bit(lt, tmp_path):
    def save():
        return lt.lightning.callbacks.ModelCheckpoint(dirpath=tmp_path, save_top_k=-1, filename="{epoch}")

    whole, resumed = lt.Net(lt.chain), lt.Net(lt.chain)
    lt.fit(whole, tmp_path, max_epochs=3, callbacks=[save()], enable_checkpointing=True)
    lt.fit(resumed, tmp_path, max_epochs=3, ckpt_path=tmp_path / "epoch=0.ckpt")
    assert resumed.trainer.global_step == 3 * lt.STEPS
    lt.assert_equal(lt.in_module(whole), lt.in_module(resumed))
    left, right = (module.opt.state_dict()["lsam"] for module in (whole, resumed))
    lt.assert_equal(*([*state["sample"].values(), *state["anchor"].values()] for state in (left, right)))
    assert left["exchanges"] == right["exchanges"] == lt.STEPS


def test_what_cannot_work_is_refused(lt, tmp_path):
    with pytest.raises(
        InputError, match="expected devices=1, on each rank a Trainer of its own, found SimpleNamespace"
    ):
        lt.LSAMCallback().setup(SimpleNamespace(strategy=SimpleNamespace()), None, "fit")
    with pytest.raises(InputError, match="expected accumulate_grad_batches=1, found 2"):
        lt.fit(lt.Net(same_random_numbers=True), tmp_path, accumulate_grad_batches=2)

    class Skips(lt.Net):
        def training_step(self, batch, batch_idx):
            return None if batch_idx == 2 else super().training_step(batch, batch_idx)

    for parts in (1, 2):
        with pytest.raises(InputError, match="training_step: expected a loss for every mini-batch with SAM"):
            lt.fit(Skips(), tmp_path, accumulate_grad_batches=parts)

    class Saves(lt.lightning.Callback):
        def on_validation_epoch_end(self, trainer, pl_module):
            if not trainer.sanity_checking:
                trainer.save_checkpoint(tmp_path / "within.ckpt")

    with pytest.raises(InputError, match="expected a call outside of the validation"):
        lt.fit(lt.Net(lt.chain), tmp_path, callbacks=[Saves()], validate=True)


def test_another_optimizer_is_left_alone(lt, tmp_path):
    def sgd(model):
        return torch.optim.SGD(model.parameters(), lr=0.1)

    with_callback, without = lt.Net(sgd), lt.Net(sgd)
    lt.fit(with_callback, tmp_path)
    lt.fit(without, tmp_path, callback=False)
    lt.assert_equal(lt.in_module(with_callback), lt.in_module(without))
