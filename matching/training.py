"""Training a classifier on an image set: what teacher and student have in common."""

import math
from collections.abc import Callable
from itertools import chain
from pathlib import Path

import numpy as np
from torch import Tensor, nn

from distillation.architectures import accuracy, predict
from distillation.manifest import finish, write_result, write_tensors
from distillation.optimisation import optimise
from distillation.randomness import seed_for
from matching.augmentation import Drawn, draw_epoch
from matching.file_images import FileImages
from matching.image_set import ImageSet
from matching.soft_labels import hard_loss

STATE = "state.pt"  # the resume point in a model's folder
EpochOf = Callable[[int], tuple[Drawn, Tensor | None]]  # epoch -> draws and, with soft labels, logits [N, K]


def drawn_views(images: ImageSet | FileImages, size: int, seed: int, **settings) -> EpochOf:
    """Views drawn anew every epoch, a function of (seed, epoch); `settings` as in `draw_epoch`."""
    def epoch_of(epoch: int):
        rng = np.random.default_rng(seed_for(seed, "views", epoch))
        return draw_epoch(len(images), images.source, size, rng, **settings).to(images.device), None
    return epoch_of


def train(network: nn.Module, images: ImageSet | FileImages, epoch_of: EpochOf, loss_of: Callable, optimizer, *, epochs: int,
          batch_size: int, size: int, schedule: Callable[[float], float], state_path: Path, name: str, chunks: int = 1,
          save_seconds: float = 20) -> dict:
    """Train for `epochs`; `loss_of(logits, teacher logits or None, draws, rows)` is the mean loss of a batch.

    Each epoch's order is cut into equal batches of at most `batch_size` images, each batch into `chunks` for the memory's sake.
    `schedule` maps the share of epochs done, in [0, 1), to the learning-rate factor. Returns what `optimise` returns.
    """
    per_epoch = math.ceil(len(images) / batch_size)
    opened: dict = {}  # the epoch at hand, with its views in the order in which they will be asked for

    def open_epoch(epoch: int, place: int):
        drawn, teacher = epoch_of(epoch)
        batches = [rows.tensor_split(min(chunks, len(rows))) for rows in drawn.order.long().tensor_split(per_epoch)]
        return drawn, teacher, batches, images.in_turn(drawn, chain.from_iterable(batches[place:]), size)

    def parts_at(step: int):
        epoch, place = divmod(step, per_epoch)
        if epoch not in opened:
            opened.clear()
            opened[epoch] = open_epoch(epoch, place)
        drawn, teacher, batches, in_turn = opened[epoch]
        for part in batches[place]:
            share = len(part) / sum(map(len, batches[place]))
            yield loss_of(network(next(in_turn)), None if teacher is None else teacher[part], drawn, part) * share
    return optimise(network, parts_at, epochs * per_epoch, optimizer, lambda step: schedule(step // per_epoch / epochs),
                    state_path, name=name, images_per_step=round(len(images) / per_epoch), save_seconds=save_seconds)


def hard_loss_of(images: ImageSet, weights: Tensor, smoothing: float = 0.0) -> Callable:
    """A `loss_of` for hard labels, mixed as the views were."""
    def loss_of(logits, _teacher, drawn, rows):
        partner = drawn.partner[rows].long()
        return hard_loss(logits, images.labels[rows], images.labels[partner], drawn.ratio[rows], weights[rows], smoothing)
    return loss_of


def cosine(share: float) -> float:
    """Half a cosine from 1 to 0."""
    return 0.5 * (1 + math.cos(math.pi * share))


def linear(share: float) -> float:
    """A straight line from 1 to 0."""
    return 1 - share


def warm_cosine(share: float, warm_up: float = 0.1) -> float:
    """Linear up during the first `warm_up` of training, then half a cosine to 0."""
    return (share + 0.02) / (warm_up + 0.02) if share < warm_up else cosine((share - warm_up) / (1 - warm_up))


def finish_model(folder: Path, kind: str, network: nn.Module, images: ImageSet, test: ImageSet, config: dict,
                 run: dict) -> float:
    """Test the trained network, write weights, result and manifest; returns last-epoch test accuracy in [0, 1].

    The resume point, three times the weights' size, has no use then and goes.
    """
    top1 = accuracy(predict(network, test.images), test.labels)
    write_tensors(folder / "model.safetensors", network.state_dict())
    metrics = {"test_accuracy": top1, "test_images": len(test), "train_images": len(images), "steps": len(run["losses"]),
               "last_loss": run["losses"][-1]}
    write_result(folder, kind, config, metrics, {"train": run["seconds"]})
    finish(folder, kind, images.classes, config, ["model.safetensors"], test_accuracy=top1, train_images=images.digest)
    (folder / STATE).unlink(missing_ok=True)
    print(f"{folder}: test accuracy {100 * top1:.1f} % ({len(images)} images, {len(run['losses'])} steps, "
          f"{run['seconds']:.0f} s)")
    return top1
