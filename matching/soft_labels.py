"""FKD soft labels: the draws and the teacher's logits of every epoch, by image row.

One safetensors file per epoch: `order`, `crop`, `flip`, `partner`, `ratio`, `box` (see augmentation.Drawn) and `logits` [N, C],
or the k largest `logits` [N, k] of the classes `leading` [N, k] and one logit `rest` [N] for all others. A reader makes the
same views again without the writer's sampler, batch size or library versions. FKD: Shen & Xing 2022 (arXiv 2112.01528).
Fewer epochs, reused: LPLD, Xiao & He 2024 (arXiv 2410.15919).
"""

import math
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from matching.augmentation import Drawn, batches_of
from matching.image_set import FileImages, ImageSet
from scripts.artefact import raise_first, read_manifest
from scripts.cli import InputError
from scripts.files import Expected, read_tensors, tensor_problems, write_tensors
from scripts.networks import LARGEST_PIXELS
from scripts.randomness import seed_for

STORED = {"order": torch.int32, "crop": torch.int16, "flip": torch.bool, "partner": torch.int32, "ratio": torch.float32,
          "box": torch.int16}


def epoch_file(epoch: int) -> str:
    """The name of an epoch's file."""
    return f"epoch_{epoch:04d}.safetensors"


@dataclass(frozen=True)
class Answers:
    """A teacher's logits for N views; `answers[rows]` is float32 [B, classes].

    `logits` [N, k] belong to the classes `leading` [N, k]; every other class has the logit `rest` [N]. Complete logits have
    neither, and k = classes.
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
        """The tensors to store, by name."""
        return {name: value for name in ("logits", "leading", "rest") if (value := getattr(self, name)) is not None}


def leading_answers(logits: Tensor, k: int, temperature: float) -> Answers:
    """Keep the `k` largest logits of each row [N, C]; the others share one logit.

    At `temperature` the softmax keeps the probabilities of the leading classes and spreads the rest evenly; at another
    temperature this holds approximately.
    """
    classes = logits.shape[1]
    if k >= classes:
        return Answers(classes, logits)
    values, places = logits.sort(dim=1, descending=True)
    rest = temperature * (torch.logsumexp(values[:, k:] / temperature, dim=1) - math.log(classes - k))
    return Answers(classes, values[:, :k], places[:, :k].to(torch.uint8 if classes <= 256 else torch.int16), rest)


def write_epoch(folder: Path, epoch: int, drawn: Drawn, answers: Answers, precision: torch.dtype = torch.float16) -> None:
    """Write one epoch, with logits in `precision`."""
    stored = {name: value if name == "leading" else value.to(precision) for name, value in answers.tensors().items()}
    write_tensors(folder / epoch_file(epoch),
                  {**{name: getattr(drawn, name).to(dtype) for name, dtype in STORED.items()}, **stored},
                  "the teacher's weights are damaged, or its logits exceed float16: leave out --use-fp16")


def stored_epochs(epochs: int, share: float) -> int:
    """The number of epochs to store: `share` of `epochs`, at least one.

    LPLD keeps a random part of all batches. Epochs are drawn independently, so whole epochs are as random a part; each reuse
    cuts batches from another order.
    """
    return max(1, round(epochs * share))


def read_store(folder: str | Path) -> dict:
    """The manifest of a soft-label folder. The original's pickled files are refused without opening them."""
    if next(Path(folder).glob("epoch_*/batch_*.tar"), None):
        raise InputError(f"{folder}: expected soft labels in safetensors, found pickled batch_*.tar files, which can run code "
                         "and depend on the writer's sampler; write them again with generate_soft_label")
    manifest = read_manifest(folder, "soft_labels")
    raise_first(f"{Path(folder) / 'manifest.json'}", store_problems(manifest))
    return manifest


def store_problems(manifest: dict) -> list[str]:
    """Problems of a soft-label manifest: the fields and files that a reader needs."""
    config, files = manifest["config"], manifest["files"]
    numbers = [("epochs", 1, math.inf), ("input_size", 1, LARGEST_PIXELS), ("fkd_seed", -math.inf, math.inf)]
    if "mix_per" in config:
        numbers.append(("batch_size", 1, math.inf))
    problems = [f"config: expected {name} as a whole number in [{low}, {high}], found {config.get(name)!r}"
                for name, low, high in numbers if type(config.get(name)) is not int or not low <= config[name] <= high]
    if not isinstance(manifest.get("images"), str):
        problems.append(f"expected the digest of the images, found {manifest.get('images')!r}")
    if not files or set(files) != {epoch_file(epoch) for epoch in range(len(files))}:
        problems.append(f"files: expected {epoch_file(0)} and so on without a gap, found {len(files)} others")
    return problems


