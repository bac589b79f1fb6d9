"""Models: sizes as in the papers, shapes, training."""

import sys

import pytest
import torch
from torch.nn import functional

from lsam_hpc import InputError
from lsam_hpc.train.convnets import wide_resnet
from lsam_hpc.train.models import DEFAULT_MODEL, MODELS, TEXT_MODELS, build
from lsam_hpc.train.vit import VisionTransformer

CIFAR = (3, 32, 32)


def size(model):
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("depth", "factor", "millions"),
    [
        (40, 1, 0.6),
        (40, 2, 2.2),
        (40, 4, 8.9),
        (40, 8, 35.7),
        (28, 10, 36.5),
        (28, 12, 52.5),
        (22, 8, 17.2),
        (16, 8, 11.0),
        (16, 10, 17.1),
    ],
)
def test_wide_resnets_have_the_paper_s_sizes(depth, factor, millions):
    with torch.device("meta"):
        assert round(size(wide_resnet(CIFAR, 10, depth, factor)) / 1e6, 1) == millions  # its tables 2 and 4


def test_a_wide_block_s_shortcut_is_the_input_or_starts_after_the_first_relu():
    torch.manual_seed(0)
    model = wide_resnet(CIFAR, 10, 16, 2).eval()  # BatchNorm is the identity before training
    negative = -torch.rand(2, 16, 8, 8)  # a ReLU sets it to 0
    widens, same = model[1], model[2]
    assert widens(negative).abs().max() == 0
    assert widens(-negative).shape == (2, 32, 8, 8)
    again = -torch.rand(2, 32, 8, 8)
    assert torch.equal(same(again), again)


def test_vision_transformers_have_the_papers_sizes():
    with torch.device("meta"):
        base = VisionTransformer((3, 224, 224), 1000, patch=16, width=768, depth=12, heads=12)
        tiny = VisionTransformer((3, 224, 224), 1000, patch=16, width=192, depth=12, heads=3)
    assert round(size(base) / 1e6) == 87  # ViT-Base: 86 million, 86.6 with ImageNet's head
    assert round(size(tiny) / 1e6, 1) == 5.7  # DeiT-Ti in Touvron et al. 2021; 5,717,416 in its released weights
    assert size(tiny) == 5_717_416


def test_a_vision_transformer_is_torch_s_encoder():
    """The same weights in torch's own layers give the same outputs."""
    torch.manual_seed(0)
    ours = VisionTransformer((2, 8, 12), 5, patch=4, width=24, depth=2, heads=3).double()
    for p in ours.parameters():
        torch.nn.init.normal_(p, std=0.3)
    x = torch.randn(3, 2, 8, 12, dtype=torch.float64)
    layer = torch.nn.TransformerEncoderLayer(24, 3, 96, 0.0, "gelu", batch_first=True, norm_first=True)
    theirs = torch.nn.TransformerEncoder(layer, 2, norm=torch.nn.LayerNorm(24), enable_nested_tensor=False).double()
    for ours_layer, theirs_layer in zip(ours.layers, theirs.layers, strict=True):
        theirs_layer.self_attn.in_proj_weight.data, theirs_layer.self_attn.in_proj_bias.data = (
            ours_layer.attention.qkv.weight,
            ours_layer.attention.qkv.bias,
        )
        theirs_layer.self_attn.out_proj.load_state_dict(ours_layer.attention.out.state_dict())
        for name, part in (
            ("norm1", ours_layer.norm1),
            ("norm2", ours_layer.norm2),
            ("linear1", ours_layer.wide),
            ("linear2", ours_layer.narrow),
        ):
            getattr(theirs_layer, name).load_state_dict(part.state_dict())
    theirs.norm.load_state_dict(ours.norm.state_dict())
    squares = x.unfold(2, 4, 4).unfold(3, 4, 4).permute(0, 2, 3, 1, 4, 5).reshape(3, 6, -1)  # row by row
    tokens = squares @ ours.patches.weight.reshape(24, -1).T + ours.patches.bias
    tokens = torch.cat([ours.token.expand(3, 1, 24), tokens], 1) + ours.positions
    torch.testing.assert_close(ours(x), ours.head(theirs(tokens)[:, 0]), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("mlp", 3072 * 128 + 128 + 128 * 128 + 128 + 1290),
        ("cnn", 57_130),
        ("cnn-tiny", 3 * 16 * 9 + 32 + 16 * 32 * 9 + 64 + 32 * 64 * 9 + 128 + 650),
        ("resnet18", 11_173_962),  # in every published implementation for CIFAR
        ("wrn16-8", 10_961_370),  # 11.0 million in the paper
        ("vgg16", 14_728_266 - 4_224),  # as published, less the convolutions' biases, which BatchNorm cancels
        ("vit", 5_717_416 - 192 * 3 * (16**2 - 4**2) - 192 * (196 - 64) - 193 * 990),  # DeiT-Ti, other patches, classes
    ],
)
def test_models_have_their_known_size(name, count):
    assert size(MODELS[name](CIFAR, 10)) == count


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 32, 32), (3, 64, 64)])
@pytest.mark.parametrize("name", MODELS)
def test_models_take_images_of_many_sizes(name, shape):
    model = build(name, "any", shape, 7)
    assert model.training
    assert model.eval()(torch.randn(3, *shape)).shape == (3, 7)


