"""The common start of Task Arithmetic's experts: the same for every source of the stream, and named in the result."""

from pathlib import Path

from torch import nn

from continual.finetune import FineTune
from continual.loop import train
from continual.streams import Task
from continual.task_arithmetic import head_of
from continual.timing import Timers
from continual.training import Recipe, Trainer
from matching.image_set import ImageSet
from scripts.artefact import begin, finish, read_json, read_manifest, read_tensors, write_json, write_tensors
from scripts.cli import InputError, Progress
from scripts.networks import build, load_model

IMAGENET_CLASSES = 1000


def pretrain(folder: Path, network: nn.Module, images: ImageSet, recipe: Recipe, steps: int, seed: int,
             config: dict) -> dict:
    """Train `network` on all classes of `images` and leave it at the weights in `folder`, which is read where it is complete.

    Returns what the start is, for the result.
    """
    if not begin(folder, "start", config, wait=True):  # other runs begin here too
        timers = Timers(images.labels.device)
        task = Task(0, tuple(range(len(images.classes))), images, images, images)
        learner = FineTune(Trainer(network, recipe, seed, timers))
        with timers.span("start"):
            learner.begin(task, steps)
        with Progress(total=steps * recipe.batch_size, desc="common start", unit="img") as bar:
            train(learner, task, bar, "start")
        write_tensors(folder / "model.safetensors", network.state_dict())
        write_json(folder / "result.json", {"kind": "start", "steps": steps, "seconds": timers.seconds()})
        finish(folder, "start", images.classes, config, ["model.safetensors", "result.json"])
    network.load_state_dict(read_tensors(folder / "model.safetensors"))
    seconds = read_json(folder / "result.json")["seconds"]["start"]
    return {"name": "distilled", "seconds": seconds, "steps": steps, "images": len(images),
            "note": f"pre-trained on all {len(images.classes)} classes of {images.name}"}


def pretrained_backbone(arch: str, stem: str, network: nn.Module, weights: str = "IMAGENET1K_V1") -> dict:
    """Give `network` torchvision's weights for ImageNet, downloaded where they are not there; its head stays as it is.

    Raises InputError for the CIFAR stem, which there are no such weights for.
    """
    if stem != "imagenet":
        raise InputError(f"--start imagenet: expected --stem imagenet, found {stem}")
    trained = build(arch, IMAGENET_CLASSES, weights=weights).state_dict()
    own = {name: parameter for name, parameter in network.named_parameters()
           if any(parameter is one for one in head_of(network).parameters())}
    network.load_state_dict({**trained, **own})
    return {"name": "imagenet", "seconds": 0.0, "note": f"torchvision's {weights} with a new head"}


def read_start(folder: Path, network: nn.Module) -> dict:
    """Give `network` the weights of a teacher or student on disk. Raises InputError when they do not fit."""
    kind = next((kind for kind in ("teacher", "student") if _is(folder, kind)), None)
    if kind is None:
        raise InputError(f"--start {folder}: expected random, task1, imagenet, distilled or a finished folder of kind "
                         "teacher or student")
    trained, manifest = load_model(folder, kind)
    try:
        network.load_state_dict(trained.state_dict())
    except RuntimeError:
        config = manifest["config"]
        raise InputError(f"--start {folder}: expected the network of --arch and --stem with as many classes, found "
                         f"{config['arch']} {config['stem']} with {len(manifest['classes'])} classes") from None
    return {"name": folder.name, "seconds": 0.0, "note": f"a {kind} that has seen all {len(manifest['classes'])} classes"}


def _is(folder: Path, kind: str) -> bool:
    try:
        return bool(read_manifest(folder, kind))
    except InputError:
        return False
