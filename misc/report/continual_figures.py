"""Figures of a comparison: which there are, what each shows, computed from its numbers, and what is held equal in it."""

from pathlib import Path

import numpy as np

from misc.report import plots
from misc.report.rows import METHODS, SETTINGS, Rows, held, value
from misc.report.sections import Section


def draw_all(folder: Path, rows: Rows, numbers: dict) -> list[Section]:
    """Draw every figure for which there are results, and say what each shows and what is held equal in it."""
    points = {(method, arm.name): one for method, arms in numbers.items() for arm, one in arms.items()}
    plots.draw_times(folder / "accuracy_vs_seconds.png", points, plots.colours_of(rows), "log")
    return [Section("Accuracy against training time", "ACC (Class-IL, after the last task) against seconds of training, on a "
                    f"logarithmic scale; {bars(rows)}. {joined(points)}", figure="accuracy_vs_seconds.png",
                    alt="Scatter plot of ACC against seconds, a marker per method and a colour per source.",
                    held=held_in(rows)), *draw_streams(folder, rows)]


def draw_streams(folder: Path, rows: Rows) -> list[Section]:
    """The figures that need more of a run than its ACC: each for the rows all of whose runs have it."""
    sections, colours = [], plots.colours_of(rows)
    whole = keep(rows, lambda one: None not in (value(one, "class_il.matrix") or [None]))
    if whole:
        plots.draw_seen(folder / "seen_tasks.png", whole, colours)
        plots.draw_matrices(folder / "matrices.png", whole)
        sections += [Section("As the stream goes on", "Mean accuracy (Class-IL) on the tasks seen so far, after each task; "
                             f"{bars(whole)}. Each panel has its own scale. {highest(whole)}", figure="seen_tasks.png",
                             alt="A panel per method, a line per source: accuracy on seen tasks against tasks learnt.",
                             held=held_in(whole)),
                     Section("Accuracy matrices", "R[t, j], accuracy in percent (Class-IL) on task j after task t, mean over "
                             f"runs ({counts(whole)}). {first_task(whole)}", figure="matrices.png",
                             alt="A grid of heat maps, methods by sources.", held=held_in(whole))]
    merged = keep(rows, lambda one: bool(one.get("scale_curves")))
    for method, arms in merged.items():
        plots.draw_scales(folder / "scale_curves.png", arms, colours)
        sections.append(Section("Scale of the merged vector", "Accuracy on the memory, by which the scale is chosen, after the "
                                f"last merge; {bars({method: arms})}. No test image has a part in it.",
                                figure="scale_curves.png", alt="Accuracy on the memory against the scale, a line per source.",
                                held=held_in({method: arms})))
    counted = keep(rows, lambda one: "confusion" in one)
    if counted:
        method = "er" if "er" in counted else next(iter(counted))
        plots.draw_confusions(folder / "confusion.png", {arm: plots.confusion_of(row) for arm, row in counted[method].items()})
        shown = {method: counted[method]}
        sections.append(Section("Confusion", f"{METHODS.get(method, method)}: the share of each true class (row) that is given "
                                f"each answer (column) after the last task, mean over runs ({counts(shown)}).",
                                figure="confusion.png", alt="Confusion matrices, a panel per source.", held=held_in(shown)))
    return sections


def keep(rows: Rows, has) -> Rows:
    """The rows all of whose runs have something."""
    kept = {method: {arm: row for arm, row in arms.items() if all(map(has, row.values()))} for method, arms in rows.items()}
    return {method: arms for method, arms in kept.items() if arms}


def held_in(rows: Rows) -> str:
    """What all runs of a figure have in common, and what differs by source."""
    return held({(method, arm.name): row for method, arms in rows.items() for arm, row in arms.items()}, 1, SETTINGS)


def counts(rows: Rows) -> str:
    """How many runs stand behind a point."""
    return f"n = {' or '.join(map(str, sorted({len(row) for arms in rows.values() for row in arms.values()})))}"


def bars(rows: Rows) -> str:
    """What the bars are, if there are any."""
    several = any(len(row) > 1 for arms in rows.values() for row in arms.values())
    return f"{'bars are one standard deviation over seeds' if several else 'no bars'}, {counts(rows)}"


def joined(points: dict[tuple, dict]) -> str:
    """Of the methods with a line from real to distilled images: where those save time, and what that does to ACC."""
    pairs = {method: (points[method, "real"], points[method, "distilled"]) for method in plots.MARKERS
             if {(method, "real"), (method, "distilled")} <= points.keys()}
    if not pairs:
        return ""
    faster = [f"{METHODS[method]} ({100 * (own['acc']['mean'] - real['acc']['mean']):+.1f} points)"
              for method, (real, own) in pairs.items() if own["train_seconds"]["mean"] < real["train_seconds"]["mean"]]
    return ("A thin line joins a method's real and distilled points. Distilled images take less time than real ones with "
            f"{', '.join(faster) or 'no method'}{'; in brackets what that does to ACC' if faster else ''}.")


def highest(rows: Rows) -> str:
    """Who stands highest at the end."""
    ends = {(METHODS.get(method, method), arm.name): np.mean([plots.matrix_of(one)[-1] for one in row.values()])
            for method, arms in rows.items() for arm, row in arms.items()}
    method, source = max(ends, key=ends.get)
    return f"After the last task {method} ({source}) is highest, with {100 * ends[method, source]:.1f} %."


def first_task(rows: Rows) -> str:
    """What is left of the first task at the end, by method: the lowest and the highest source."""
    left = {}
    for method, arms in rows.items():
        shares = [100 * np.mean([plots.matrix_of(one)[-1][0] for one in row.values()]) for row in arms.values()]
        ends = dict.fromkeys(f"{share:.0f}" for share in (min(shares), max(shares)))
        left[METHODS.get(method, method)] = " to ".join(ends)
    return ("The first task's accuracy after the last one, in percent, over sources: "
            f"{', '.join(f'{method} {share}' for method, share in left.items())}.")
