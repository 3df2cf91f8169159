"""Randomness as a function of (seed, place): one generator per image, per class, per epoch.

So batch size, process count and interruptions cannot change what is drawn.
"""

import hashlib

import torch


def seed_for(seed: int, *where) -> int:
    """A 32-bit seed for the place `where` (names and indices), the same on every machine and version."""
    place = "/".join(str(part) for part in (seed, *where))
    return int.from_bytes(hashlib.sha256(place.encode()).digest()[:4], "big")


def generator_for(seed: int, *where) -> torch.Generator:
    """A fresh generator for the place `where`, on the CPU: the same numbers for every device."""
    return torch.Generator().manual_seed(seed_for(seed, *where))


def seed_network(seed: int, *where) -> None:
    """Seed what a network draws itself (dropout, stochastic depth) at the place `where`; its layers take no generator."""
    torch.manual_seed(seed_for(seed, "network", *where))
