"""Tables and figures of misc/continual.md and the README's part of them, from collected results."""

import re
import statistics
from pathlib import Path

from continual.task_arithmetic import rank
from misc.report.compare import paired_section, payback_section, runs_section, says
from misc.report.continual_figures import draw_all
from misc.report.fairness import CLAIMED, conclusion, differences, paybacks, summaries, verdicts
from misc.report.rows import SETTINGS, Rows, held, mean_std, rows_of, value, whole_results
from misc.report.sections import Section, cell, markdown_table

README_COLUMNS = ("acc", "task_il_acc", "forgetting", "steps", "train_seconds", "time_saved", "flops_saved", "acc_kept")
START = re.compile(r"starts/[a-z0-9]+-(?P<start>[a-z0-9]+)-refit(?P<refit>\d+)/")
STARTS = {"random": "random", "task1": "the first task's expert", "distilled": "pre-trained on the distilled set"}
ACCURACIES = {"class": "class_il.acc", "task": "task_il.acc", "forgetting": "class_il.forgetting",
              "start": "start.class_il_acc"}
COSTS = ("prototypes", "distilled", "teacher")


def rows_in(result: dict) -> Rows:
    """The rows of a collected file."""
    return rows_of({one["run"]: one for one in continual_runs(result)})


def continual_runs(result: dict) -> list[dict]:
    """The continual results of a collected file."""
    return [one for one in whole_results(result) if one["kind"] == "continual"]


def costs_in(result: dict) -> dict[str, float]:
    """Mean seconds by stage of making one distilled set, and of its teacher."""
    found: dict[str, list[float]] = {}
    for one in result["runs"]:
        if one["kind"] in COSTS and value(one, "config.method") != "random":
            found.setdefault(one["kind"], []).append(sum(one["seconds"].values()))
    return {kind: statistics.fmean(seconds) for kind, seconds in found.items()}


def text(*sections: Section) -> str:
    """What sections say, each with its table."""
    parts = ((section.says, section.rows and markdown_table(section.header, section.rows)) for section in sections)
    return "\n\n".join(part for pair in parts for part in pair if part)


def claim(result: dict) -> str:
    """What the runs say about the claim, method by method."""
    return text(says(verdicts(rows_in(result))))


def fairness(result: dict) -> str:
    """The fairness table with every column."""
    rows = rows_in(result)
    return text(runs_section(rows, summaries(rows)))


def paired(result: dict) -> str:
    """Paired differences with their intervals."""
    rows = rows_in(result)
    return text(paired_section(rows, differences(rows)))


def payback(result: dict) -> str:
    """What distilling cost and when it pays back."""
    costs = costs_in(result)
    return text(payback_section(paybacks(rows_in(result), costs), costs))


def readme(result: dict) -> str:
    """The sentence about the claim, and the methods and columns of the fairness table it rests on."""
    rows = rows_in(result)
    rows = {method: arms for method, arms in rows.items() if method in CLAIMED}
    return f"{conclusion(verdicts(rows))}\n\n{text(runs_section(rows, summaries(rows), README_COLUMNS))}"


def draw(result: dict, folder: Path) -> None:
    """Every figure of a comparison, into a folder."""
    rows = rows_in(result)
    folder.mkdir(exist_ok=True)
    draw_all(folder, rows, summaries(rows))


def starts(result: dict) -> str:
    """Task Arithmetic by start, refitted head and stream."""
    groups: dict[tuple, dict[str, dict]] = {}
    for one in continual_runs(result):
        found = START.match(one["run"])
        groups.setdefault((one["stream"], int(found["refit"]), found["start"]), {})[one["run"]] = one
    shown = sorted(groups.items(), key=lambda pair: (*pair[0][:2], list(STARTS).index(pair[0][2])))
    rows = [(stream, STARTS[start], f"{refit} steps" if refit else "no", *accuracies(runs.values(), *ACCURACIES),
             " / ".join(scales_of(runs.values())), str(len(runs))) for (stream, refit, start), runs in shown]
    header = ("Stream", "Common start", "Head refitted", "ACC, Class-IL (%)", "ACC, Task-IL (%)", "Forgetting (points)",
              "ACC of the start alone (%)", "Scale chosen", "n")
    return (f"Mean ± standard deviation over seeds (n). {held(by_stream(groups), 0, SETTINGS)} Not equal besides: the start "
            f"and whether the head is refitted.\n\n{markdown_table(header, rows)}")


def by_stream(groups: dict) -> dict:
    """The same results with the stream first and once."""
    merged: dict[tuple, dict[str, dict]] = {}
    for (stream, *_), runs in groups.items():
        merged.setdefault((stream,), {}).update(runs)
    return merged


def accuracies(runs, *names: str) -> list[str]:
    """Cells of ACCURACIES, in percent, over runs."""
    return [cell({name: mean_std([value(one, ACCURACIES[name]) for one in runs])}, name, 100) for name in names]


def scales_of(runs) -> list[str]:
    """The scale chosen after the last merge of each run, without repeats."""
    best = {max(one["scale_curves"][-1], key=rank)["scale"] for one in runs}
    return [f"{scale:g}" for scale in sorted(best)]
