"""Hugging Face's Trainer takes the steps of a plain loop, bit for bit, on a small causal model."""

import pytest
import torch
from torch.utils.data import DataLoader, default_collate

from lsam_hpc import SAM, InputError
from lsam_hpc.optim import LocalCenter, LocalLSAM
from lsam_hpc.optim.flat import FlatVector
from tests.helpers.frameworks import package

pytestmark = pytest.mark.slow("imports transformers")
STEPS, LENGTH, WORDS = 6, 10, 32


@pytest.fixture(scope="module")
def hf():
    return package("transformers")


@pytest.fixture(scope="module")
def adapter(hf):
    return package("lsam_hpc.adapters.huggingface")


def network(hf, dropout=0.0):
    hf.set_seed(0)
    drops = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), dropout)
    config = hf.GPT2Config(
        n_embd=16, n_layer=1, n_head=2, vocab_size=WORDS, n_positions=LENGTH, bos_token_id=0, eos_token_id=0, **drops
    )
    return hf.GPT2LMHeadModel(config)


def text(count):
    generator = torch.Generator().manual_seed(1)
    words = torch.randint(0, WORDS, (count, LENGTH), generator=generator)
    return [{"input_ids": w, "labels": w} for w in words]


def sam(model, **options):
    return SAM(torch.optim.AdamW(model.parameters(), lr=0.01), rho=0.2, **options)


def chain(model, **options):
    """Return a chain around a center of its own."""
    params = list(model.parameters())
    center = LocalCenter(FlatVector(params, device="cpu").gather(params).clone())
    return LocalLSAM(torch.optim.AdamW(params, lr=0.01), center, rho=0.2, pull=0.3, period=2, **options)


def trainer_of(adapter, hf, model, opt, folder, *, samples=4 * STEPS, epochs=1, **options):
    settings = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 4,
        "num_train_epochs": epochs,
        "max_grad_norm": 0.0,
        "lr_scheduler_type": "linear",
        "train_sampling_strategy": "sequential",
        "use_cpu": True,
        "report_to": "none",
        "disable_tqdm": True,
        "logging_strategy": "steps",
        "logging_steps": 1,
        "save_strategy": "no",
        **options,
    }
    with adapter.one_process():
        args = hf.TrainingArguments(**settings)
        data = text(samples)
        trainer = adapter.LSAMTrainer(model, args, train_dataset=data, eval_dataset=data[:8], optimizers=(opt, None))
    trainer.model_accepts_loss_kwargs = False  # the loss is the mean over a micro-batch
    return trainer


def plain(hf, make, *, parts=1, clip=0.0, epochs=1, dtype=None, dropout=0.0, samples=4 * STEPS, **options):
    """Train in a loop of ten lines, with `parts` micro-batches a step; return the model, its optimizer and losses."""
    model = network(hf, dropout)
    opt = make(model, **options)
    batches = list(DataLoader(text(samples), 4, collate_fn=default_collate)) * epochs
    windows = [batches[i : i + parts] for i in range(0, len(batches), parts)]
    schedule = hf.get_linear_schedule_with_warmup(opt, 0, len(windows))

    def before_descent(*_):
        if clip:
            torch.nn.utils.clip_grad_norm_(model.parameters(), clip)

    opt.base.register_step_pre_hook(before_descent)
    losses = []
    model.train()
    for window in windows:
        passes = []

        def closure(window=window, passes=passes):
            opt.zero_grad()
            total = 0.0
            for batch in window:
                with torch.autocast("cpu", torch.bfloat16, enabled=dtype is not None):
                    loss = model(**batch).loss / parts
                loss.backward()
                total += loss.detach()
            passes.append(total)
            return total

        opt.step(closure)
        schedule.step()
        losses.append(float(passes[0]))
    return model, opt, losses


