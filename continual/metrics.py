"""Continual-learning metrics of the accuracy matrix R [T, T].

R[t, j] in [0, 1] is the accuracy on the test images of task j after training on tasks 0..t.
"""

import numpy as np
import torch
from torch import Tensor


def masked_accuracy(logits: Tensor, labels: Tensor, classes) -> float:
    """Accuracy in [0, 1] of logits [N, K] among `classes`."""
    return (predictions(logits, classes) == labels).float().mean().item()


def predictions(logits: Tensor, classes) -> Tensor:
    """The class of the largest logit among `classes`, int64 [N], of logits [N, K]."""
    allowed = torch.tensor(sorted(classes), device=logits.device)
    return allowed[logits[:, allowed].argmax(1)]


def confusion_matrix(logits: Tensor, labels: Tensor, classes) -> Tensor:
    """Counts int64 [K, K] on the CPU of predictions among `classes`: row = true class, column = predicted class."""
    count = logits.shape[1]
    return torch.bincount(labels * count + predictions(logits, classes), minlength=count * count).view(count, count).cpu()


def per_class_accuracy(confusion: Tensor) -> list[float | None]:
    """The accuracy of each true class, [K]; None for a class without test images."""
    return [right / total if total else None
            for right, total in zip(confusion.diagonal().tolist(), confusion.sum(1).tolist(), strict=True)]


def forward_transfer(matrix: np.ndarray, baseline: list[float]) -> float | None:
    """Forward transfer (Lopez-Paz and Ranzato 2017, eq. 4): the mean over j > 0 of R[j-1, j] - b[j]; None for one task.

    `baseline` b [T] is the accuracy of an untrained network with other initial weights than R's.
    """
    if len(matrix) == 1:
        return None
    return float(np.mean(np.diag(matrix, 1) - np.array(baseline[1:])))


def average_accuracy(matrix: np.ndarray) -> float:
    """ACC (Lopez-Paz and Ranzato 2017, eq. 2): the mean of R's last row."""
    return float(np.mean(matrix[-1]))


def average_incremental_accuracy(matrix: np.ndarray) -> float:
    """The mean over t of the mean of R[t, :t+1] (Rebuffi et al. 2017, with tasks of equal weight)."""
    return float(np.mean([row[:task + 1].mean() for task, row in enumerate(matrix)]))


def backward_transfer(matrix: np.ndarray) -> float | None:
    """BWT (Lopez-Paz and Ranzato 2017, eq. 3): the mean over j < T-1 of R[T-1, j] - R[j, j]; None for one task."""
    if len(matrix) == 1:
        return None
    return float(np.mean(matrix[-1, :-1] - np.diag(matrix)[:-1]))


def forgetting(matrix: np.ndarray) -> float | None:
    """Forgetting (Chaudhry et al. 2018, eq. 3): the mean over j < T-1 of (max over t < T-1 of R[t, j]) - R[T-1, j]."""
    if len(matrix) == 1:
        return None
    return float(np.mean(matrix[:-1, :-1].max(0) - matrix[-1, :-1]))


def summarise(rows: list[list[float] | None]) -> dict:
    """R and its metrics. Joint training has the last row only, and so ACC only."""
    whole = all(row is not None for row in rows)
    matrix = np.array(rows if whole else rows[-1:], dtype=float)
    metrics = {"average_incremental": average_incremental_accuracy, "bwt": backward_transfer, "forgetting": forgetting}
    return {"matrix": rows, "acc": average_accuracy(matrix),
            **{name: metric(matrix) if whole else None for name, metric in metrics.items()}}
