"""The training loop of teacher and student, and what it leaves on disk."""

import json
import math
import time
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from matching.augmentation import Views, cut_out, draw_cutout, draw_views
from matching.image_set import FileImages, ImageSet
from matching.soft_labels import SoftLabels, hard_loss, soft_loss
from scripts.artefact import finish, write_result
from scripts.files import write_tensors, write_text
from scripts.networks import WEIGHTS, accuracy, predict
from scripts.parallel import LEAST_ROWS, Team, batch_norms
from scripts.randomness import seed_for, seed_network
from scripts.training import CURVES, Loop, averaged, half_precision

STATE, METRICS = "state.pt", "metrics.jsonl"  # in a model's folder: the resume point, and one line per epoch
PER_STEP = ("triangle",)                      # curves that change the rate at every step; the others once an epoch


@dataclass(frozen=True)
class Recipe:
    """How a classifier is trained.

    `views` are drawn for every epoch, except with stored labels. Each batch is computed in `parts`, to save memory. `ema` is
    the decay of averaged weights (0: the last weights). With `bf16` the network computes in bfloat16 where that is safe
    (autocast); weights and loss stay float32.
    """

    epochs: int
    batch_size: int
    views: Views
    lr_schedule: str
    parts: int = 1
    ema: float = 0.0
    bf16: bool = False
    save_seconds: float = 20
    seed: int = 0  # of what the network draws itself


@dataclass(frozen=True)
class Labels:
    """Where labels come from: stored logits (`store`), a `teacher` on the fly, or without both the images' own classes.

    `weights` [N] weight the loss of each image. `smoothing` is for hard labels; `temperature` and `keep_topk` for soft ones.
    """

    weights: Tensor
    smoothing: float = 0.0
    store: SoftLabels | None = None
    teacher: nn.Module | None = None
    temperature: float = 1.0
    keep_topk: int = 1000


def train(network: nn.Module, images: ImageSet | FileImages, labels: Labels, recipe: Recipe, optimizer: torch.optim.Optimizer,
          folder: Path, name: str, team: Team | None = None) -> tuple[nn.Module, Loop]:
    """Train `network` and return what to test (the network, or its averaged weights) and the finished loop.

    An epoch is cut into batches of nearly one size, at most `batch_size`. In a `team` each process takes its rows of every part
    of a batch. Draws are functions of (seed, epoch), so a resumed run ends in the same weights.
    """
    # set-up
    team, size = team or Team(), recipe.views.size
    least = LEAST_ROWS if batch_norms(network) else 1
    average = averaged(network, recipe.ema) if recipe.ema else None
    wrapped = team.wrap(network)
    per_epoch = math.ceil(len(images) / recipe.batch_size)
    steps, curve = recipe.epochs * per_epoch, CURVES[recipe.lr_schedule]

    def rate_at(step: int) -> float:
        if recipe.lr_schedule in PER_STEP:
            return curve(step, steps)
        return curve(step // per_epoch, recipe.epochs)

    loop = Loop(network, optimizer, steps, rate_at, folder / STATE, name=name, average=average, team=team,
                images_per_step=round(len(images) / per_epoch), save_seconds=recipe.save_seconds)
    current = None
    for step in loop:
        epoch, batch = divmod(step, per_epoch)
        seed_network(recipe.seed, step, team.rank)

        # draw the epoch's views and labels
        if epoch != current:
            current, first, opened = epoch, batch, time.perf_counter()
            if labels.store is not None:
                drawn, stored = labels.store.epoch(epoch, images.device)
            else:
                drawn = draw_views(recipe.views, images, epoch)
            if recipe.views.cutout:
                rng = np.random.default_rng(seed_for(recipe.views.seed, "cutout", epoch))
                holes = torch.from_numpy(draw_cutout(len(images), size, recipe.views.cutout, rng)).to(images.device)
            batches = drawn.order.long().tensor_split(per_epoch)
            own_rows = [team.rows(rows, recipe.parts, least) for rows in batches]
            all_views = images.in_turn(drawn, chain.from_iterable(own_rows[batch:]), size)

        for rows in own_rows[batch]:
            # views
            views = next(all_views)
            if recipe.views.cutout:
                views = cut_out(views, holes[rows])

            # forward, student and teacher
            with team.no_sync(wrapped, last=rows is own_rows[batch][-1]), \
                    half_precision(views.device, recipe.bf16):
                logits = wrapped(views)
                if labels.store is not None:
                    answers = stored[rows]
                elif labels.teacher is not None:
                    with torch.no_grad():
                        answers = labels.teacher(views).float()

            # loss and backward: DistributedDataParallel averages over processes, so the loss is scaled by their number
            if labels.store is not None or labels.teacher is not None:
                loss = soft_loss(logits.float(), answers, labels.temperature, labels.weights[rows], labels.keep_topk)
            else:
                partners = drawn.partner[rows].long()
                loss = hard_loss(logits.float(), images.labels[rows], images.labels[partners], drawn.ratio[rows],
                                 labels.weights[rows], labels.smoothing)
            loop.backward(loss * (team.size * len(rows) / len(batches[batch])))

        # step
        loop.step()

        # log; the loop writes its state after this, so no epoch before a resume point lacks its line
        if batch == per_epoch - 1:
            loop.check()
        if team.main and batch == per_epoch - 1:
            mean = sum(loop.losses[-per_epoch:]) / per_epoch
            share, spent = (per_epoch - first) / per_epoch, time.perf_counter() - opened
            line = {"epoch": epoch + 1, "step": step + 1, "loss": mean, "lr": optimizer.param_groups[0]["lr"],
                    "seconds": round(loop.seconds, 3), "images_per_second": round(share * len(images) / spent, 1)}
            write_line(folder / METRICS, epoch, line)
            if team.accelerator is not None:
                team.accelerator.log(line, step=epoch + 1)
    return average.module if average else network, loop


def write_line(path: Path, index: int, line: dict) -> None:
    """Write `line` as JSON after the first `index` lines of `path`; a continued run thus writes no epoch twice."""
    earlier = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    write_text(path, "\n".join([*earlier[:index], json.dumps(line)]) + "\n")


def finish_model(folder: Path, kind: str, network: nn.Module, images: ImageSet | FileImages, test: ImageSet, config: dict,
                 loop: Loop) -> float:
    """Test the network, write weights, result and manifest, remove the resume point; returns test accuracy in [0, 1]."""
    top1 = accuracy(predict(network, test.images), test.labels)
    write_tensors(folder / WEIGHTS, network.state_dict())
    metrics = {"test_accuracy": top1, "test_images": len(test), "train_images": len(images), "steps": len(loop.losses),
               "last_loss": loop.losses[-1]}
    write_result(folder, kind, config, metrics, {"train": loop.seconds}, added_up=True)
    finish(folder, kind, images.classes, config, [WEIGHTS], test_accuracy=top1, train_images=images.digest)
    (folder / STATE).unlink(missing_ok=True)
    print(f"{folder}: test accuracy {100 * top1:.1f} % ({len(images)} images, {len(loop.losses)} steps, {loop.seconds:.0f} s)")
    return top1
