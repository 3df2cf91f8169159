"""Task vectors and how they are merged: pure functions of vectors [T, P], one row per task, over parameters only.

BatchNorm's running statistics are no parameters and never part of a vector: sums of them have negative variances.
"""

from collections.abc import Callable

import torch
from torch import Tensor


def merge_sum(vectors: Tensor) -> Tensor:
    """Task arithmetic (Ilharco et al. 2023, arXiv 2212.04089): the sum over tasks, [P]."""
    return vectors.sum(0)


def merge_mean(vectors: Tensor) -> Tensor:
    """The mean over tasks, [P]: with scale 1, the average of the experts."""
    return vectors.mean(0)


def merge_magmax(vectors: Tensor) -> Tensor:
    """MagMax (Marczak et al. 2024, arXiv 2407.06322): per parameter the change of largest magnitude, [P]."""
    return vectors.gather(0, vectors.abs().argmax(0, keepdim=True))[0]


def merge_ties(vectors: Tensor, keep: float = 0.2) -> Tensor:
    """TIES (Yadav et al. 2023, arXiv 2306.01708), [P].

    Trim each vector to its share `keep` of largest magnitudes, elect per parameter the sign of the larger total, and average
    the values that have it.
    """
    trimmed = torch.stack([_trim(vector, keep) for vector in vectors])
    agreeing = trimmed * (trimmed.sign() == trimmed.sum(0).sign())
    return agreeing.sum(0) / (agreeing != 0).sum(0).clamp(min=1)


def _trim(vector: Tensor, keep: float) -> Tensor:
    """`vector` with all but its ceil(keep P) entries of largest magnitude set to zero."""
    rows = vector.abs().topk(max(1, -int(-keep * len(vector) // 1))).indices
    return torch.zeros_like(vector).index_copy(0, rows, vector[rows])


MERGES: dict[str, Callable[[Tensor], Tensor]] = {
    "sum": merge_sum, "mean": merge_mean, "magmax": merge_magmax, "ties": merge_ties}