def test_vgg16_halves_its_images_five_times():
    sizes = []
    model = MODELS["vgg16"](CIFAR, 10).eval()
    for layer in model:
        if isinstance(layer, torch.nn.MaxPool2d):
            layer.register_forward_hook(lambda _, __, out: sizes.append(tuple(out.shape[1:])))
    model(torch.zeros(1, *CIFAR))
    assert sizes == [(64, 16, 16), (128, 8, 8), (256, 4, 4), (512, 2, 2), (512, 1, 1)]


@pytest.mark.parametrize(("name", "steps"), [("mlp", 30), ("cnn", 60), ("vit", 25)])
def test_overfits_32_images(name, steps):
    torch.manual_seed(0)
    x, y = torch.randn(32, 3, 8, 8), torch.randint(10, (32,))
    model = build(name, "any", (3, 8, 8), 10)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3 if name == "vit" else 1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    assert (model(x).argmax(1) == y).all()


@pytest.mark.parametrize("name", ["wrn16-8", "vgg16", "vit", "resnet18"])
def test_every_parameter_has_a_gradient_and_a_second_derivative(name):
    """As the ascent and the landscape programs need."""
    torch.manual_seed(0)
    model = MODELS[name]((3, 8, 8), 4).double()
    params = list(model.parameters())
    x, y = torch.randn(4, 3, 8, 8, dtype=torch.float64), torch.arange(4)
    grads = torch.autograd.grad(functional.cross_entropy(model(x), y), params, create_graph=True)
    assert all(grad.abs().max() > 0 for grad in grads)
    product = torch.autograd.grad(sum((grad * grad.detach()).sum() for grad in grads), params)
    assert all(torch.isfinite(part).all() for part in product)


def test_each_data_set_has_a_model():
    assert size(build(None, "digits", (1, 8, 8), 10)) == size(MODELS["mlp"]((1, 8, 8), 10))
    assert size(build(None, "mine:load", (1, 8, 8), 10)) == size(MODELS["cnn"]((1, 8, 8), 10))
    assert set(DEFAULT_MODEL.values()) <= {*MODELS, *TEXT_MODELS}


@pytest.fixture
def write_module(tmp_path, monkeypatch):
    """A function that writes a module into the working directory and returns its name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))

    def write(text, name="my_own_model"):
        (tmp_path / f"{name}.py").write_text(text)
        monkeypatch.delitem(sys.modules, name, raising=False)
        return name

    return write


MODULE = """from torch import nn
def make(shape, classes): return nn.Sequential(nn.Flatten(), nn.Linear(shape[0] * shape[1] * shape[2], classes))
def small(shape, classes): return nn.Sequential(nn.Flatten(), nn.Linear(7, classes))
def other(shape, classes): return nn.Sequential(nn.Flatten(), nn.Linear(shape[0] * shape[1] * shape[2], 3))
def none(shape, classes): return None
def fails(shape, classes): raise KeyError("so")
number = 3
"""


def test_a_user_model(write_module):
    assert size(build(f"{write_module(MODULE)}:make", "digits", (1, 8, 8), 10)) == 650


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("my_own_model:small", r"--model my_own_model:small: expected one for images of \(1, 8, 8\), found RuntimeEr"),
        ("my_own_model:other", r"expected outputs of shape \(2, 10\) for two images, found \(2, 3\)"),
        ("my_own_model:none", "--model: expected an nn.Module from my_own_model:none, found NoneType"),
        ("my_own_model:fails", r"--model: expected my_own_model:fails to return, found KeyError: 'so' \(.*l.py:6\)"),
        ("my_own_model:number", "--model: expected a function, found int my_own_model:number"),
        ("my_own_model:nothing", "--model: expected a function that can be imported, found my_own_model:nothing: At"),
        ("no_such_module_here:f", "--model: expected a function that can be imported, found .*ModuleNotFoundError"),
        ("my_own_model:", "--model: expected MODULE:FUNCTION, found 'my_own_model:'"),
        (":make", "--model: expected MODULE:FUNCTION, found ':make'"),
        ("..:make", "--model: expected a function that can be imported, found "),
    ],
)
def test_a_bad_user_model_is_reported_in_one_line(write_module, spec, message):
    write_module(MODULE)
    with pytest.raises(InputError, match=message) as caught:
        build(spec, "digits", (1, 8, 8), 10)
    assert "\n" not in str(caught.value)


def test_a_module_that_cannot_be_read(write_module):
    write_module("def f(:\n")
    with pytest.raises(InputError, match="my_own_model:f: SyntaxError") as caught:
        build("my_own_model:f", "digits", (1, 8, 8), 10)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("name", "shape"), [("cnn", (1, 4, 4)), ("vit", (3, 30, 30))])
def test_images_that_do_not_fit_a_model(name, shape):
    with pytest.raises(InputError, match=f"--model {name}: expected ") as caught:
        build(name, "any", shape, 10)
    assert "\n" not in str(caught.value)
