"""A report's sections as one HTML page that needs nothing but itself."""

import base64
from html import escape
from pathlib import Path

from continual.sections import NOT_RUN, Section, left_columns

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


