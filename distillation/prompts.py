"""Prompts of classes: a data set's own, or the lines of a label file."""

import re
import unicodedata
from pathlib import Path

from scripts.cli import ROOT, InputError
from scripts.files import read_bytes

PROMPTS = ROOT / "distillation" / "label-prompt"
BY_CLASS = {name: f"{name}.txt" for name in ("digits", "fashion_mnist", "cifar10", "cifar100")}  # lines in class order
BY_WNID = {"imagenet": ("imagenet_wnids.txt", "imagenet_classes.txt"),  # WordNet numbers, and their names line by line
           "tiny_imagenet": ("tiny_imagenet_wnids.txt", "tiny_imagenet_classes.txt")}


def plain(name: str) -> str:
    """A class name as text: spaces for underscores, accents composed."""
    return unicodedata.normalize("NFC", name.replace("_", " "))


def with_prompts(classes: list[dict], dataset: str, label_file: str | Path | None = None,
                 template: str | None = None) -> list[dict]:
    """The classes with the prompts of `label_file` (default: their own), in place of {} in `template`.

    Raises InputError for a template without {} and for a label file that does not fit.
    """
    if template is not None and "{}" not in template:
        raise InputError(f"--prompt_template: expected a text with {{}} in it, found {template!r}")
    prompts = [entry["prompt"] for entry in classes] if label_file is None else \
        file_prompts(Path(label_file), dataset, [entry["name"] for entry in classes])
    if template is not None:
        prompts = [template.replace("{}", prompt) for prompt in prompts]
    return [{**entry, "prompt": prompt} for entry, prompt in zip(classes, prompts, strict=True)]


def own_prompts(dataset: str, names: list[str], root: Path | None = None) -> list[str]:
    """The data set's prompts of the classes `names`, or the plain names. Raises InputError for an unknown wnid."""
    if dataset in BY_CLASS:
        return read_lines(PROMPTS / BY_CLASS[dataset])
    known = by_wnid(dataset)
    unknown = [name for name in names if name not in known]
    if known and unknown:
        raise InputError(f"{root}: expected class folders named by the {len(known)} wnids of {dataset}, or a label file "
                         f"(--label_file_path), found {len(unknown)} other names, the first {unknown[0]}")
    return [known.get(name, plain(name)) for name in names]


def by_wnid(dataset: str) -> dict[str, str]:
    """Names by wnid, in sorted order of the wnids; empty for a data set without wnids."""
    wnids, names = (read_lines(PROMPTS / file) for file in BY_WNID[dataset]) if dataset in BY_WNID else ((), ())
    return dict(zip(wnids, names, strict=True))


def file_prompts(path: Path, dataset: str, names: list[str]) -> list[str]:
    """The lines of a label file, one prompt per class in the order of `names`.

    Raises InputError for another number of lines, and for the classes' own names in another order (`exchanged`).
    """
    if not path.is_file():
        raise InputError(f"{path}: expected a label file with {len(names)} lines, found none")
    lines = read_lines(path)
    if len(lines) != len(names) or not all(lines):
        found = len(lines) if all(lines) else f"an empty line {lines.index('') + 1}"
        raise InputError(f"{path}: expected {len(names)} prompts, one per line in class order, found {found}")
    known = by_wnid(dataset)
    shipped = read_lines(PROMPTS / BY_CLASS[dataset]) if dataset in BY_CLASS else names
    for own in ([plain(known.get(name, name)) for name in names], shipped):     # digits: "3", "three"
        if len(own) == len(names) and (wrong := exchanged(lines, own)):
            raise InputError(f"{path}: expected the names of {dataset} in class order, line {wrong[0] + 1} {own[wrong[0]]!r}, "
                             f"found {lines[wrong[0]]!r}; {len(wrong)} of {len(lines)} lines name another class")
    return lines


def exchanged(lines: list[str], names: list[str]) -> list[int]:
    """The lines that name another class instead of their own, while a line of the same kind names theirs.

    A line names a class by its name alone or, for names of at least three letters, by its words: `a photo of a cat`. Lines of
    a permutation are such lines; a richer prompt that mentions another class is none.
    """
    texts, own = ([" ".join(re.findall(r"\w+", plain(text).casefold())) for text in each] for each in (lines, names))
    labels = {name: label for label, name in reversed([*enumerate(own)])}
    found = [_named(text, name, labels) for text, name in zip(texts, own, strict=True)]
    wrong = {line: label for line, label in enumerate(found) if label is not None and own[label] != own[line]}
    return [line for line in wrong if line in wrong.values()]


def _named(text: str, own: str, labels: dict[str, int]) -> int | None:
    """The class that a prompt names: exactly, else its own, else the one with the longest name."""
    if text in labels:
        return labels[text]
    inside = [name for name in labels if f" {name} " in f" {text} " and sum(map(str.isalpha, name)) >= 3]
    return labels.get(own if own in inside else max(inside, key=len, default=None))


def read_lines(path: Path) -> list[str]:
    """The stripped lines of a text file, without an empty last one. Raises InputError for a file that is not UTF-8."""
    try:
        lines = [line.strip() for line in read_bytes(path, "a text file").decode("utf-8-sig").splitlines()]
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: expected text in UTF-8, found {error}") from None
    return lines[:-1] if lines and not lines[-1] else lines
