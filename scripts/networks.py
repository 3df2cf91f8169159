"""Networks by name; trained models on disk (safetensors and JSON); checkpoint files of others."""

import math
import re
from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision import models

from scripts.artefact import (
    DIVERGED,
    Expected,
    check_finite,
    raise_first,
    read_manifest,
    read_tensors,
    read_torch,
    tensor_problems,
)
from scripts.cli import InputError
from scripts.parallel import has_batch_norm

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, as in torchvision's pretrained models
WEIGHTS, STEMS, LARGEST_PIXELS = "model.safetensors", ("imagenet", "cifar"), 2 ** 14
CONVNET = re.compile(r"convnet_d(?P<depth>[1-9])_w(?P<width>[1-9]\d{0,3})")
AUXILIARY = ("googlenet", "inception_v3")  # have a second output in training by default
WRAPPERS = ("model", "net", "state_dict", "model_state_dict")  # keys of a state dict in checkpoint files
PREFIXES = ("module.", "_orig_mod.")  # of DistributedDataParallel and torch.compile


def build(arch: str, num_classes: int, stem: str = "imagenet", weights: str | None = None,
          size: int | None = None) -> nn.Module:
    """torchvision's `arch`, or `convnet_d<depth>_w<width>`, with `num_classes` outputs.

    `stem="cifar"` replaces the 7x7 stride-2 convolution and the pooling of a ResNet by one 3x3 convolution (He et al. 2016,
    section 4.2). `weights` names torchvision's weights, such as IMAGENET1K_V1. `size` in pixels is for ConvNets and vision
    transformers (default there: 224). Raises InputError for what does not exist or does not fit together.
    """
    if convnet := CONVNET.fullmatch(arch):
        if stem != "imagenet" or weights:
            raise InputError(f"{arch}: expected no --stem and no pretrained weights with a ConvNet, found {weights or stem}")
        return new_convnet(num_classes, depth=int(convnet["depth"]), width=int(convnet["width"]), size=size)
    if arch not in models.list_models(module=models):
        raise InputError(f"architecture: expected convnet_d3_w128 or one of torchvision's models (resnet18, ...), found {arch}")
    if weights:
        _check_weights(arch, weights, num_classes)
    options = {} if weights else {"num_classes": num_classes}
    if arch in AUXILIARY:
        options |= {"aux_logits": False} if weights else {"aux_logits": False, "init_weights": True}
    if arch.startswith("vit_"):
        options["image_size"] = _check_positions(arch, weights, size)
    network = models.get_model(arch, weights=weights, **options)
    if stem == "cifar":
        if not isinstance(network, models.ResNet) or weights:
            raise InputError(f"{arch}: expected a ResNet without pretrained weights for --stem cifar")
        network.conv1 = nn.Conv2d(3, network.conv1.out_channels, 3, padding=1, bias=False)
        network.maxpool = nn.Identity()
    return network


def _check_weights(arch: str, weights: str, num_classes: int) -> None:
    """Raise InputError before a download. DEFAULT is refused: it depends on torchvision's version."""
    choices = models.get_model_weights(arch)
    if weights not in (choice.name for choice in choices):
        means = f", which means {choices.DEFAULT.name} in this torchvision" if weights == "DEFAULT" else ""
        raise InputError(f"{arch}: expected weights by name, one of {', '.join(choice.name for choice in choices)}, found "
                         f"{weights}{means}")
    outputs = len(choices[weights].meta["categories"] or ())
    if outputs != num_classes:
        raise InputError(f"{arch} {weights}: expected {num_classes} outputs, found {outputs}")


def _check_positions(arch: str, weights: str | None, size: int | None) -> int:
    """The image size for a vision transformer's position embedding."""
    patch = int(arch.rpartition("_")[2])
    trained = models.get_model_weights(arch)[weights].meta["min_size"][0] if weights else None
    size = size or trained or 224
    if size % patch or size != (trained or size):
        raise InputError(f"{arch}: expected images of {trained or f'a multiple of {patch}'} pixels, found {size}")
    return size


