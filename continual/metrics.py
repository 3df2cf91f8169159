"""Continual-learning metrics, all from the accuracy matrix R.

R [T, T]: R[t, j] is the accuracy on the test images of task j after training on tasks 0..t, in [0, 1].
"""

import numpy as np
import torch
from torch import Tensor


def masked_accuracy(logits: Tensor, labels: Tensor, classes) -> float:
    """Accuracy in [0, 1] of logits [N, K] when only `classes` may be answered."""
    allowed = torch.tensor(sorted(classes), device=logits.device)
    return (allowed[logits[:, allowed].argmax(1)] == labels).float().mean().item()


def confusion_matrix(logits: Tensor, labels: Tensor, classes) -> Tensor:
    """Counts int64 [K, K] on the CPU of what logits [N, K] answer among `classes`: row = true class, column = answer."""
    allowed, count = torch.tensor(sorted(classes), device=logits.device), logits.shape[1]
    answers = allowed[logits[:, allowed].argmax(1)]
    return torch.bincount(labels * count + answers, minlength=count * count).view(count, count).cpu()


def per_class_accuracy(confusion: Tensor) -> list[float | None]:
    """The share of each true class that was answered right, [K]; None for a class without test images."""
    return [right / total if total else None
            for right, total in zip(confusion.diagonal().tolist(), confusion.sum(1).tolist(), strict=True)]


def forward_transfer(matrix: np.ndarray, baseline: list[float]) -> float | None:
    """Forward transfer (Lopez-Paz and Ranzato 2017, eq. 4): the mean over j > 0 of R[j-1, j] - b[j]; None for one task.

    `baseline` b [T] is the accuracy of a network that has learnt nothing: its own initial weights, not those of R's network.
    """
    if len(matrix) == 1:
        return None
    return float(np.mean(np.diag(matrix, 1) - np.array(baseline[1:])))


def average_accuracy(matrix: np.ndarray) -> float:
    """ACC (Lopez-Paz and Ranzato 2017, eq. 2): the mean of R's last row."""
    return float(np.mean(matrix[-1]))


def average_incremental_accuracy(matrix: np.ndarray) -> float:
    """The mean over t of the mean of R[t, :t+1], the tasks seen by then (Rebuffi et al. 2017, tasks weighing the same)."""
    return float(np.mean([row[:place + 1].mean() for place, row in enumerate(matrix)]))


def backward_transfer(matrix: np.ndarray) -> float | None:
    """BWT (Lopez-Paz and Ranzato 2017, eq. 3): the mean over j < T-1 of R[T-1, j] - R[j, j]; None for one task."""
    if len(matrix) == 1:
        return None
    return float(np.mean(matrix[-1, :-1] - np.diag(matrix)[:-1]))


def forgetting(matrix: np.ndarray) -> float | None:
    """Forgetting (Chaudhry et al. 2018, eq. 3): over j < T-1, the mean of max over t < T-1 of R[t, j], less R[T-1, j]."""
    if len(matrix) == 1:
        return None
    return float(np.mean(matrix[:-1, :-1].max(0) - matrix[-1, :-1]))


def summarise(rows: list[list[float] | None]) -> dict:
    """R and what follows from it; without every row (joint training has the last alone) only ACC does."""
    whole = all(row is not None for row in rows)
    matrix = np.array(rows if whole else rows[-1:], dtype=float)
    metrics = {"average_incremental": average_incremental_accuracy, "bwt": backward_transfer, "forgetting": forgetting}
    return {"matrix": rows, "acc": average_accuracy(matrix),
            **{name: metric(matrix) if whole else None for name, metric in metrics.items()}}
