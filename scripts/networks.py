"""Networks by name; trained models on disk (safetensors and JSON); checkpoint files of others."""

import math
import re
from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision import models

from scripts.artefact import raise_first, read_manifest
from scripts.cli import InputError, check_range, note
from scripts.files import DIVERGED, Expected, check_finite, read_tensors, read_torch, tensor_problems
from scripts.parallel import batch_norms

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, as for nearly all of torchvision's weights
WEIGHTS, STEMS, LARGEST_PIXELS = "model.safetensors", ("imagenet", "cifar"), 2 ** 14
CONVNET = re.compile(r"convnet_d(?P<depth>[1-9])_w(?P<width>[1-9]\d{0,3})(?P<norm>_bn)?")
AUXILIARY = ("googlenet", "inception_v3")  # have a second output in training by default
# around a state dict, as keys of the file or before every name: torch.compile's _orig_mod, DistributedDataParallel's module ...
WRAPPERS = ("state_dict", "model_state_dict", "model_state", "model", "net", "network", "module", "_orig_mod", "online_model")
AVERAGED = ("ema", "model_ema", "ema_model", "ema_state_dict", "state_dict_ema", "model_ema_state_dict", "shadow")
NO_WEIGHT = re.compile(r"n_averaged|initted|step|(criterion|loss)\w*\..*|(.*\.)?total_(ops|params)")  # averages, losses, FLOP
DEEPEST = 12  # wrappers; a damaged file may contain itself


def build(arch: str, num_classes: int, stem: str = "imagenet", weights: str | None = None,
          size: int | None = None) -> nn.Module:
    """torchvision's `arch`, or `convnet_d<depth>_w<width>`, with `num_classes` outputs; `_bn` at its end: with batch norm.

    `stem="cifar"` replaces the 7x7 stride-2 convolution and the pooling of a ResNet by one 3x3 convolution (He et al. 2016,
    section 4.2). `weights` names torchvision's weights, such as IMAGENET1K_V1. `size` in pixels is for ConvNets and vision
    transformers (default there: 224). Raises InputError for what does not exist or does not fit together.
    """
    if convnet := CONVNET.fullmatch(arch):
        if stem != "imagenet" or weights:
            raise InputError(f"{arch}: expected no --stem and no pretrained weights with a ConvNet, found {weights or stem}")
        return fast_layout(new_convnet(num_classes, depth=int(convnet["depth"]), width=int(convnet["width"]), size=size,
                                       batch_norm=bool(convnet["norm"])))
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
    return fast_layout(network)


def fast_layout(network: nn.Module) -> nn.Module:
    """Lay out the kernels of a network with BatchNorm as channels_last: on a CPU ResNet-18 then classifies images of 32 pixels
    1.8 times as fast and trains at the same speed. A ConvNet's group norm would get slower."""
    return network.to(memory_format=torch.channels_last) if batch_norms(network) else network


def _check_weights(arch: str, weights: str, num_classes: int) -> None:
    """Raise InputError before a download. DEFAULT is refused: it depends on torchvision's version."""
    choices = models.get_model_weights(arch)
    if weights not in (choice.name for choice in choices):
        means = f", which means {choices.DEFAULT.name} in this torchvision" if weights == "DEFAULT" else ""
        raise InputError(f"{arch}: expected weights by name, one of {', '.join(choice.name for choice in choices)}, found "
                         f"{weights}{means}")
    views = choices[weights].transforms.keywords
    if (other := (views.get("mean", MEAN), views.get("std", STD))) != (MEAN, STD):
        raise InputError(f"{arch} {weights}: expected weights for images of mean {MEAN} and deviation {STD}, found {other}")
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


