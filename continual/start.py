"""The common start of Task Arithmetic's experts. It is named in the result."""

from pathlib import Path

from torch import nn

from continual.methods import FineTune
from continual.metrics import Timers
from continual.streams import Task, batches
from continual.task_arithmetic import head_of
from continual.training import Recipe, Trainer
from distillation.distilled_set import check_class_names
from matching.image_set import ImageSet
from scripts.artefact import begin, finish, raise_first
from scripts.cli import InputError, Progress
from scripts.files import read_json, read_tensors, write_json, write_tensors
from scripts.networks import build, load_model, seeded, weight_problems

IMAGENET_CLASSES = 1000
STARTS = ("random", "task1", "imagenet", "distilled")    # others are folders


def check_start(start: str, arch: str, stem: str, size: int, classes: list[dict]) -> None:
    """Raise InputError, before any training, for a start that does not fit, and for a network without a linear head."""
    network = seeded(arch, len(classes), stem, 0, size)
    head_of(network)
    if start == "imagenet":
        pretrained_backbone(arch, stem, size, network)
    elif start not in STARTS:
        read_start(Path(start), network, classes)


def pretrain(folder: Path, network: nn.Module, images: ImageSet, recipe: Recipe, steps: int, seed: int,
             config: dict) -> dict:
    """Train `network` on all classes of `images` and store it in `folder`, or load it from there.

    Returns the start's record for the result.
    """
    if not begin(folder, "start", config, wait=True):  # other runs share this folder
        timers = Timers(images.labels.device)
        learner = FineTune(Trainer(network, recipe, seed, timers))
        with timers.span("start"), Progress(total=steps * recipe.batch_size, desc="common start", unit="img") as bar:
            learner.begin(Task(0, tuple(range(len(images.classes))), images, images, images), steps)
            for batch in batches(images, range(steps), recipe.batch_size, seed, 0):
                learner.step(batch)
                bar.update(recipe.batch_size)
        write_tensors(folder / "model.safetensors", network.state_dict())
        write_json(folder / "result.json", {"kind": "start", "steps": steps, "seconds": timers.seconds()})
        finish(folder, "start", images.classes, config, ["model.safetensors", "result.json"])
    weights = read_tensors(folder / "model.safetensors")
    raise_first(f"{folder / 'model.safetensors'}", weight_problems(weights))
    network.load_state_dict(weights)
    seconds = read_json(folder / "result.json")["seconds"]["start"]
    return {"name": "distilled", "seconds": seconds, "steps": steps, "images": len(images),
            "note": f"pre-trained on all {len(images.classes)} classes of {images.name}"}


def pretrained_backbone(arch: str, stem: str, size: int, network: nn.Module, weights: str = "IMAGENET1K_V1") -> dict:
    """Load torchvision's ImageNet weights into `network`, except for the head; downloads them where needed.

    Raises InputError for the CIFAR stem, which has no such weights, and for a network that does not take `size` pixels.
    """
    if stem != "imagenet":
        raise InputError(f"--start imagenet: expected --stem imagenet, found {stem}")
    trained = build(arch, IMAGENET_CLASSES, weights=weights, size=size).state_dict()
    head = {name: parameter for name, parameter in network.named_parameters()
            if any(parameter is one for one in head_of(network).parameters())}
    network.load_state_dict({**trained, **head})
    return {"name": "imagenet", "seconds": 0.0, "note": f"torchvision's {weights} with a new head"}


def read_start(folder: Path, network: nn.Module, classes: list[dict]) -> dict:
    """Load the weights of a teacher or student of `classes` into `network`. Raises InputError where they do not fit."""
    record = folder / "manifest.json"
    content = read_json(record) if record.is_file() else {}
    kind = content.get("kind") if isinstance(content, dict) else None
    if kind not in ("teacher", "student"):
        raise InputError(f"--start {folder}: expected random, task1, imagenet, distilled or a finished folder of kind "
                         f"teacher or student, found {f'one of kind {kind}' if kind else 'none'}")
    trained, manifest = load_model(folder, kind)
    try:
        network.load_state_dict(trained.state_dict())
    except RuntimeError:
        config = manifest["config"]
        raise InputError(f"--start {folder}: expected the network of --arch and --stem with as many classes, found "
                         f"{config['arch']} {config['stem']} with {len(manifest['classes'])} classes") from None
    check_class_names(f"--start {folder}", manifest["classes"], "the stream", classes)
    return {"name": folder.name, "seconds": 0.0, "note": f"a {kind} that has seen all {len(manifest['classes'])} classes"}
