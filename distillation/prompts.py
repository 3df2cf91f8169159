"""The text of each class: a data set's own prompts (`label-prompt/`), or those of the user's label file."""

import unicodedata
from pathlib import Path

from scripts.artefact import read_bytes
from scripts.cli import ROOT, InputError

PROMPTS = ROOT / "distillation" / "label-prompt"
BY_CLASS = {"digits": "digits.txt", "cifar10": "cifar10.txt", "cifar100": "cifar100.txt"}  # lines in class order
BY_WNID = {"imagenet": ("imagenet_wnids.txt", "imagenet_classes.txt"),  # line by line: number of the noun in WordNet, name
           "tiny_imagenet": ("tiny_imagenet_wnids.txt", "tiny_imagenet_classes.txt")}


def plain(name: str) -> str:
    """A class name as text: spaces for underscores, accents composed."""
    return unicodedata.normalize("NFC", name.replace("_", " "))


def with_prompts(classes: list[dict], dataset: str, label_file: str | Path | None = None,
                 template: str | None = None) -> list[dict]:
    """The same classes with the prompts a user asks for: the lines of `label_file`, put in place of {} in `template`.

    Without them a class keeps its prompt. Raises InputError for a template without {}, and as `file_prompts` does.
    """
    if template is not None and "{}" not in template:
        raise InputError(f"--prompt_template: expected a text with {{}} in it, found {template!r}")
    prompts = [entry["prompt"] for entry in classes]
    if label_file is not None:
        prompts = file_prompts(Path(label_file), dataset, [entry["name"] for entry in classes])
    if template is not None:
        prompts = [template.replace("{}", prompt) for prompt in prompts]
    return [{**entry, "prompt": prompt} for entry, prompt in zip(classes, prompts, strict=True)]


def own_prompts(dataset: str, names: list[str], root: Path | None = None) -> list[str]:
    """The prompts of the classes `names`, which lie below `root`: the data set's, or the plain names.

    Raises InputError for an unknown wnid.
    """
    if dataset in BY_CLASS:
        return read_lines(PROMPTS / BY_CLASS[dataset])
    known = by_wnid(dataset)
    unknown = [name for name in names if name not in known]
    if known and unknown:
        raise InputError(f"{root}: expected class folders named by the {len(known)} wnids of {dataset}, or a label file "
                         f"(--label_file_path), found {len(unknown)} other names, the first {unknown[0]}")
    return [known.get(name, plain(name)) for name in names]


def by_wnid(dataset: str) -> dict[str, str]:
    """Names by wnid, in sorted order of the wnids; empty for a data set without."""
    wnids, names = (read_lines(PROMPTS / file) for file in BY_WNID[dataset]) if dataset in BY_WNID else ((), ())
    return dict(zip(wnids, names, strict=True))


def file_prompts(path: Path, dataset: str, names: list[str]) -> list[str]:
    """The lines of a label file, one prompt per class in the order of `names`.

    Raises InputError for another number of lines, and for the classes' own names in another order: each line would describe
    another class.
    """
    if not path.is_file():
        raise InputError(f"{path}: expected a label file with {len(names)} lines, found none")
    lines = read_lines(path)
    if len(lines) != len(names) or not all(lines):
        found = len(lines) if all(lines) else f"an empty line {lines.index('') + 1}"
        raise InputError(f"{path}: expected {len(names)} prompts, one per line in class order, found {found}")
    known = by_wnid(dataset)
    given, own = ([plain(text).casefold() for text in texts] for texts in (lines, [known.get(name, name) for name in names]))
    if given != own and sorted(given) == sorted(own):
        place = next(place for place in range(len(own)) if given[place] != own[place])
        raise InputError(f"{path}: expected the names of {dataset} in class order, line {place + 1} {own[place]!r}, "
                         f"found {lines[place]!r}")
    return lines


def read_lines(path: Path) -> list[str]:
    """The stripped lines of a text file, without an empty last one. Raises InputError when it is too large or no UTF-8."""
    try:
        lines = [line.strip() for line in read_bytes(path, "a text file").decode("utf-8-sig").splitlines()]
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: expected text in UTF-8, found {error}") from None
    return lines[:-1] if lines and not lines[-1] else lines
