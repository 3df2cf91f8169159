"""What the tensors of a file have to be, and what is wrong with those that were found."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
KINDS = {"float": FLOATS, "integer": INTEGERS, "bool": (torch.bool,), "number": FLOATS + INTEGERS}


@dataclass(frozen=True)
class Expected:
    """A tensor of `kind` (of KINDS) and `shape` (None: any length there) with finite values in [low, high]."""

    kind: str
    shape: tuple[int | None, ...]
    low: float = -math.inf
    high: float = math.inf
    optional: bool = False


def tensor_problems(found: dict[str, Tensor], expected: dict[str, Expected]) -> list[str]:
    """What is wrong with the tensors `found`: missing, unknown, of another type or shape, or with a value out of range."""
    problems = [f"{name}: expected no tensor of this name, found one" for name in found.keys() - expected.keys()]
    for name, wanted in expected.items():
        if name in found:
            problems += (f"{name}: {problem}" for problem in one_problem(found[name], wanted))
        elif not wanted.optional:
            problems.append(f"{name}: expected a tensor, found none")
    return problems


def one_problem(value: Tensor, wanted: Expected) -> Iterator[str]:
    """The first thing that is wrong with a tensor, if anything is."""
    shape = tuple(value.shape)
    if value.dtype not in KINDS[wanted.kind]:
        yield f"expected {wanted.kind} values, found {value.dtype}"
    elif len(shape) != len(wanted.shape) or any(want not in (None, had) for want, had in zip(wanted.shape, shape, strict=True)):
        yield f"expected the shape {list(wanted.shape)}, found {list(shape)}".replace("None", "any")
    elif value.numel() and value.dtype != torch.bool:
        low, high = (limit.item() for limit in value.aminmax())  # NaN wherever there is one
        if not (math.isfinite(low) and math.isfinite(high)):
            yield f"expected finite values, found {low if not math.isfinite(low) else high}"
        elif low < wanted.low or high > wanted.high:
            yield f"expected values in [{wanted.low}, {wanted.high}], found [{low}, {high}]"
