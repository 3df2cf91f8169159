"""Networks against torchvision's own figures and by their properties; checkpoint files of others, also hostile ones."""

import argparse
import os
import pickle
import shlex
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn
from torchvision import models

from scripts.cli import InputError, run
from scripts.networks import build, load_checkpoint, seeded


def count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def random_images(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("arch", ["resnet18", "resnet34", "resnet50", "resnet101", "mobilenet_v2", "efficientnet_b0", "swin_t",
                                  "vit_b_16", "googlenet"])
def test_torchvisions_networks_have_as_many_parameters_as_torchvision_says(arch):
    with torch.device("meta"):
        network = build(arch, 1000)
        cifar = build("resnet18", 1000, "cifar")
    assert count(network) == models.get_model_weights(arch).IMAGENET1K_V1.meta["num_params"]
    assert arch != "resnet18" or count(network) - count(cifar) == 64 * 3 * (49 - 9)     # 27 weights a filter, not 147


@pytest.mark.parametrize(("depth", "width", "size", "classes", "norm"), [
    (3, 128, 32, 10, ""), (3, 128, 64, 200, ""), (3, 128, 37, 10, ""), (4, 64, 64, 7, ""), (3, 128, 32, 10, "_bn")])
def test_the_convnet_is_what_the_paper_describes(depth, width, size, classes, norm):
    network, images = seeded(f"convnet_d{depth}_w{width}{norm}", classes, "imagenet", 0, size), random_images(2, 3, size, size)
    *blocks, head, bias_of_head = network.parameters()
    assert len(blocks) == 4 * depth and head.shape == (classes, width * (size >> depth) ** 2)
    seen = images
    for place in range(0, 4 * depth, 4):
        kernel, bias, scale, shift = blocks[place:place + 4]
        assert len(kernel) == width
        scale.data.uniform_(0.5, 1.5)  # that do something
        shift.data.uniform_(-1, 1)
        seen = F.conv2d(seen, kernel, bias, padding=1)
        seen = F.batch_norm(seen, None, None, scale, shift, training=True) if norm else F.instance_norm(
            seen, weight=scale, bias=shift)
        seen = F.avg_pool2d(seen.clamp(min=0), 2)
    torch.testing.assert_close(network(images), seen.flatten(1) @ head.T + bias_of_head, atol=1e-4, rtol=1e-4)
    assert network.training and bool(list(network.buffers())) == bool(norm)     # an image changes another's logits only then


@pytest.mark.parametrize(("arch", "size"), [("mobilenet_v2", 32), ("efficientnet_b0", 64), ("swin_t", 64), ("vit_b_16", 32)])
def test_networks_take_small_images(arch, size):
    assert build(arch, 7, size=size).train()(random_images(2, 3, size, size)).shape == (2, 7)
    with torch.device("meta"):  # a position per patch
        assert [build("vit_b_16", 3, size=size).encoder.pos_embedding.shape[1] for size in (None, 32, 64)] == [197, 5, 17]


@pytest.mark.parametrize(("what", "found"), [
    ({"arch": "vit_b_16", "size": 36}, "vit_b_16: expected images of a multiple of 16 pixels, found 36"),
    ({"size": 7}, "at least 8 pixels, found 7"), ({"size": None}, "at least 8 pixels, found None"),
    ({"stem": "cifar"}, "found cifar"), ({"weights": "IMAGENET1K_V1"}, "found IMAGENET1K_V1"),
    ({"arch": "convnet_d0_w128"}, "found convnet_d0_w128"),
    ({"arch": "mobilenet_v2", "stem": "cifar"}, "mobilenet_v2: expected a ResNet"),
    ({"arch": "resnet18", "weights": "IMAGENET1K_V1"}, "resnet18 IMAGENET1K_V1: expected 3 outputs, found 1000"),
    ({"arch": "resnet18", "weights": "IMAGENET1K_V2"}, "one of IMAGENET1K_V1, found IMAGENET1K_V2"),
    ({"arch": "resnet50", "weights": "DEFAULT"}, "one of IMAGENET1K_V1, IMAGENET1K_V2, found DEFAULT, which means "
                                                 "IMAGENET1K_V2"),
    ({"arch": "efficientnet_v2_l", "weights": "IMAGENET1K_V1", "num_classes": 1000}, "found ((0.5, 0.5, 0.5), (0.5,"),
    ({"arch": "vit_b_16", "weights": "IMAGENET1K_V1", "num_classes": 1000}, "images of 224 pixels, found 32")])
def test_what_a_network_cannot_be_is_refused(what, found):
    with pytest.raises(InputError) as refusal:
        build(**{"arch": "convnet_d3_w128", "num_classes": 3, "size": 32, **what})
    assert found in str(refusal.value) and "\n" not in str(refusal.value)


@pytest.mark.parametrize(("arch", "layout"), [("resnet18", torch.channels_last), ("convnet_d3_w128", torch.contiguous_format)])
def test_another_layout_computes_the_same(arch, layout):
    images, fast = random_images(4, 3, 32, 32), seeded(arch, 10, "imagenet", 0, 32).eval()
    plain = seeded(arch, 10, "imagenet", 0, 32).eval().to(memory_format=torch.contiguous_format)
    assert all(p.is_contiguous(memory_format=layout) for p in fast.parameters() if p.ndim == 4)
    torch.testing.assert_close(plain(images), fast(images), atol=1e-4, rtol=1e-4)


# checkpoint files
@pytest.fixture(scope="module")
def trained():
    """torchvision's network with every weight and buffer drawn."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        network = models.resnet18(num_classes=10)
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(std=0.1)
    return network.eval()


def before(prefix, state):
    return {prefix + name: value for name, value in state.items()}


def spoilt(state):
    return {name: value + 1 for name, value in state.items()}


WRAPPED = {
    "plain.pth": lambda state: state,
    "lightning.ckpt": lambda state: {"epoch": 3, "callbacks": {"EarlyStopping": {"wait": 1}},
                                     "hyper_parameters": {"lr": 0.1}, "optimizer_states": [{"state": {0: torch.ones(2)}}],
                                     "state_dict": {**before("model.", state), "criterion.weight": torch.ones(10)}},
    "parallel.pth": lambda state: {"model": OrderedDict(before("module.", state)), "scaler": {"scale": 2.0}},
    "compiled.pt": lambda state: before("module._orig_mod.", state),
    "compiled-first.pt": lambda state: {"net": before("_orig_mod.module._orig_mod.", state), "acc": 93.1},
    "nested.pth": lambda state: {"state_dict": {"net": {"model": before("module.model.", state)}}},
    "config.pth": lambda state: {"model": {"name": "resnet18"}, "model_state_dict": state},
    "old.pth": lambda state: {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")},
    "double.pth": lambda state: {name: value.double() for name, value in state.items()},
    "counted.pth": lambda state: {**state, "total_ops": torch.zeros(1), "layer1.total_params": torch.zeros(1)},
    "ema.pth": lambda state: {"model_ema": {**before("module.", state), "n_averaged": torch.tensor(5)}, "decay": 0.99},
    "deep-ema.pth": lambda state: {"ema": {"module": before("_orig_mod.", state), "updates": 3}},
    "shadow.pt": lambda state: {"ema": {"shadow": state, "decay": 0.99}},
    "lightning-ema.ckpt": lambda state: {
        "state_dict": {**before("ema_model.module.", state), "ema_model.n_averaged": torch.tensor(5)}},
    "both.pth": lambda state: {"state_dict_ema": spoilt(state), "state_dict": state},
    "both-named.pt": lambda state: {
        **before("ema_model.", spoilt(state)), **before("online_model.", state), "step": torch.ones(1)},
}


@pytest.mark.parametrize("name", [*WRAPPED, "plain.safetensors", "parallel.safetensors"])
def test_a_checkpoint_is_read_however_it_is_wrapped(trained, tmp_path, capsys, name):
    path, state = tmp_path / name, trained.state_dict()
    if name in WRAPPED:
        torch.save(WRAPPED[name](state), path)
    else:
        save_file(before("module." if name.startswith("parallel") else "", state), path)
    network = load_checkpoint(path, "resnet18", 10)
    assert not network.training
    for key, value in network.state_dict().items():
        assert torch.equal(value, state[key]) or (name == "old.pth" and key.endswith("num_batches_tracked")), key
    assert capsys.readouterr().err == {
        "both.pth": f"{path}: using the weights under state_dict, not those under state_dict_ema\n",
        "both-named.pt": f"{path}: using the weights under online_model, not those under ema_model\n"}.get(name, "")


def test_two_networks_in_one_file_and_a_file_in_itself_are_refused(trained, tmp_path):
    endless = {}
    endless["model"] = endless
    for content, words in (({"model": trained.state_dict(), "net": trained.state_dict()}, "under model and net"),
                           (endless, "found model of type dict"),
                           ({**before("model.", trained.state_dict()), "normalizer.mean": torch.ones(3)},
                            r"none named conv1.weight \(the first is model.conv1.weight\)")):
        torch.save(content, tmp_path / "model.pt")
        with pytest.raises(InputError, match=words):
            load_checkpoint(tmp_path / "model.pt", "resnet18", 10)


@pytest.mark.parametrize(("beside", "name"), [
    ({"best": np.float64(0.9)}, "numpy."), ({"args": argparse.Namespace(lr=0.1)}, "argparse.Namespace"),
    ({"save_dir": Path("runs")}, "pathlib."), (None, "torchvision.models.resnet.ResNet")])
def test_an_object_beside_the_weights_is_named_and_the_command_given_strips_it(trained, tmp_path, beside, name):
    path = tmp_path / "my model's.pth"
    torch.save(trained if beside is None else {"state_dict": before("module.", trained.state_dict()), **beside}, path)
    with pytest.raises(InputError) as refusal:
        load_checkpoint(path, "resnet18", 10)
    found, _, command = str(refusal.value).partition("(this runs its code): ")
    assert f"a pickle that asks for {name}" in found
    program, flag, code = shlex.split(command)
    assert (program, flag) == ("python", "-c")
    exec(code, {})  # a Python of its own takes seconds to start
    network = load_checkpoint(tmp_path / "my model's-weights.pt", "resnet18", 10)
    assert all(torch.equal(value, trained.state_dict()[key]) for key, value in network.state_dict().items())


@pytest.mark.parametrize(("given", "found"), [
    ({"arch": "resnet34"}, "expected the weights of a resnet34, found none named layer1.2.conv1.weight"),
    ({"arch": "convnet_d3_w128"}, "expected the weights of a convnet_d3_w128, found none named 0.weight"),
    ({"num_classes": 100}, "expected 100 classes, found 10"), ({}, "found extra.weight, which it does not have"),
    ({"stem": "cifar"}, "conv1.weight of resnet18 (stem cifar, 32 pixels) to be [64, 3, 3, 3], found [64, 3, 7, 7]")])
def test_a_checkpoint_that_does_not_fit_is_refused(trained, tmp_path, given, found):
    path = tmp_path / "model.pth"
    torch.save(trained.state_dict() if given else {**trained.state_dict(), "extra.weight": torch.zeros(2)}, path)
    with pytest.raises(InputError) as refusal:
        load_checkpoint(path, **{"arch": "resnet18", "num_classes": 10, "size": 32, **given})
    assert str(refusal.value).startswith(f"{path}: ") and found in str(refusal.value)


@pytest.mark.parametrize(("content", "found"), [
    (torch.zeros(3), "found a Tensor"), ({}, "found an empty one"), ({"model": 3, "note": "x"}, "found model of type int"),
    ([1, 2], "found a list"), ({"a": torch.zeros(2), 5: torch.zeros(2)}, "found a key that is no text")])
def test_a_file_without_a_state_dict_is_refused(tmp_path, content, found):
    torch.save(content, tmp_path / "model.pt")
    with pytest.raises(InputError, match=f"expected a state dict, named tensors, {found}"):
        load_checkpoint(tmp_path / "model.pt", "resnet18", 10)


@pytest.mark.parametrize("name", ["model.pt", "model.safetensors"])
def test_missing_empty_and_damaged_files_are_refused(trained, tmp_path, name):
    path = tmp_path / name
    torch.save(trained.state_dict(), path) if name.endswith("pt") else save_file(trained.state_dict(), path)
    for content in (b"", b"no checkpoint", path.read_bytes()[:100_000], None):
        path.unlink() if content is None else path.write_bytes(content)
        with pytest.raises(InputError, match=f"{name}: .*found {'' if content is not None else 'nothing'}"):
            load_checkpoint(path, "resnet18", 10)


@pytest.mark.parametrize("saved_by", ["torch", "torch before 1.6", "pickle"])
@pytest.mark.parametrize("hidden", [False, True])
def test_a_hostile_checkpoint_is_refused_without_running_its_code(trained, tmp_path, capsys, recwarn, saved_by, hidden):
    path, made = tmp_path / "model.pt", tmp_path / "made"

    class Hostile:
        def __reduce__(self):
            return os.mkdir, (str(made),)
    content = {**trained.state_dict(), "fc.bias": Hostile()} if hidden else Hostile()
    if saved_by == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=saved_by == "torch")
    with pytest.raises(SystemExit) as end:
        run(lambda: None, lambda _: load_checkpoint(path, "resnet18", 10))
    said = capsys.readouterr()
    assert end.value.code == 2 and not made.exists() and said.out == "" and not recwarn.list
    assert said.err.startswith(f"error: {path}: expected a state dict") and said.err.count("\n") == 1
    if saved_by == "torch":
        assert "mkdir, which was not run" in said.err
        torch.load(path, weights_only=False)  # it was hostile
        assert made.exists()
