"""Training a classifier on an image set: what teacher and student have in common."""

import json
import math
import time
from collections.abc import Callable
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from matching.augmentation import Drawn, draw_epoch
from matching.file_images import FileImages
from matching.image_set import ImageSet
from matching.soft_labels import SoftLabels, hard_loss
from scripts.artefact import finish, write_result, write_tensors, write_text
from scripts.networks import accuracy, predict
from scripts.parallel import Team
from scripts.randomness import seed_for
from scripts.training import optimise

STATE, METRICS = "state.pt", "metrics.jsonl"  # in a model's folder: the resume point, and a line per epoch
Ask = Callable[[Tensor, Tensor], Tensor]  # rows [B] and their views -> the teacher's logits [B, K]
EpochOf = Callable[[int], tuple[Drawn, Ask | None]]  # epoch -> draws and, with soft labels, whom to ask


def drawn_views(images: ImageSet | FileImages, size: int, seed: int, **settings) -> EpochOf:
    """Views drawn anew every epoch, a function of (seed, epoch); `settings` as in `draw_epoch`."""
    def epoch_of(epoch: int):
        rng = np.random.default_rng(seed_for(seed, "views", epoch))
        return draw_epoch(len(images), images.source, size, rng, **settings).to(images.device), None
    return epoch_of


def stored_labels(store: SoftLabels, device) -> EpochOf:
    """Views and answers as they are stored."""
    def epoch_of(epoch: int):
        drawn, answers = store.epoch(epoch, device)
        return drawn, lambda rows, _views: answers[rows]
    return epoch_of


def asked_labels(epoch_of: EpochOf, teacher: nn.Module) -> EpochOf:
    """The views of `epoch_of`, each answered by `teacher` when it is trained on."""
    @torch.no_grad()
    def ask(_rows, seen: Tensor) -> Tensor:
        return teacher(seen).float()
    return lambda epoch: (epoch_of(epoch)[0], ask)


