"""GPT against transformers' GPT-2 with the same weights."""

import math

import pytest
import torch
from torch.nn import functional

from lsam_hpc import InputError
from lsam_hpc.train.gpt import GPT
from lsam_hpc.train.models import DEFAULT_MODEL, MODELS, TEXT_MODELS, build
from tests.helpers.frameworks import package


def random_gpt(**sizes):
    torch.manual_seed(0)
    model = GPT(12, 256, **sizes)
    with torch.no_grad():  # larger than at the start, so that every part matters
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return model.eval()


def gpt2_with_weights_of(model, width, depth, heads):
    transformers = package("transformers")
    config = transformers.GPT2Config(
        vocab_size=256, n_positions=12, n_embd=width, n_layer=depth, n_head=heads, tie_word_embeddings=False
    )
    theirs = transformers.GPT2LMHeadModel(config).eval()
    names = {"norm1": "ln_1", "attention.qkv": "attn.c_attn", "attention.out": "attn.c_proj"}
    names |= {"norm2": "ln_2", "wide": "mlp.c_fc", "narrow": "mlp.c_proj"}
    state = {
        "transformer.wte.weight": model.tokens.weight,
        "transformer.wpe.weight": model.positions.weight,
        "transformer.ln_f.weight": model.norm.weight,
        "transformer.ln_f.bias": model.norm.bias,
        "lm_head.weight": model.head.weight,
    }
    for number, block in enumerate(model.blocks):
        for name, value in block.named_parameters():
            ours, _, kind = name.rpartition(".")
            matrix = kind == "weight" and value.ndim == 2  # Conv1D stores its transpose
            state[f"transformer.h.{number}.{names[ours]}.{kind}"] = value.T if matrix else value
    missing, unexpected = theirs.load_state_dict(state, strict=False)
    assert not unexpected
    assert all(name.endswith(("attn.bias", "attn.masked_bias")) for name in missing)
    return theirs


def test_logits_are_those_of_gpt2():
    sizes = {"width": 24, "depth": 3, "heads": 2}
    model = random_gpt(**sizes)
    tokens = torch.randint(256, (5, 12))
    with torch.no_grad():
        theirs = gpt2_with_weights_of(model, **sizes)(tokens).logits
        ours = model(tokens)
    assert ours.shape == (5, 256, 12)
    assert theirs.std() > 0.5
    torch.testing.assert_close(ours.transpose(1, 2), theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("place", [0, 5, 11])
def test_a_byte_changes_no_earlier_prediction(place):
    model = random_gpt(width=24, depth=3, heads=2)
    tokens = torch.randint(256, (3, 12))
    changed = tokens.clone()
    changed[:, place] = (changed[:, place] + 1) % 256
    with torch.no_grad():
        before, after = model(tokens), model(changed)
    assert torch.equal(before[..., :place], after[..., :place])
    assert (before[..., place:] != after[..., place:]).flatten(0, 1).any(0).all()


@pytest.mark.parametrize(
    ("name", "width", "depth", "count"), [("gpt-tiny", 96, 4, 508_992), ("gpt-small", 384, 6, 10_893_312)]
)
def test_sizes_and_initialization(name, width, depth, count):
    torch.manual_seed(0)
    model = build(name, "text", (128,), 256)
    of_layer = 12 * width**2 + 13 * width  # Kaplan et al. 2020 (arXiv 2001.08361), table 1, and biases and norms
    assert (
        sum(p.numel() for p in model.parameters()) == depth * of_layer + (256 + 128 + 256) * width + 2 * width == count
    )
    first = model.blocks[0]
    for weight in (model.tokens.weight, model.positions.weight, model.head.weight, first.attention.qkv.weight):
        assert weight.std().item() == pytest.approx(0.02, rel=0.03)
    for weight in (first.attention.out.weight, first.narrow.weight):
        assert weight.std().item() == pytest.approx(0.02 / math.sqrt(2 * depth), rel=0.03)
    with torch.no_grad():
        loss = functional.cross_entropy(model(torch.randint(256, (4, 128))), torch.randint(256, (4, 128)))
    assert loss.item() == pytest.approx(math.log(256), abs=0.1)


def test_learns_which_byte_follows_which():
    torch.manual_seed(0)
    model = build(None, "text", (16,), 256)
    after = torch.randperm(256)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(60):
        x = torch.randint(256, (32, 16))
        with torch.autocast("cpu", torch.bfloat16, enabled=step % 2 == 0):
            loss = functional.cross_entropy(model(x), after[x])
        assert loss.dtype == torch.float32
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert (model(x).argmax(1) == after[x]).float().mean() > 0.9


def test_more_bytes_than_positions():
    with pytest.raises(InputError, match="GPT: expected at most 12 tokens, found 13"):
        random_gpt(width=8, depth=1, heads=1)(torch.zeros(1, 13, dtype=torch.int64))


def test_models_are_for_text_or_images():
    assert DEFAULT_MODEL["text"] in TEXT_MODELS
    assert not MODELS.keys() & TEXT_MODELS.keys()
    with pytest.raises(InputError, match=r"--model: expected one of gpt-tiny, .* for windows of text, found resnet18"):
        build("resnet18", "text", (32,), 256)
    with pytest.raises(InputError, match=r"--model: expected one of mlp, cnn, .* for images, found gpt-tiny"):
        build("gpt-tiny", "digits", (1, 8, 8), 10)
