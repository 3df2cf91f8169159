"""What a unit of work takes by its architecture alone: operations and memory, counted on tensors without contents."""

import weakref
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from misc.measuring import flops_of
from scripts.cli import InputError

STABLE_DIFFUSION = "stable-diffusion-v1-5"  # in the names of hub checkpoints of this architecture


class Unit(NamedTuple):
    """What a stage does over and over: `kind` says what, `settings` (pairs) with what."""

    kind: str
    settings: tuple = ()

    def __str__(self) -> str:
        return " ".join([self.kind, *(f"{name}={value}" for name, value in self.settings)])


def unit(kind: str, **settings) -> Unit:
    """A unit by its kind and settings."""
    return Unit(kind, tuple(settings.items()))


class Counted(NamedTuple):
    """Floating-point operations of one unit, and the most bytes that weights and tensors of one batch take at once."""

    flops: int
    device_bytes: int


class LiveBytes(TorchDispatchMode):
    """Follows the bytes of the tensors that live at once; `peak` is the most. Those of `modules` are there from the start.

    What an allocator keeps in reserve and what kernels use inside are not counted.
    """

    def __init__(self, *modules: nn.Module):
        super().__init__()
        self.sizes: dict[int, int] = {}
        self.now = self.peak = 0
        for module in modules:
            for tensor in (*module.parameters(), *module.buffers()):
                self.add(tensor)

    def add(self, tensor: Tensor) -> None:
        """Count the storage of a tensor until it is freed."""
        storage = tensor.untyped_storage()
        place = storage._cdata
        if place not in self.sizes:
            self.sizes[place] = storage.nbytes()
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self.drop, place)

    def drop(self, place: int) -> None:
        """A storage is gone."""
        self.now -= self.sizes.pop(place)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self.add(leaf)
        return result


@lru_cache
def diffusion_parts(checkpoint: str, half: bool) -> dict[str, nn.Module]:
    """`vae` and `unet` of a checkpoint without their weights: of a local folder, or Stable Diffusion v1.5's architecture."""
    from diffusers import AutoencoderKL, UNet2DConditionModel

    from distillation.ldm import stable_diffusion_v15
    with torch.device("meta"):
        if Path(checkpoint).is_dir():
            kinds = {"vae": AutoencoderKL, "unet": UNet2DConditionModel}
            found = {name: kind.from_config(kind.load_config(checkpoint, subfolder=name)) for name, kind in kinds.items()}
        elif STABLE_DIFFUSION in checkpoint:
            found = dict(zip(("vae", "unet"), stable_diffusion_v15()[:2], strict=True))
        else:
            raise InputError(f"--diffusion_checkpoints_path: expected a local folder or a name with {STABLE_DIFFUSION}, found "
                             f"{checkpoint}")
    return {name: part.half() if half else part for name, part in found.items()}


def latent_shape(checkpoint: str, size: int) -> tuple[int, int, int]:
    """(C, h, w) of the latents of a square image of `size` pixels."""
    config = diffusion_parts(checkpoint, False)["vae"].config
    side = size // 2 ** (len(config.block_out_channels) - 1)
    return config.latent_channels, side, side


@lru_cache
def counted(one: Unit, half: bool = True) -> Counted | None:
    """Operations and memory of a unit, None for kinds that no accelerator works on; `half` is a diffusion model's precision."""
    settings = dict(one.settings)
    batch = settings.get("batch")
    if one.kind == "learner":
        return count_learner(settings)
    if one.kind in ("train", "forward"):
        return count_network(settings, batch, one.kind == "train")
    if one.kind not in ("encode", "denoise", "decode"):
        return None
    part = diffusion_parts(settings["checkpoint"], half)["unet" if one.kind == "denoise" else "vae"]
    number = torch.half if half else torch.float
    with torch.device("meta"):
        if one.kind == "encode":
            images = torch.empty(batch, 3, settings["size"], settings["size"], dtype=number)
            work = lambda: part.encode(images)  # noqa: E731
        else:
            config = diffusion_parts(settings["checkpoint"], half)["unet"].config
            both = 2 * batch if one.kind == "denoise" else batch  # with and without the prompt
            latents = torch.empty(both, config.in_channels, config.sample_size, config.sample_size, dtype=number)
            text = torch.empty(both, 77, config.cross_attention_dim, dtype=number)
            work = (lambda: part(latents, torch.ones(1), text)) if one.kind == "denoise" else lambda: part.decode(latents)
        with torch.inference_mode():
            return count(work, batch, part)


def count_network(settings: dict, batch: int, training: bool) -> Counted:
    """A classifier, forward or with its backward pass and AdamW's two moments."""
    from scripts.networks import build
    with torch.device("meta"):
        network = build(settings["arch"], settings["classes"], settings["stem"], size=settings["size"]).train(training)
        views = torch.empty(batch // settings.get("chunks", 1), 3, settings["size"], settings["size"])
    if not training:
        with torch.inference_mode():
            return count(lambda: network(views), len(views), network)
    found = count(lambda: network(views).sum().backward(), len(views), network)
    return found._replace(device_bytes=found.device_bytes + 2 * sum(one.nbytes for one in network.parameters()))


def count_learner(settings: dict) -> Counted:
    """A step of a continual method: its stream's and its memory's images at once; Task Arithmetic also holds its experts."""
    images = settings["batch"] + (settings["replay"] if settings["method"] in ("er", "agem", "derpp") else 0)
    found = count_network(settings, images, training=True)
    experts = settings["tasks"] * network_bytes(*(settings[name] for name in ("arch", "classes", "stem", "size")))
    return Counted(found.flops * images, found.device_bytes + experts * (settings["method"] == "task_arithmetic"))


@lru_cache
def network_bytes(arch: str, classes: int, stem: str, size: int) -> int:
    """Bytes of a network's weights and statistics."""
    from scripts.networks import build
    with torch.device("meta"):
        return sum(value.nbytes for value in build(arch, classes, stem, size=size).state_dict().values())


def count(work, units: int, *modules: nn.Module) -> Counted:
    """Operations per unit of `work`, which does `units` of them, and its peak with the weights of `modules`."""
    live = LiveBytes(*modules)

    def watched():
        with live:  # inside the counting of operations, which takes attention apart
            work()
    flops = flops_of(watched)
    return Counted(flops // units, live.peak)