def train(network: nn.Module, images: ImageSet | FileImages, epoch_of: EpochOf, loss_of: Callable, optimizer, *, epochs: int,
          batch_size: int, size: int, schedule: Callable[[float], float], state_path: Path, name: str, chunks: int = 1,
          save_seconds: float = 20, rate_per_step: bool = False, bf16: bool = False, average: AveragedModel | None = None,
          alter: Callable[[Tensor, int, Tensor], Tensor] | None = None, metrics_path: Path | None = None,
          log: Callable[[dict], None] | None = None, team: Team | None = None) -> dict:
    """Train for `epochs`; `loss_of(logits, teacher logits or None, draws, rows)` is the mean loss of a batch.

    Each epoch's order is cut into equal batches of at most `batch_size` images, each batch into `chunks` for the memory's sake.
    `schedule` maps the share of epochs done (with `rate_per_step`, of steps), in [0, 1), to the learning-rate factor.
    `bf16` computes the network in bfloat16 where that is safe (autocast); weights and loss stay float32. `average` follows
    the weights. `alter(views, epoch, rows)` changes the normalised views [B, 3, S, S] of a batch. `metrics_path` gets one JSON
    line per epoch (see `write_metrics`), which `log` is given too. In a `team` each process takes its rows of every part of a
    batch. Returns what `optimise` returns.
    """
    team = team or Team()
    joined, per_epoch = team.wrap(network), math.ceil(len(images) / batch_size)
    steps = epochs * per_epoch
    opened: dict = {}  # the epoch at hand, with its views in the order in which they will be asked for

    def open_epoch(epoch: int, place: int):
        drawn, ask = epoch_of(epoch)
        batches = [rows.tensor_split(min(chunks, len(rows))) for rows in drawn.order.long().tensor_split(per_epoch)]
        shares = [[team.rows(part) for part in batch] for batch in batches]
        counts = [sum(map(len, batch)) for batch in batches]
        return drawn, ask, shares, counts, images.in_turn(drawn, chain.from_iterable(shares[place:]), size)

    def rate_at(step: int) -> float:
        return schedule(step / steps if rate_per_step else step // per_epoch / epochs)

    def parts_at(step: int):
        epoch, place = divmod(step, per_epoch)
        if epoch not in opened:
            opened.clear()
            opened[epoch] = open_epoch(epoch, place)
        drawn, ask, shares, counts, in_turn = opened[epoch]
        for part in shares[place]:
            seen = next(in_turn) if alter is None else alter(next(in_turn), epoch, part)
            with team.no_sync(joined, part is shares[place][-1]), \
                    torch.autocast(seen.device.type, torch.bfloat16, enabled=bf16):
                logits, answers = joined(seen), ask and ask(part, seen)
            yield loss_of(logits.float(), answers, drawn, part) * (team.size * len(part) / counts[place])
    after = metrics_path and write_metrics(metrics_path, per_epoch, len(images), lambda: optimizer.param_groups[0]["lr"], log)
    return optimise(network, parts_at, steps, optimizer, rate_at, state_path, name=name, average=average, after=after,
                    images_per_step=round(len(images) / per_epoch), save_seconds=save_seconds, team=team)


def write_metrics(path: Path, per_epoch: int, images: int, rate: Callable[[], float],
                  log: Callable[[dict], None] | None) -> Callable[[int, list, float], None]:
    """An `after` for `optimise` that gives `path` one JSON line at the end of each epoch of `per_epoch` steps.

    A line has epoch, step (both counted from 1), the epoch's mean loss, the last learning rate, seconds of training so far and
    images_per_second since the last line. A run that continues writes the epochs after its resume point again, none twice.
    """
    marked, begun = time.perf_counter(), None

    def after(step: int, losses: list, seconds: float) -> None:
        nonlocal marked, begun
        begun = step if begun is None else begun
        epoch, place = divmod(step + 1, per_epoch)
        if place:
            return
        loss = sum(float(value) for value in losses[-per_epoch:]) / per_epoch
        now, share = time.perf_counter(), (step + 1 - begun) / per_epoch
        line = {"epoch": epoch, "step": step + 1, "loss": loss, "lr": rate(), "seconds": round(seconds, 3),
                "images_per_second": round(share * images / (now - marked), 1)}
        earlier = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        write_text(path, "\n".join([*earlier[:epoch - 1], json.dumps(line)]) + "\n")
        if log is not None:
            log(line)
        marked, begun = now, step + 1
    return after


def hard_loss_of(images: ImageSet, weights: Tensor, smoothing: float = 0.0) -> Callable:
    """A `loss_of` for hard labels, mixed as the views were."""
    def loss_of(logits, _teacher, drawn, rows):
        partner = drawn.partner[rows].long()
        return hard_loss(logits, images.labels[rows], images.labels[partner], drawn.ratio[rows], weights[rows], smoothing)
    return loss_of


def cosine(share: float) -> float:
    """Half a cosine from 1 to 0."""
    return 0.5 * (1 + math.cos(math.pi * share))


def half_cosine(share: float) -> float:
    """The first half of half a cosine, from 1 to 0.5 (RDED, arXiv 2312.03526, released code)."""
    return cosine(share / 2)


def linear(share: float) -> float:
    """A straight line from 1 to 0."""
    return 1 - share


def warm_cosine(share: float, warm_up: float = 0.1) -> float:
    """Linear up during the first `warm_up` of training, then half a cosine to 0."""
    return (share + 0.02) / (warm_up + 0.02) if share < warm_up else cosine((share - warm_up) / (1 - warm_up))


def one_cycle(share: float, rise: float = 0.25, start: float = 0.04) -> float:
    """Linear from `start` up to 1 during the first `rise` of training, then linear down to 0 (Smith & Topin 2017)."""
    return start + (1 - start) * share / rise if share < rise else (1 - share) / (1 - rise)


SCHEDULES = {"linear": linear, "cosine": cosine, "half-cosine": half_cosine, "warm-cosine": warm_cosine,
             "one-cycle": one_cycle}


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
