"""How a report looks: its sections as Markdown, as one HTML page and as plain text."""

import base64
from dataclasses import dataclass
from html import escape
from pathlib import Path

NOT_RUN, NONE = "not run", "–"
STYLE = """
:root { color-scheme: light dark; --text: #1b1f24; --soft: #59626d; --back: #ffffff; --line: #d5dae0; --stripe: #f5f7f9; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e4e8ec; --soft: #a2acb7; --back: #14181c; --line: #363e47; --stripe: #1c2228; } }
body { margin: 0 auto; padding: 1.5rem 1rem 3rem; max-width: 62rem; background: var(--back); color: var(--text);
  font: 16px/1.55 system-ui, sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.2; } h2 { font-size: 1.2rem; margin: 2.2rem 0 .4rem; }
p { max-width: 46rem; margin: .4rem 0 .9rem; }
.wide { overflow-x: auto; } .wide:focus-visible { outline: 2px solid #3b82c4; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .7rem; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line); }
thead th { white-space: normal; vertical-align: bottom; color: var(--soft); font-weight: 600; line-height: 1.3; }
th:first-child { position: sticky; left: 0; background: var(--back); } tbody th { font-weight: 500; }
tbody tr:nth-child(even), tbody tr:nth-child(even) th { background: var(--stripe); }
.left { text-align: left; } td.left { white-space: normal; } .absent { color: var(--soft); font-style: italic; }
img { display: block; width: 100%; max-width: 46rem; height: auto; border: 1px solid var(--line); border-radius: 6px; }
"""


@dataclass(frozen=True)
class Section:
    """A part of a report: what it `says`, then a table or a figure (a file beside the report, with its alternative text)."""

    title: str
    says: str
    header: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()
    figure: str = ""
    alt: str = ""


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
    return "\n\n".join(parts) + "\n"


def plain(sections: list[Section]) -> str:
    """The words and tables of a report for the screen."""
    import textwrap
    return "\n\n".join("\n".join([f"== {section.title}", *textwrap.wrap(section.says, 110),
                                  *([plain_table(section.header, section.rows)] if section.rows else [])])
                       for section in sections)


def page(title: str, sections: list[Section], folder: Path) -> str:
    """The report as one HTML page that refers to nothing outside itself; figures are read from `folder`."""
    body = "\n".join(html_section(section, folder) for section in sections)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<link rel="icon" href="data:,">
<style>{STYLE}</style>
</head>
<body>
<main>
<h1>{escape(title)}</h1>
{body}
</main>
</body>
</html>
"""


def html_section(section: Section, folder: Path) -> str:
    """One section of the page."""
    parts = [f"<section>\n<h2>{escape(section.title)}</h2>\n<p>{escape(section.says)}</p>"]
    if section.rows:
        parts.append(html_table(section))
    if section.figure:
        image = base64.b64encode((folder / section.figure).read_bytes()).decode()
        parts.append(f'<img alt="{escape(section.alt)}" src="data:image/png;base64,{image}">')
    return "\n".join([*parts, "</section>"])


def html_table(section: Section) -> str:
    """A table that scrolls sideways by itself where the screen is narrow; the first column names the row."""
    left = [' class="left"' if flush else "" for flush in left_columns(section.header, section.rows)]

    def one(text, mark, first):
        mark = ' class="absent"' if text == NOT_RUN else mark
        return f'<th scope="row"{mark}>{escape(text)}</th>' if first else f"<td{mark}>{escape(text)}</td>"
    head = "".join(f'<th scope="col"{mark}>{escape(text)}</th>' for text, mark in zip(section.header, left, strict=True))
    rows = "\n".join("<tr>" + "".join(one(text, mark, place == 0)
                                      for place, (text, mark) in enumerate(zip(row, left, strict=True))) + "</tr>"
                     for row in section.rows)
    return (f'<div class="wide" tabindex="0" role="region" aria-label="Table: {escape(section.title)}">\n<table>\n'
            f"<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}\n</tbody>\n</table>\n</div>")


