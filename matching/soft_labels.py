"""FKD soft labels: per epoch, what was drawn and what the teacher said, addressed by image row.

One safetensors file per epoch with `order`, `crop`, `flip`, `partner`, `ratio`, `box` (see augmentation.Drawn) and the answers:
`logits` [N, C], or of the k classes that lead `logits` [N, k], `leading` [N, k] and `rest` [N], one logit for all others. A
reader makes the same views again; it shares no sampler, batch size or library version with the writer.
FKD: Shen & Xing 2022 (arXiv 2112.01528). Fewer epochs, used again: LPLD, Xiao & He 2024 (arXiv 2410.15919).
"""

import math
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from matching.augmentation import Drawn
from matching.file_images import FileImages
from matching.image_set import ImageSet
from scripts.artefact import Expected, raise_first, read_manifest, read_tensors, tensor_problems, write_tensors
from scripts.cli import InputError
from scripts.networks import LARGEST_PIXELS
from scripts.randomness import seed_for

STORED = {"order": torch.int32, "crop": torch.int16, "flip": torch.bool, "partner": torch.int32, "ratio": torch.float32,
          "box": torch.int16}


def epoch_file(epoch: int) -> str:
    """Name of one epoch's file."""
    return f"epoch_{epoch:04d}.safetensors"


@dataclass(frozen=True)
class Answers:
    """A teacher's logits for N views, whole or of the leading classes; `answers[rows]` is float32 [B, classes].

    `logits` [N, k] belong to the classes `leading` [N, k]; every other class has the logit `rest` [N]. Whole logits have
    neither and k = classes.
    """

    classes: int
    logits: Tensor
    leading: Tensor | None = None
    rest: Tensor | None = None

    def __getitem__(self, rows: Tensor) -> Tensor:
        if self.leading is None:
            return self.logits[rows].float()
        spread = self.rest[rows].float()[:, None].expand(-1, self.classes)
        return spread.scatter(1, self.leading[rows].long(), self.logits[rows].float())

    def tensors(self) -> dict[str, Tensor]:
        """What is stored, by name."""
        return {name: value for name in ("logits", "leading", "rest") if (value := getattr(self, name)) is not None}


def leading_answers(logits: Tensor, k: int, temperature: float) -> Answers:
    """Keep the `k` largest logits of each row [N, C].

    The others share one logit, such that at `temperature` the softmax gives the leading classes the probabilities they had and
    spreads what is left evenly. At another temperature that holds approximately.
    """
    classes = logits.shape[1]
    if k >= classes:
        return Answers(classes, logits)
    values, places = logits.sort(dim=1, descending=True)
    rest = temperature * (torch.logsumexp(values[:, k:] / temperature, dim=1) - math.log(classes - k))
    return Answers(classes, values[:, :k], places[:, :k].to(torch.uint8 if classes <= 256 else torch.int16), rest)


def write_epoch(folder: Path, epoch: int, drawn: Drawn, answers: Answers, precision: torch.dtype = torch.float16) -> None:
    """Write one epoch, logits by image row in `precision`."""
    stored = {name: value if name == "leading" else value.to(precision) for name, value in answers.tensors().items()}
    write_tensors(folder / epoch_file(epoch),
                  {**{name: getattr(drawn, name).to(dtype) for name, dtype in STORED.items()}, **stored})


def stored_epochs(epochs: int, share: float) -> int:
    """How many of `epochs` are stored when `share` of them is kept, at least one.

    LPLD keeps a random share of the batches; since draws of epochs are independent and views are addressed by image row, whole
    epochs are as random a share, and each time one is used again its batches are cut from another order.
    """
    return max(1, round(epochs * share))


def read_store(folder: str | Path) -> dict:
    """The manifest of a soft-label folder. Raises InputError, also for the original's pickled files, which are not opened."""
    if next(Path(folder).glob("epoch_*/batch_*.tar"), None):
        raise InputError(f"{folder}: expected soft labels in safetensors, found pickled batch_*.tar files, which can run code "
                         "and depend on the writer's sampler; write them again with generate_soft_label")
    manifest = read_manifest(folder, "soft_labels")
    raise_first(f"{Path(folder) / 'manifest.json'}", store_problems(manifest))
    return manifest


def store_problems(manifest: dict) -> list[str]:
    """What is wrong with the manifest of a soft-label folder: fields and files that a reader relies on."""
    config, files = manifest["config"], manifest["files"]
    problems = [f"config: expected {name} as a whole number in [{low}, {high}], found {config.get(name)!r}"
                for name, low, high in (("epochs", 1, math.inf), ("input_size", 1, LARGEST_PIXELS),
                                        ("fkd_seed", -math.inf, math.inf))
                if type(config.get(name)) is not int or not low <= config[name] <= high]
    if not isinstance(manifest.get("images"), str):
        problems.append(f"expected the digest of the images, found {manifest.get('images')!r}")
    if not files or set(files) != {epoch_file(epoch) for epoch in range(len(files))}:
        problems.append(f"files: expected {epoch_file(0)} and so on without a gap, found {len(files)} others")
    return problems


