"""A report's sections as one HTML page that needs nothing but itself."""

import base64
import io
from html import escape
from pathlib import Path

from misc.report.sections import NOT_RUN, Section, left_columns

NARROWEST = 0.5     # of its printed size a figure is shown at least, so that its words can be read; it scrolls then
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
@media (max-width: 40rem) { tbody th { white-space: normal; min-width: 6.5rem; } th, td { padding: .35rem .5rem; } }
.left { text-align: left; } td.left { white-space: normal; } .absent { color: var(--soft); font-style: italic; }
img { display: block; max-width: 100%; height: auto; background: #fff; border: 1px solid var(--line); border-radius: 6px;
  box-sizing: border-box; }
figure { margin: 0; } figcaption { margin-top: .5rem; } figcaption p { margin: .2rem 0; }
figcaption, .made { font-size: .875rem; color: var(--soft); }
code { font: .95em ui-monospace, monospace; color: var(--text); overflow-wrap: anywhere; }
nav ul { display: flex; flex-wrap: wrap; gap: .3rem 1.2rem; padding: 0; list-style: none; }
a { color: inherit; } h3 { font-size: 1.05rem; margin: 1.6rem 0 .3rem; }
section[id] { margin-top: 3rem; border-top: 1px solid var(--line); }
"""


def page(title: str, chapters: dict[str, list[Section]], folder: Path) -> str:
    """The report as one HTML page that refers to nothing outside itself; figures are read from `folder`.

    Chapters are by name; a single one without a name has no heading of its own.
    """
    body = "\n".join([contents(chapters), *(html_chapter(place, name, sections, folder)
                                            for place, (name, sections) in enumerate(chapters.items(), 1))])
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


def contents(chapters: dict[str, list[Section]]) -> str:
    """Links to the chapters, where there are several."""
    links = "\n".join(f'<li><a href="#chapter-{place}">{escape(name)}</a></li>' for place, name in enumerate(chapters, 1))
    return f'<nav aria-label="Chapters">\n<ul>\n{links}\n</ul>\n</nav>' if len(chapters) > 1 else ""


def html_chapter(place: int, name: str, sections: list[Section], folder: Path) -> str:
    """A chapter with its sections."""
    body = "\n".join(html_section(section, folder, "h3" if name else "h2") for section in sections)
    return f'<section id="chapter-{place}">\n<h2>{escape(name)}</h2>\n{body}\n</section>' if name else body


def html_section(section: Section, folder: Path, heading: str = "h2") -> str:
    """One section of the page."""
    parts = [f"<section>\n<{heading}>{escape(section.title)}</{heading}>"]
    parts += [f"<p>{escape(paragraph)}</p>" for paragraph in section.says.split("\n\n") if paragraph]
    if section.rows:
        parts.append(html_table(section))
    if section.figure:
        parts.append(html_figure(section, folder))
    elif section.command:
        parts.append(made(section.command))
    return "\n".join([*parts, "</section>"])


def html_figure(section: Section, folder: Path) -> str:
    """A figure with what is held equal in it and what made its data; it scrolls sideways where the screen is narrow."""
    data = (folder / section.figure).read_bytes()
    image, (width, height) = base64.b64encode(data).decode(), printed_pixels(data)
    held = f"<p>{escape(section.held)}</p>\n" if section.held else ""
    return (f'<figure>\n<div class="wide" tabindex="0" role="region" aria-label="Figure: {escape(section.title)}">\n'
            f'<img alt="{escape(section.alt)}" src="data:image/png;base64,{image}" width="{width}" height="{height}" '
            f'style="min-width: {round(NARROWEST * width)}px">\n</div>\n'
            f"<figcaption>\n{held}{made(section.command) if section.command else ''}\n</figcaption>\n</figure>")


def printed_pixels(data: bytes) -> tuple[int, int]:
    """Width and height of a PNG at its printed size, in CSS pixels (96 to the inch)."""
    from PIL import Image
    image = Image.open(io.BytesIO(data))
    dpi = image.info.get("dpi", (96, 96))[0]
    return round(96 * image.width / dpi), round(96 * image.height / dpi)


def made(command: str) -> str:
    """The command that made a section's data."""
    return f'<p class="made">Made by <code>{escape(command)}</code></p>'


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