def assert_same(model, other):
    for (name, left), right in zip(model.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(left, right), name


@pytest.mark.parametrize(("ascent", "parts"), [("sam", 1), ("sam", 2), ("dp-sat", 2), ("msam", 2)])
def test_accumulation_clipping_and_the_logged_loss(ascent, parts, adapter, hf, tmp_path):
    model = network(hf)
    clip = 0.0 if ascent == "dp-sat" else 0.5  # where the loop clips, dp-sat has kept the gradient
    make = sam if ascent != "msam" else lambda m, **o: SAM(torch.optim.SGD(m.parameters(), 0.1, 0.9), rho=0.2, **o)
    trainer = trainer_of(
        adapter, hf, model, make(model, ascent=ascent), tmp_path, gradient_accumulation_steps=parts, max_grad_norm=clip
    )
    trainer.train()
    other, _, losses = plain(hf, make, parts=parts, clip=clip, ascent=ascent)
    assert_same(model, other)
    logged = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert logged == pytest.approx(losses, abs=1e-4)
    assert trainer.state.global_step == STEPS // parts


def test_bfloat16_and_a_plain_optimizer(adapter, hf, tmp_path):
    model = network(hf)
    trainer_of(adapter, hf, model, sam(model), tmp_path, bf16=True).train()
    assert_same(model, plain(hf, sam, dtype=torch.bfloat16)[0])
    left, right = network(hf), network(hf)
    trainer_of(adapter, hf, left, torch.optim.SGD(left.parameters(), 0.1), tmp_path).train()
    trainer_of(adapter, hf, right, SAM(torch.optim.SGD(right.parameters(), 0.1), rho=0.0), tmp_path).train()
    assert_same(left, right)


def test_dropout_repeats_its_masks_if_asked(adapter, hf, tmp_path):
    ends = []
    for same in (False, True):
        model = network(hf, dropout=0.2)
        trainer = trainer_of(adapter, hf, model, sam(model, same_random_numbers=same), tmp_path)
        draws = []
        model.transformer.drop.register_forward_hook(lambda m, i, o, draws=draws: draws.append(o == 0))
        trainer.train()
        ends.append([torch.equal(a, b) for a, b in zip(draws[::2], draws[1::2], strict=True)])
    assert ends == [[False] * STEPS, [True] * STEPS]


def sample_of(opt):
    return [p.detach().clone() for p in opt.parameters]


def equal(tensors, others):
    return all(torch.equal(a, b) for a, b in zip(tensors, others, strict=True))


def test_the_center_is_evaluated_and_saved_and_a_resumed_training_continues(adapter, hf, tmp_path):
    model = network(hf)
    opt = chain(model)
    options = {"save_strategy": "steps", "save_steps": 3, "eval_strategy": "steps", "eval_steps": 3}
    trainer = trainer_of(adapter, hf, model, opt, tmp_path, **options)
    evaluated, samples = [], []

    class Probe(hf.TrainerCallback):
        def on_prediction_step(self, *_, **__):
            evaluated.append(equal(sample_of(opt), opt.read_center()))

        def on_evaluate(self, *_, **__):
            samples.append((sample_of(opt), opt.read_center()))

    trainer.add_callback(Probe())
    trainer.train()
    assert evaluated
    assert all(evaluated)
    (sample, center), _ = samples
    assert not equal(sample, center)
    saved = hf.GPT2LMHeadModel.from_pretrained(tmp_path / "checkpoint-3")
    assert equal(list(saved.parameters()), center)
    assert equal(sample_of(opt), opt.read_center())
    _, reference, _ = plain(hf, chain)
    assert equal(samples[1][0], sample_of(reference))
    assert equal(sample_of(opt), reference.read_center())

    again = hf.GPT2LMHeadModel.from_pretrained(tmp_path / "checkpoint-3")  # a center in memory is not saved elsewhere
    resumed = chain(again)
    trainer = trainer_of(adapter, hf, again, resumed, tmp_path / "again", **options)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert trainer.state.global_step == STEPS
    assert equal(samples[1][1], resumed.read_center())
    assert equal(*(chain.state_dict()["lsam"]["anchor"].values() for chain in (resumed, opt)))


def test_the_best_checkpoint_stays_loaded(adapter, hf, tmp_path):
    model = network(hf)
    options = {"save_strategy": "steps", "save_steps": 3, "eval_strategy": "steps", "eval_steps": 3}
    best_is_first = {"load_best_model_at_end": True, "metric_for_best_model": "loss", "greater_is_better": True}
    trainer = trainer_of(adapter, hf, model, chain(model), tmp_path, **best_is_first, **options)
    trainer.train()
    assert trainer.state.best_model_checkpoint.endswith("checkpoint-3")
    best = hf.GPT2LMHeadModel.from_pretrained(trainer.state.best_model_checkpoint)
    assert_same(model, best)


def test_what_cannot_work_is_refused(adapter, hf, tmp_path):
    model = network(hf)
    trainer = trainer_of(adapter, hf, model, sam(model), tmp_path)
    trainer.accelerator.scaler = torch.amp.GradScaler("cpu")
    with pytest.raises(InputError, match="expected bf16 or float32 with SAM and LSAM, found fp16"):
        trainer.train()
    with pytest.raises(RuntimeError, match="works by step"):
        trainer_of(adapter, hf, model, sam(model, ascent="gam"), tmp_path).train()