def new_convnet(num_classes: int, *, depth: int, width: int, size: int | None, batch_norm: bool = False) -> nn.Sequential:
    """The ConvNet of data set condensation (Zhao et al. 2021, arXiv 2006.05929) for images of `size` pixels.

    `depth` blocks of a 3x3 convolution with `width` filters, instance norm (or batch norm) with scale and shift, ReLU and 2x2
    average pooling, then one linear layer. Raises InputError without a size, or if pooling leaves no pixel.
    """
    if size is None or size < 2 ** depth:
        raise InputError(f"convnet_d{depth}_w{width}: expected images of at least {2 ** depth} pixels, found {size}")
    layers = []
    for channels in (3, *[width] * (depth - 1)):
        norm = nn.BatchNorm2d(width) if batch_norm else nn.GroupNorm(width, width)
        layers += [nn.Conv2d(channels, width, 3, padding=1), norm, nn.ReLU(inplace=True), nn.AvgPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(width * (size // 2 ** depth) ** 2, num_classes))


def seeded(arch: str, num_classes: int, stem: str, seed: int, size: int | None = None) -> nn.Module:
    """A network with initial weights by `seed`; the global generator does not change.

    Raises InputError as `build` does, for a seed that torch does not take, and for a network that does not take images of
    `size` pixels.
    """
    check_range("--seed", seed, -2 ** 63, 2 ** 63 - 1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = build(arch, num_classes, stem, size=size)
    if size:
        try:
            with torch.no_grad():
                network.eval()(torch.zeros(1, 3, size, size))
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            raise InputError(f"{arch}: expected images of a size that it takes, found {size} pixels ({reason})") from None
    return network.train()


def build_empty(arch: str, num_classes: int, stem: str, size: int | None) -> nn.Module:
    """`build(arch, ...)` on the device "meta": shapes that take no memory, however large the network."""
    with torch.device("cpu" if arch.startswith("regnet_") else "meta"):     # a RegNet computes its widths by tensors
        return build(arch, num_classes, stem, size=size).to("meta")


def load_checkpoint(path: str | Path, arch: str, num_classes: int, stem: str = "imagenet",
                    size: int | None = None) -> nn.Module:
    """`build(arch, ...)` with the weights of a file, in evaluation mode on the CPU.

    The file has a state dict, as safetensors or by torch.save, as `read_state_dict` reads it. No code in it is run. Raises
    InputError for other files, and for a parameter that is missing, unknown, of another shape or not finite.
    """
    network, state = build(arch, num_classes, stem, size=size), read_state_dict(path)
    expected = network.state_dict()
    if missing := [name for name in expected if name not in state and not name.endswith("num_batches_tracked")]:
        raise InputError(f"{path}: expected the weights of a {arch}, found none named {missing[0]} (the first "
                         f"is {next(iter(state), 'none')})")
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
    """The named tensors of a checkpoint file; raises InputError as `load_checkpoint` does.

    The keys and prefixes of WRAPPERS and AVERAGED around them are stripped, in any order and number. Where a file has the
    weights of the last step and averaged ones, those of the last step are read, and one line says so.
    """
    path = Path(path)
    content = read_tensors(path) if path.suffix == ".safetensors" else read_torch(path, "a state dict")
    for _ in range(DEEPEST):
        parts = _parts(content) if isinstance(content, dict) else {}
        if not parts:
            break
        chosen, *others = sorted(parts, key=lambda key: key in AVERAGED)
        if chosen not in AVERAGED and others and others[0] not in AVERAGED:
            raise InputError(f"{path}: expected the weights of one network, found some under {chosen} and {others[0]}; "
                             "save the ones to use alone")
        if others:
            note(f"{path}: using the weights under {chosen}, not those under {', '.join(others)}")
        content = parts[chosen]
    if problem := _no_state_dict(content):
        raise InputError(f"{path}: expected a state dict, named tensors, found {problem}")
    return {name: value for name, value in content.items() if not NO_WEIGHT.fullmatch(name)}


def _parts(content: dict) -> dict[str, dict]:
    """What is under each wrapper of a checkpoint, or under each prefix if every name has one; else empty."""
    dicts = {key: content[key] for key in WRAPPERS + AVERAGED if isinstance(content.get(key), dict)}
    if parts := {key: value for key, value in dicts.items()     # others are configurations, such as a network's under `model`
                 if any(isinstance(each, (Tensor, dict)) for each in value.values())}:
        return parts
    for name in content:
        if not isinstance(name, str) or not isinstance(content[name], Tensor):
            return {}
        if not NO_WEIGHT.fullmatch(name):
            first, _, rest = name.partition(".")
            parts.setdefault(first, {})[rest] = content[name]
    return parts if set(parts) <= {*WRAPPERS, *AVERAGED} else {}


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
    path, manifest = Path(folder) / "manifest.json", read_manifest(folder, kind)
    raise_first(f"{path}", model_problems(manifest))
    config, state = manifest["config"], read_tensors(Path(folder) / WEIGHTS)
    wanted = config["arch"], len(manifest["classes"]), config["stem"]
    try:
        expected = build_empty(*wanted, config["input_size"]).state_dict()
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    if {name: value.shape for name, value in state.items()} != {name: value.shape for name, value in expected.items()}:
        raise InputError(f"{Path(folder) / WEIGHTS}: expected the weights of a {config['arch']} of {len(manifest['classes'])} "
                         "classes, found others")
    raise_first(f"{Path(folder) / WEIGHTS}", weight_problems(state))
    network = build(*wanted, size=config["input_size"])
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


def weight_problems(state: dict[str, Tensor]) -> list[str]:
    """Weights that are not finite, and variances below 0."""
    return tensor_problems(state, {
        name: Expected("number", tuple(value.shape), 0 if name.endswith("running_var") else -math.inf)
        for name, value in state.items()})


def repeat_statistics(network: nn.Module, times: int) -> None:
    """Set BatchNorm's momentum so that one forward updates the running statistics as `times` forwards of the batch do."""
    for layer in batch_norms(network) if times > 1 else ():
        layer.momentum = 1 - (1 - layer.momentum) ** times


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


def normalised_range(device) -> tuple[Tensor, Tensor]:
    """The normalised values [1, 3, 1, 1] of a pixel of 0 and of 1."""
    low, high = (normalise(torch.full((1, 3, 1, 1), value)).to(device) for value in (0.0, 1.0))
    return low, high


def normalise(images: Tensor) -> Tensor:
    """Normalise float images [B, 3, H, W] in [0, 1] by ImageNet's mean and standard deviation."""
    mean, std = (torch.tensor(values, device=images.device)[:, None, None] for values in (MEAN, STD))
    return (images - mean).div_(std)
