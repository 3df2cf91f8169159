"""The results of a run as tables and figures, and these as one HTML page that needs nothing but itself."""

import base64
import io
from collections.abc import Callable
from dataclasses import replace
from html import escape
from pathlib import Path
from string import Template

from misc.report import tables as made
from misc.report.figures import bars, draw_label_bytes, stream_figures
from misc.report.pictures import picture_figures
from misc.report.results import Results, continual_rows, grouped, read_results
from misc.report.section import NOT_RUN, Section, left_columns
from misc.report.statistics import equal_and_not
from scripts.cli import InputError

MODULES = {"prototypes": "distillation.gen_prototype", "distilled": "distillation.gen_syn_image",
           "soft_labels": "matching.generate_soft_label", "student": "validate.train_FKD",
           "continual": "continual.train_continual"}
LABEL_SETTINGS = {**made.RUN_SETTINGS, "temperature": "config.temperature", "learning-rate schedule": "config.lr_schedule"}
NARROWEST = 0.5     # of its printed size a figure has at least; it scrolls below that


def sections_of(path: Path, figures: Path, command: str = "") -> list[Section]:
    """The sections of a run's folder or of a collected file; their figures are drawn into the folder `figures`.

    Raises InputError where there is nothing to show.
    """
    if path.suffix != ".jsonl" and not (path / "stages.jsonl").exists() and not any(path.rglob("result.json")):
        raise InputError(f"{path}: expected the folder of a run (with stages.jsonl, students/*/result.json, ...) or a .jsonl "
                         "file of `python -m misc.report collect`, found neither")
    results = read_results(path)
    if path.is_dir():
        sections = [*made.run_students(results), *guarded(made.run_continual, results), *made.stages(results)]
    else:
        sections = [part for file, make in made.TABLES.values() if file == path.name for part in make(results)] or [
            *made.students_by_name(results), *(guarded(made.run_continual, results) if results.of_kind("continual") else [])]
    figures.mkdir(parents=True, exist_ok=True)
    sections += [*picture_figures(figures, path), *label_figure(figures, results),
                 *guarded(lambda them: stream_figures(figures, continual_rows(them.runs)), results)]
    kinds = dict.fromkeys(run.kind for run in results.runs if run.kind in MODULES)
    by = results.command or command or " && ".join(f"python -m {MODULES[kind]}" for kind in kinds)
    return [*(replace(part, command=by) for part in sections),
            Section("Made with", "Hardware, commits and package versions from the result files.", ("What", "Found"),
                    [(what, made.made_with(results, what) or NOT_RUN) for what in ("hardware", "code", "packages")])]


def label_figure(folder: Path, results: Results) -> list[Section]:
    """Draw accuracy against bytes of labels, where students have more and fewer of them."""
    points, path = made.storage_points(results), folder / "label_bytes.png"
    if len(points) < 2:
        return []
    draw_label_bytes(path, points)
    return [Section("Accuracy against label bytes", "Students with more or fewer stored labels, on a logarithmic scale. "
                    f"{bars({one['n'] for one in points.values()})}", figure=path,
                    held=equal_and_not(grouped(results, made.STORAGE_RUN, "student", "kept"), LABEL_SETTINGS),
                    alt="Scatter plot of accuracy against kilobytes of soft labels, a colour per way to store.")]


def guarded(make: Callable, results: Results) -> list[Section]:
    """Sections of continual runs, or the reason why these runs do not make rows."""
    try:
        return make(results)
    except InputError as error:
        return [Section("Continual learning", f"Not compared: {error}.")]


def page(title: str, sections: list[Section]) -> str:
    """Sections as one HTML page, which holds their figures."""
    template = Template(Path(__file__).with_name("page.html").read_text(encoding="utf-8"))
    return template.substitute(title=escape(title), body="\n".join(map(html_section, sections)))


def html_section(section: Section) -> str:
    parts = [f"<section>\n<h2>{escape(section.title)}</h2>"]
    parts += [f"<p>{escape(paragraph)}</p>" for paragraph in section.says.split("\n\n") if paragraph]
    made = f'<p class="made">Made by <code>{escape(section.command)}</code></p>' if section.command else ""
    if section.rows:
        parts.append(html_table(section))
    parts.append(html_figure(section, made) if section.figure else made)
    return "\n".join([*filter(None, parts), "</section>"])


def html_figure(section: Section, made: str) -> str:
    """A figure with what is equal in it and its command; it scrolls sideways where the screen is narrow."""
    from PIL import Image
    data = section.figure.read_bytes()
    image = Image.open(io.BytesIO(data))
    width, height = (round(96 * pixels / image.info.get("dpi", (96, 96))[0]) for pixels in image.size)    # CSS: 96 to the inch
    held = f"<p>{escape(section.held)}</p>\n" if section.held else ""
    return (f'<figure>\n<div class="wide" tabindex="0" role="region" aria-label="Figure: {escape(section.title)}">\n'
            f'<img alt="{escape(section.alt)}" src="data:image/png;base64,{base64.b64encode(data).decode()}" width="{width}" '
            f'height="{height}" style="min-width: {round(NARROWEST * width)}px">\n</div>\n'
            f"<figcaption>\n{held}{made}\n</figcaption>\n</figure>")


def html_table(section: Section) -> str:
    """A table that scrolls sideways by itself where the screen is narrow; the first column names the row."""
    left = [' class="left"' if flush else "" for flush in left_columns(section.header, section.rows)]

    def line(texts, first, other):
        marks = [' class="absent"' if text == NOT_RUN else mark for text, mark in zip(texts, left, strict=True)]
        cells = [f"<{tag}{mark}>{escape(text)}</{tag[:2]}>" for tag, mark, text in
                 zip([first] + [other] * (len(texts) - 1), marks, texts, strict=True)]
        return f"<tr>{''.join(cells)}</tr>"
    head = line(section.header, 'th scope="col"', 'th scope="col"')
    rows = "\n".join(line(row, 'th scope="row"', "td") for row in section.rows)
    return (f'<div class="wide" tabindex="0" role="region" aria-label="Table: {escape(section.title)}">\n<table>\n'
            f"<thead>{head}</thead>\n<tbody>\n{rows}\n</tbody>\n</table>\n</div>")
