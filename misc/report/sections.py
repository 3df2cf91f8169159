"""Parts of a report and how they look as Markdown and as plain text; misc/report/page.py makes them one HTML page."""

from dataclasses import dataclass

NOT_RUN, NONE = "not run", "–"


@dataclass(frozen=True)
class Section:
    """A part of a report: what it `says`, then a table or a figure (a file beside the report, with its alternative text).

    `held` says what was equal in what a figure compares, `command` what made the data.
    """

    title: str
    says: str
    header: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()
    figure: str = ""
    alt: str = ""
    held: str = ""
    command: str = ""


def cell(numbers: dict | None, name: str, scale: float = 1, digits: int = 1) -> str:
    """One number of a table, {"mean", "std"} or plain, with its standard deviation where there is one."""
    if numbers is None:
        return NOT_RUN
    value = numbers[name] if isinstance(numbers[name], dict) else {"mean": numbers[name], "std": None}
    if value["mean"] is None:
        return NONE
    spread = "" if value["std"] is None or digits == 0 else f" ± {scale * value['std']:.{digits}f}"
    return f"{scale * value['mean']:.{digits}f}{spread}"


def markdown_table(header, rows) -> str:
    """A Markdown table of texts; columns of numbers, that is those whose first cell holds one, are right-aligned."""
    marks = [":---" if left else "---:" for left in left_columns(header, rows)]
    return "\n".join("| " + " | ".join(text.replace("|", "\\|") for text in row) + " |" for row in (header, marks, *rows))


def plain_table(header, rows) -> str:
    """The same as aligned plain text; a header breaks between words where its column is narrower."""
    import textwrap
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


def markdown(title: str, sections: list[Section]) -> str:
    """The report as Markdown; figures are referred to by name."""
    parts = [f"# {title}"]
    for section in sections:
        parts += [f"## {section.title}", section.says]
        parts += [markdown_table(section.header, section.rows)] if section.rows else []
        parts += [f"![{section.alt}]({section.figure})"] if section.figure else []
        parts += [section.held] if section.held else []
        parts += [f"Made by `{section.command}`."] if section.command else []
    return "\n\n".join(parts) + "\n"


def plain(sections: list[Section]) -> str:
    """The words and tables of a report for the screen."""
    return "\n\n".join("\n".join([f"== {section.title}", *wrapped(section.says),
                                  *([plain_table(section.header, section.rows)] if section.rows else [])])
                       for section in sections)


def wrapped(text: str, width: int = 110) -> list[str]:
    """The lines of a text at `width` characters, with an empty one between paragraphs."""
    import textwrap
    paragraphs = ["\n".join(textwrap.wrap(paragraph, width)) for paragraph in text.split("\n\n")]
    return "\n\n".join(paragraphs).splitlines()
