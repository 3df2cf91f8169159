"""Merge rules for task vectors: pure functions of T vectors [P].

Vectors have no BatchNorm statistics, whose sums would have negative variances.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def merge_sum(vectors: Sequence[Tensor]) -> Tensor:
    """Task arithmetic (Ilharco et al. 2023, arXiv 2212.04089): the sum over tasks, [P]."""
    total = vectors[0].clone()  # no stack: copying ten million weights a task takes longer than adding them
    for vector in vectors[1:]:
        total += vector
    return total


def merge_mean(vectors: Sequence[Tensor]) -> Tensor:
    """The mean over tasks, [P]; at scale 1 the average of the experts."""
    return merge_sum(vectors).div_(len(vectors))


def merge_magmax(vectors: Sequence[Tensor]) -> Tensor:
    """MagMax (Marczak et al. 2024, arXiv 2407.06322): per parameter the change of largest magnitude, [P]."""
    changes = torch.stack(list(vectors))
    return changes.gather(0, changes.abs().argmax(0, keepdim=True))[0]


def merge_ties(vectors: Sequence[Tensor], keep: float = 0.2) -> Tensor:
    """TIES (Yadav et al. 2023, arXiv 2306.01708), [P].

    Trim each vector to the fraction `keep` of largest magnitudes, elect the sign of the sum per parameter, and average the
    values of that sign.
    """
    trimmed = torch.stack([_trim(vector, keep) for vector in vectors])
    agreeing = trimmed * (trimmed.sign() == trimmed.sum(0).sign())
    return agreeing.sum(0) / (agreeing != 0).sum(0).clamp(min=1)


def _trim(vector: Tensor, keep: float) -> Tensor:
    """`vector` with all but its ceil(keep P) entries of largest magnitude set to zero."""
    rows = vector.abs().topk(math.ceil(keep * len(vector))).indices
    return torch.zeros_like(vector).index_copy(0, rows, vector[rows])


MERGES: dict[str, Callable[[Sequence[Tensor]], Tensor]] = {
    "sum": merge_sum, "mean": merge_mean, "magmax": merge_magmax, "ties": merge_ties}
