"""A section of a report: words, then a table or a figure; how its table looks as Markdown and as plain text."""

import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

NOT_RUN, NONE = "not run", "–"


@dataclass(frozen=True)
class Section:
    """A part of a report: words, then a table or a figure (a PNG, with its alternative text).

    `held` names what is equal in what a figure compares, `command` what made the data.
    """

    title: str
    says: str
    header: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    figure: Path | None = None
    alt: str = ""
    held: str = ""
    command: str = ""


def cell(numbers: dict | None, name: str, scale: float = 1, digits: int = 1) -> str:
    """One number of a table: plain, {"mean", "std"}, or of seconds {"median", "slow"}."""
    if numbers is None:
        return NOT_RUN
    value = numbers[name] if isinstance(numbers[name], dict) else {"mean": numbers[name], "std": None}
    if value["mean"] is None:
        return NONE
    if "median" in value:
        return f"{scale * value['median']:.{digits}f}" + (f" ({value['slow']} slow)" if value["slow"] else "")
    spread = "" if value["std"] is None or digits == 0 else f" ± {scale * value['std']:.{digits}f}"
    return f"{scale * value['mean']:.{digits}f}{spread}"


def interval_cell(found: dict | None, scale: float = 1, digits: int = 1, sign: str = "+", seeds: int = 0) -> str:
    """A number with its interval: "+3.9 (1.2 to 6.6)", and its n where that is not `seeds`; a difference with its sign."""
    if found is None or found["mean"] is None:
        return NONE
    low, mean, high = (None if found[name] is None else round(scale * found[name], digits) + 0.0  # no minus zero
                       for name in ("low", "mean", "high"))
    bounds = NONE if low is None else f"{low:.{digits}f} to {high:.{digits}f}"
    return f"{mean:{sign}.{digits}f} ({bounds})" + (f", n {found['n']}" if seeds and found["n"] != seeds else "")


def counts(numbers) -> str:
    """The numbers of seeds behind some cells, in the order of these."""
    return " / ".join(dict.fromkeys(str(one["n"]) for one in numbers if one))


def percentages(numbers: dict, keys, name: str = "accuracy") -> list[str]:
    """The cells of a row, whose `numbers` have these keys, in percent."""
    return [cell(numbers.get(key), name, 100) for key in keys]


def with_seeds(numbers: dict, keys, name: str = "accuracy") -> list[str]:
    """The same, then the numbers of seeds behind them."""
    return [*percentages(numbers, keys, name), counts(map(numbers.get, keys))]


def markdown(part: Section) -> str:
    """The words and the table of a section; columns of numbers are right-aligned. A table without rows has not been run."""
    if part.header and not part.rows:
        return f"{NOT_RUN.capitalize()}."
    marks = [":---" if left else "---:" for left in left_columns(part.header, part.rows)]
    lines = [part.header, marks, *part.rows] if part.rows else []
    table = "\n".join("| " + " | ".join(text.replace("|", "\\|") for text in line) + " |" for line in lines)
    return "\n\n".join(filter(None, [part.says, table]))


def plain_table(header, rows) -> str:
    """The same as aligned plain text; a header breaks between words where its column is narrower."""
    widths = [max(map(len, (*name.split(), *column))) for name, column in zip(header, zip(*rows, strict=True), strict=True)]
    heads = [textwrap.wrap(name, width) for name, width in zip(header, widths, strict=True)]
    tall = max(map(len, heads))
    above = zip(*([""] * (tall - len(head)) + head for head in heads), strict=True)
    left = left_columns(header, rows)
    return "\n".join("  ".join(text.ljust(width) if flush else text.rjust(width)
                               for text, width, flush in zip(row, widths, left, strict=True)).rstrip()
                     for row in (*above, ["-" * width for width in widths], *rows))


def left_columns(header, rows) -> list[bool]:
    """Which columns hold words: those in which some cell is neither a number nor a mark of absence."""
    def is_number(text):
        return text in (NOT_RUN, NONE) or text.split(" ")[0].lstrip("-").replace(".", "", 1).isdigit()
    return [not all(is_number(row[place]) for row in rows) for place in range(len(header))]


def plain(sections: list[Section]) -> str:
    """The words and tables of sections for the screen."""
    def wrapped(text: str) -> list[str]:
        return "\n\n".join(textwrap.fill(paragraph, 110) for paragraph in text.split("\n\n")).splitlines()
    return "\n\n".join("\n".join([f"== {section.title}", *wrapped(section.says),
                                  *([plain_table(section.header, section.rows)] if section.rows else [])])
                       for section in sections)


def fill(text: str, table_of) -> str:
    """Replace what stands between the marks of each table; an end mark is added where there is none."""
    def filled(found: re.Match) -> str:
        table = "\n\n".join(map(markdown, table_of(found[1])))
        return f"<!-- table: {found[1]} -->\n{table}\n<!-- end: {found[1]} -->"
    return re.sub(r"<!-- table: ([a-z0-9-]+) -->(?:.*?<!-- end: \1 -->)?", filled, text, flags=re.DOTALL)