def epoch_problems(stored: dict[str, Tensor], count: int, classes: int, size: int, source: tuple[int, int] | None) -> list[str]:
    """Problems of one epoch's tensors for `count` images of `source` (height, width) pixels, None if unknown."""
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
    """A finished soft-label folder; `epoch` gives draws and logits by image row."""

    def __init__(self, folder: str | Path, images: ImageSet | FileImages):
        """Raises InputError if the folder is damaged or belongs to other images than `images`."""
        self.folder, self.manifest = Path(folder), read_store(folder)
        if self.manifest["images"] != images.digest:
            raise InputError(f"{folder}: expected soft labels of {images.name} ({images.digest[:12]}), found those of "
                             f"{self.manifest['config'].get('images')} ({self.manifest['images'][:12]})")
        if len(self.manifest["classes"]) != len(images.classes):
            raise InputError(f"{folder}: expected soft labels of {len(images.classes)} classes, found "
                             f"{len(self.manifest['classes'])}")
        config, self.count, self.source = self.manifest["config"], len(images), images.source
        self.epochs, self.size, self.seed = config["epochs"], config["input_size"], config["fkd_seed"]
        self.mix_batch = config["batch_size"] if "mix_per" in config else None
        self.stored, self.classes = len(self.manifest["files"]), len(self.manifest["classes"])

    def epoch(self, epoch: int, device) -> tuple[Drawn, Answers]:
        """Draws and logits of one epoch on `device`. Fewer stored epochs are reused in turn, each time in another order.

        Raises InputError for tensors that do not fit the images.
        """
        reuse, index = divmod(epoch, self.stored)
        path = self.folder / epoch_file(index)
        stored = read_tensors(path)
        raise_first(f"{path}", epoch_problems(stored, self.count, self.classes, self.size, self.source))
        if reuse:
            stored["order"] = torch.from_numpy(self.other_order(stored["order"].numpy(), epoch))
        drawn = Drawn(**{field.name: stored[field.name].to(device) for field in fields(Drawn)})
        answers = {name: stored[name].to(device) for name in ("logits", "leading", "rest") if name in stored}
        return drawn, Answers(self.classes, **answers)

    def other_order(self, order: np.ndarray, epoch: int) -> np.ndarray:
        """Another order of the rows `order` [N]; batches that share a mix stay together."""
        rng = np.random.default_rng(seed_for(self.seed, "order", epoch))
        if self.mix_batch is None:
            return rng.permutation(len(order))
        batches = batches_of(order, self.mix_batch)
        others = [batches[index] for index in rng.permutation(len(batches))]
        return np.concatenate(sorted(others, key=len, reverse=True))  # the larger ones first, as `batches_of` cuts them


@torch.inference_mode()
def relabel(teacher, images: ImageSet | FileImages, drawn: Drawn, size: int, batch_size: int) -> Tensor:
    """The teacher's logits [N, K] for the view of every image, by row, on the CPU."""
    parts = torch.arange(len(images), device=images.device).split(batch_size)
    return torch.cat([teacher(views).cpu() for views in images.in_turn(drawn.to(images.device), parts, size)])


# losses


def soft_loss(student: Tensor, teacher: Tensor, temperature: float, weights: Tensor, keep_topk: int) -> Tensor:
    """KL(teacher || student) of logits [B, K] at `temperature`, averaged with `weights` [B]; as in FKD without the factor T^2.

    The teacher's `keep_topk` largest probabilities are kept, the rest is spread evenly.
    """
    target = keep_largest(F.softmax(teacher / temperature, dim=1), keep_topk)
    divergence = F.kl_div(F.log_softmax(student / temperature, dim=1), target, reduction="none").sum(1)
    return (divergence * weights).mean()


def keep_largest(probabilities: Tensor, k: int) -> Tensor:
    """Keep the `k` largest entries of each row [B, K] and spread the rest evenly over the others."""
    classes = probabilities.shape[1]
    if k >= classes:
        return probabilities
    values, places = probabilities.topk(k, dim=1)
    rest = (1 - values.sum(1, keepdim=True)) / (classes - k)
    return rest.expand(-1, classes).scatter(1, places, values)


def hard_loss(student: Tensor, labels: Tensor, partner_labels: Tensor, ratio: Tensor, weights: Tensor,
              smoothing: float = 0.0) -> Tensor:
    """Cross-entropy of logits [B, K] with `ratio` [B] of the image's label and the rest of its partner's."""
    own = F.cross_entropy(student, labels, reduction="none", label_smoothing=smoothing)
    partner = F.cross_entropy(student, partner_labels, reduction="none", label_smoothing=smoothing)
    return ((ratio * own + (1 - ratio) * partner) * weights).mean()