def new_convnet(num_classes: int, *, depth: int, width: int, size: int | None) -> nn.Sequential:
    """The ConvNet of data set condensation (Zhao et al. 2021, arXiv 2006.05929) for images of `size` pixels.

    `depth` blocks of a 3x3 convolution with `width` filters, instance norm with scale and shift, ReLU and 2x2 average pooling,
    then one linear layer. Raises InputError without a size, or if pooling leaves no pixel.
    """
    if size is None or size < 2 ** depth:
        raise InputError(f"convnet_d{depth}_w{width}: expected images of at least {2 ** depth} pixels, found {size}")
    layers = []
    for channels in (3, *[width] * (depth - 1)):
        layers += [nn.Conv2d(channels, width, 3, padding=1), nn.GroupNorm(width, width), nn.ReLU(inplace=True),
                   nn.AvgPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(width * (size // 2 ** depth) ** 2, num_classes))


def seeded(arch: str, num_classes: int, stem: str, seed: int, size: int | None = None) -> nn.Module:
    """A network with initial weights by `seed`; the global generator does not change."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build(arch, num_classes, stem, size=size)


def channels_last(network: nn.Module) -> nn.Module:
    """Lay out the kernels of a network with BatchNorm for fast bfloat16 convolutions; a ConvNet's group norm gets slower so."""
    return network.to(memory_format=torch.channels_last) if has_batch_norm(network) else network


def load_checkpoint(path: str | Path, arch: str, num_classes: int, stem: str = "imagenet",
                    size: int | None = None) -> nn.Module:
    """`build(arch, ...)` with the weights of a file, in evaluation mode on the CPU.

    The file has a state dict, as safetensors or by torch.save, alone or under a key such as "state_dict", also of
    DistributedDataParallel or torch.compile. No code in it is run. Raises InputError for other files, and for a parameter that
    is missing, unknown, of another shape or not finite.
    """
    network, state = build(arch, num_classes, stem, size=size), read_state_dict(path)
    expected = network.state_dict()
    if missing := [name for name in expected if name not in state and not name.endswith("num_batches_tracked")]:
        raise InputError(f"{path}: expected the weights of a {arch}, found none named {missing[0]}")
    if unknown := [name for name in state if name not in expected]:
        raise InputError(f"{path}: expected the weights of a {arch}, found {unknown[0]}, which it does not have")
    differ = [name for name in state if state[name].shape != expected[name].shape]
    if differ and all(_same_but_classes(state[name], expected[name], num_classes) for name in differ):
        raise InputError(f"{path}: expected {num_classes} classes, found {len(state[differ[0]])}")
    if differ:
        raise InputError(f"{path}: expected {differ[0]} of {arch} (stem {stem}, {size} pixels) to be "
                         f"{list(expected[differ[0]].shape)}, found {list(state[differ[0]].shape)}")
    raise_first(f"{path}", weight_problems(state))
    network.load_state_dict(state, strict=False)  # old files have no counters
    return network.eval()


def _same_but_classes(found: Tensor, expected: Tensor, num_classes: int) -> bool:
    return found.ndim == expected.ndim > 0 and found.shape[1:] == expected.shape[1:] and len(expected) == num_classes


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """The named tensors of a checkpoint file, without wrappers; raises InputError as `load_checkpoint` does."""
    path = Path(path)
    content = read_tensors(path) if path.suffix == ".safetensors" else read_torch(path, "a state dict")
    for key in WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if problem := _no_state_dict(content):
        raise InputError(f"{path}: expected a state dict, named tensors, found {problem}")
    for prefix in PREFIXES:
        if all(name.startswith(prefix) for name in content):
            content = {name.removeprefix(prefix): value for name, value in content.items()}
    return content


def _no_state_dict(content) -> str | None:
    """What `content` is, if it is no state dict."""
    if not isinstance(content, dict):
        return f"a {type(content).__name__}"
    for name, value in content.items():
        if not isinstance(name, str):
            return f"a key that is no text, {name}"
        if not isinstance(value, Tensor):
            return f"{name} of type {type(value).__name__}"
    return None if content else "an empty one"


def load_model(folder: str | Path, kind: str) -> tuple[nn.Module, dict]:
    """A trained network, in evaluation mode on the CPU, and its manifest; `kind` is "teacher" or "student"."""
    manifest = read_manifest(folder, kind)
    raise_first(f"{Path(folder) / 'manifest.json'}", model_problems(manifest))
    config, state = manifest["config"], read_tensors(Path(folder) / WEIGHTS)
    raise_first(f"{Path(folder) / WEIGHTS}", state_problems(state, manifest))
    network = build(config["arch"], len(manifest["classes"]), config["stem"], size=config["input_size"])
    network.load_state_dict(state)
    return network.eval(), manifest


def model_problems(manifest: dict) -> list[str]:
    """Problems of a trained network's manifest."""
    config = manifest["config"]
    problems = [f"config: expected {name} of type {kind.__name__}, found {config.get(name)!r}"
                for name, kind in (("arch", str), ("stem", str), ("input_size", int)) if type(config.get(name)) is not kind]
    if not problems and not (config["stem"] in STEMS and 1 <= config["input_size"] <= LARGEST_PIXELS):
        problems.append(f"config: expected stem {' or '.join(STEMS)} and input_size in [1, {LARGEST_PIXELS}], found "
                        f"{config['stem']!r} and {config['input_size']}")
    return problems + ([] if WEIGHTS in manifest["files"] else [f"files: expected {WEIGHTS}, found none"])


def state_problems(state: dict[str, Tensor], manifest: dict) -> list[str]:
    """Problems of the weights of a manifest without `model_problems`. Raises InputError as `build` does."""
    config, classes = manifest["config"], len(manifest["classes"])
    with torch.device("meta"):  # takes no memory, however large the network
        expected = build(config["arch"], classes, config["stem"], size=config["input_size"]).state_dict()
    shapes, wanted = ({name: value.shape for name, value in each.items()} for each in (state, expected))
    if shapes != wanted:
        return [f"expected the weights of a {config['arch']} of {classes} classes, found others"]
    return weight_problems(state)


def weight_problems(state: dict[str, Tensor]) -> list[str]:
    """Weights that are not finite, and variances below 0."""
    return tensor_problems(state, {
        name: Expected("number", tuple(value.shape), 0 if name.endswith("running_var") else -math.inf)
        for name, value in state.items()})


def repeat_statistics(network: nn.Module, times: int) -> None:
    """Let every batch move BatchNorm's running statistics `times` times, as that many forwards in train mode do."""
    for module in network.modules():
        if times > 1 and isinstance(module, nn.BatchNorm2d):
            module.momentum = 1 - (1 - module.momentum) ** times


@torch.no_grad()
def predict(network: nn.Module, images: Tensor, batch_size: int = 256) -> Tensor:
    """Logits [N, K] of uint8 images [N, 3, H, W], in evaluation mode. Raises InputError where they are not finite."""
    network.eval()
    logits = torch.cat([network(normalise(part.float() / 255)) for part in images.split(batch_size)])
    check_finite({"logits": logits}, type(network).__name__, DIVERGED)
    return logits


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """Top-1 accuracy in [0, 1]."""
    return (logits.argmax(1) == labels).float().mean().item()


def normalise(images: Tensor) -> Tensor:
    """Normalise float images [B, 3, H, W] in [0, 1] by ImageNet's mean and standard deviation."""
    mean, std = (torch.tensor(values, device=images.device)[:, None, None] for values in (MEAN, STD))
    return (images - mean).div_(std)
