"""Which real images stand for a class: the baselines every table of distilled images needs."""

import numpy as np
import torch
from torch import Tensor

from scripts.randomness import seed_for


def random_order(count: int, seed: int, label: int) -> np.ndarray:
    """The places 0 ... count - 1 of class `label` in random order; the first n of them are n random images."""
    return np.random.default_rng(seed_for(seed, "random", label)).permutation(count)


def herding(latents: Tensor, count: int) -> list[int]:
    """Places of `count` of the latents [N, ...], chosen one after the other so that their mean stays nearest to that of all.

    Welling 2009; as in iCaRL (Rebuffi et al. 2017, algorithm 4) no image is chosen twice. Raises ValueError when N < count.
    """
    flat = _flat(latents, count)
    mean, total, chosen = flat.mean(0), torch.zeros_like(flat[0]), []
    for step in range(1, count + 1):
        distances = (mean - (total + flat) / step).pow(2).sum(1)
        distances[chosen] = torch.inf
        chosen.append(int(distances.argmin()))
        total += flat[chosen[-1]]
    return chosen


def k_center(latents: Tensor, count: int) -> list[int]:
    """Places of `count` of the latents [N, ...]: the one nearest to the mean, then always the one farthest from those chosen.

    The greedy 2-approximation of the k-center problem (Gonzalez 1985; Sener & Savarese 2018, algorithm 1). Raises ValueError
    when N < count.
    """
    flat = _flat(latents, count)
    chosen = [int((flat - flat.mean(0)).pow(2).sum(1).argmin())]
    distances = torch.full((len(flat),), torch.inf, dtype=flat.dtype)
    while len(chosen) < count:
        distances = torch.minimum(distances, (flat - flat[chosen[-1]]).pow(2).sum(1))
        distances[chosen] = -1
        chosen.append(int(distances.argmax()))
    return chosen


def _flat(latents: Tensor, count: int) -> Tensor:
    if len(latents) < count:
        raise ValueError(f"expected at least {count} latents, found {len(latents)}")
    return latents.flatten(1).double()


METHODS = {"herding": herding, "kcenter": k_center}
