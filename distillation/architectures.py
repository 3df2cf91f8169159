"""Networks by name, and models on disk as safetensors + JSON."""

from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision import models

from distillation.entry import InputError
from distillation.manifest import read_manifest, read_tensors

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, as torchvision's pretrained models expect


def build(arch: str, num_classes: int, stem: str = "imagenet", weights: str | None = None) -> nn.Module:
    """torchvision's `arch` with `num_classes` outputs.

    `stem="cifar"` replaces the 7x7 stride-2 convolution and the pooling of a ResNet by one 3x3 convolution, for images of 32 or
    64 pixels (He et al. 2016, section 4.2). `weights` names torchvision weights, such as IMAGENET1K_V1. Raises InputError for
    an unknown architecture, a stem it does not have, or weights of another number of classes.
    """
    if arch not in models.list_models(module=models):
        raise InputError(f"architecture: expected one of torchvision's models (resnet18, ...), found {arch}")
    try:
        network = models.get_model(arch, weights=weights, **({} if weights else {"num_classes": num_classes}))
    except (ValueError, KeyError) as error:
        raise InputError(f"{arch}: expected weights torchvision knows, found {weights} ({error})") from None
    if weights and _outputs(network) != num_classes:
        raise InputError(f"{arch} {weights}: expected {num_classes} outputs, found {_outputs(network)}")
    if stem == "cifar":
        if not isinstance(network, models.ResNet) or weights:
            raise InputError(f"{arch}: expected a ResNet without pretrained weights for --stem cifar")
        network.conv1 = nn.Conv2d(3, network.conv1.out_channels, 3, padding=1, bias=False)
        network.maxpool = nn.Identity()
    return network


def _outputs(network: nn.Module) -> int:
    return [module for module in network.modules() if isinstance(module, nn.Linear)][-1].out_features


def seeded(arch: str, num_classes: int, stem: str, seed: int) -> nn.Module:
    """A network whose initial weights are a function of `seed`, leaving the global generator as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build(arch, num_classes, stem)


def load_model(folder: str | Path, kind: str) -> tuple[nn.Module, dict]:
    """Read a trained network and its manifest (kind "teacher" or "student"), in evaluation mode on the CPU."""
    manifest = read_manifest(folder, kind)
    config = manifest["config"]
    network = build(config["arch"], len(manifest["classes"]), config["stem"])
    path = Path(folder) / "model.safetensors"
    try:
        network.load_state_dict(read_tensors(path))
    except RuntimeError:
        raise InputError(f"{path}: expected the weights of a {config['arch']}, found others") from None
    return network.eval(), manifest


@torch.no_grad()
def predict(network: nn.Module, images: Tensor, batch_size: int = 256) -> Tensor:
    """Logits [N, K] of uint8 images [N, 3, H, W], in evaluation mode, on the images' device."""
    network.eval()
    return torch.cat([network(normalise(part.float() / 255)) for part in images.split(batch_size)])


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """Top-1 accuracy in [0, 1]."""
    return (logits.argmax(1) == labels).float().mean().item()


def normalise(images: Tensor) -> Tensor:
    """Float [B, 3, H, W] in [0, 1] -> zero mean and unit variance by ImageNet's statistics."""
    mean, std = (torch.tensor(values, device=images.device)[:, None, None] for values in (MEAN, STD))
    return (images - mean) / std