def epoch_problems(stored: dict[str, Tensor], count: int, classes: int, size: int, source: tuple[int, int] | None) -> list[str]:
    """What is wrong with the tensors of one epoch for `count` images of `source` (height, width) pixels, None where unknown."""
    kept = stored["logits"].shape[-1] if "logits" in stored and stored["logits"].ndim == 2 else classes
    leading = "leading" in stored or kept != classes
    problems = tensor_problems(stored, {
        "order": Expected("integer", (count,), 0, count - 1), "crop": Expected("integer", (count, 4), 0),
        "flip": Expected("bool", (count,)), "partner": Expected("integer", (count,), 0, count - 1),
        "ratio": Expected("float", (count,), 0, 1), "box": Expected("integer", (count, 4), 0, size),
        "logits": Expected("float", (count, kept)), **({"leading": Expected("integer", (count, kept), 0, classes - 1),
                                                        "rest": Expected("float", (count,))} if leading else {})})
    problems += [f"{name}: expected {dtype}, found {stored[name].dtype}" for name, dtype in STORED.items()
                 if name in stored and stored[name].dtype != dtype]
    if problems:
        return problems
    top, left, height, width = stored["crop"].long().unbind(1)
    if not 1 <= kept <= classes:
        problems.append(f"logits: expected those of 1 to {classes} classes, found {kept}")
    if len(stored["order"].unique()) != count:
        problems.append("order: expected each image once, found one twice")
    if (height < 1).any() or (width < 1).any():
        problems.append("crop: expected at least one pixel, found none")
    if source and ((top + height > source[0]).any() or (left + width > source[1]).any()):
        problems.append(f"crop: expected boxes inside {source[0]} x {source[1]} pixels, found one beyond")
    return problems


class SoftLabels:
    """A finished soft-label folder. `epoch(e)` gives what was drawn and the teacher's answers by image row."""

    def __init__(self, folder: str | Path, images: ImageSet | FileImages):
        """Raises InputError when the folder belongs to other images than `images`, or is none."""
        self.folder, self.manifest = Path(folder), read_store(folder)
        if self.manifest["images"] != images.digest:
            raise InputError(f"{folder}: expected soft labels of {images.name} ({images.digest[:12]}), found those of "
                             f"{self.manifest['config'].get('images')} ({self.manifest['images'][:12]})")
        if len(self.manifest["classes"]) != len(images.classes):
            raise InputError(f"{folder}: expected soft labels of {len(images.classes)} classes, found "
                             f"{len(self.manifest['classes'])}")
        config, self.count, self.source = self.manifest["config"], len(images), images.source
        self.epochs, self.size, self.seed = config["epochs"], config["input_size"], config["fkd_seed"]
        self.stored, self.classes = len(self.manifest["files"]), len(self.manifest["classes"])

    def epoch(self, epoch: int, device) -> tuple[Drawn, Answers]:
        """Draws and answers of one epoch on `device`; where fewer are stored they take turns, each time in another order.

        Raises InputError for tensors that do not fit the images.
        """
        turn, place = divmod(epoch, self.stored)
        stored = read_tensors(self.folder / epoch_file(place))
        raise_first(f"{self.folder / epoch_file(place)}",
                    epoch_problems(stored, self.count, self.classes, self.size, self.source))
        if turn:
            order = np.random.default_rng(seed_for(self.seed, "order", epoch)).permutation(len(stored["order"]))
            stored["order"] = torch.from_numpy(order)
        drawn = Drawn(**{field.name: stored[field.name].to(device) for field in fields(Drawn)})
        answers = {name: stored[name].to(device) for name in ("logits", "leading", "rest") if name in stored}
        return drawn, Answers(self.classes, **answers)


@torch.inference_mode()
def relabel(teacher, images: ImageSet | FileImages, drawn: Drawn, size: int, batch_size: int) -> Tensor:
    """The teacher's logits [N, K] for the view of every image, by row, on the CPU."""
    parts = torch.arange(len(images), device=images.device).split(batch_size)
    return torch.cat([teacher(seen).cpu() for seen in images.in_turn(drawn.to(images.device), parts, size)])


def soft_loss(student: Tensor, teacher: Tensor, temperature: float, weights: Tensor, keep_topk: int) -> Tensor:
    """KL(teacher || student) of logits [B, K] at `temperature`, averaged over images with `weights` [B] (mean 1).

    As in FKD, without the factor T^2. `keep_topk` keeps the teacher's k largest probabilities and spreads the rest evenly.
    """
    target = keep_largest(F.softmax(teacher / temperature, dim=1), keep_topk)
    divergence = F.kl_div(F.log_softmax(student / temperature, dim=1), target, reduction="none").sum(1)
    return (divergence * weights).mean()


def keep_largest(probabilities: Tensor, k: int) -> Tensor:
    """Keep the `k` largest entries of each row [B, K] and spread what is left evenly over the others."""
    classes = probabilities.shape[1]
    if k >= classes:
        return probabilities
    values, places = probabilities.topk(k, dim=1)
    rest = (1 - values.sum(1, keepdim=True)) / (classes - k)
    return rest.expand(-1, classes).scatter(1, places, values)


def hard_loss(student: Tensor, labels: Tensor, partner_labels: Tensor, ratio: Tensor, weights: Tensor,
              smoothing: float = 0.0) -> Tensor:
    """Cross-entropy of logits [B, K] with mixed labels: `ratio` [B] of the image's own, the rest of its partner's."""
    own = F.cross_entropy(student, labels, reduction="none", label_smoothing=smoothing)
    partner = F.cross_entropy(student, partner_labels, reduction="none", label_smoothing=smoothing)
    return ((ratio * own + (1 - ratio) * partner) * weights).mean()
