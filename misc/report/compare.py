"""Compare continual runs fairly: what distilled data saves, beside random real images and real images at the same steps.

    python -m misc.report.compare runs/continual --output runs/comparison --cost-from runs/prototypes runs/distilled

Reads every result.json of continual.train_continual below the given folders, and collected files of misc/results. Writes
comparison.json (every number), comparison.md (what it says, and tables that name what was held equal) and figures.
"""

from pathlib import Path

from scripts.cli import InputError, Parser, check_range, run

COLUMNS = {"acc": ("ACC, Class-IL (%)", 100, 1), "task_il_acc": ("ACC, Task-IL (%)", 100, 1),
           "average_incremental": ("Average incremental (%)", 100, 1), "forgetting": ("Forgetting (points)", 100, 1),
           "bwt": ("Backward transfer (points)", 100, 1), "forward_transfer": ("Forward transfer, Task-IL (points)", 100, 1),
           "steps": ("Steps", 1, 0), "images_seen": ("Images seen", 1, 0), "stream_images": ("Images of the stream", 1, 0),
           "train_seconds": ("Training (s)", 1, 1), "flops": ("TFLOP", 1e-12, 2), "stream_bytes": ("Stream (MB)", 1e-6, 2),
           "buffer_bytes": ("Buffer (MB)", 1e-6, 2), "teacher_bytes": ("Teacher (MB)", 1e-6, 1),
           "peak_memory_bytes": ("Peak memory (MB)", 1e-6, 0), "time_saved": ("Time saved (%)", 100, 1),
           "flops_saved": ("FLOPs saved (%)", 100, 1), "acc_kept": ("ACC kept (ratio)", 1, 3)}
PAIRED = {"acc": ("ACC, Class-IL (points)", 100), "task_il_acc": ("ACC, Task-IL (points)", 100),
          "average_incremental": ("Average incremental (points)", 100), "forgetting": ("Forgetting (points)", 100),
          "train_seconds": ("Training (s)", 1)}


def parse_args():
    parser = Parser(__doc__)
    parser.add_argument("runs", nargs="+", metavar="RUNS", help="folder with runs at any depth, or a collected JSON file")
    parser.add_argument("--output", required=True, help="folder to write into")
    cost = parser.add_mutually_exclusive_group()
    cost.add_argument("--cost-seconds", default=None, type=float, help="seconds that making one distilled set took")
    cost.add_argument("--cost-from", default=None, nargs="+", metavar="DIR",
                      help="the same, summed from the result.json of the stages that made one set: prototypes, images, and a "
                           "checkpoint if it was trained for it; a teacher and soft labels count for soft labels alone")
    args = parser.parse_args()
    if args.cost_seconds is not None:
        check_range("--cost-seconds", args.cost_seconds, 0)
    for name in ("runs", "cost_from"):
        for path in getattr(args, name) or ():
            if not Path(path).exists():
                raise InputError(f"{path}: expected a folder or file, found none")
    return args


def main(args):
    from misc.report.continual_figures import draw_all
    from misc.report.rows import read_runs, rows_of
    from misc.report.sections import markdown, plain
    from scripts.artefact import write_json, write_text
    output, rows = Path(args.output), rows_of(read_runs([Path(path) for path in args.runs]))
    costs = costs_of(args)
    numbers, found = numbers_of(rows, costs)
    sections = sections_of(rows, costs, numbers, found)
    output.mkdir(parents=True, exist_ok=True)
    figures = draw_all(output, rows, numbers)
    write_text(output / "comparison.md", markdown("Comparison", [*sections, *figures]))
    write_json(output / "comparison.json", {
        "kind": "comparison",
        "rows": {method: {arm.name: {"seeds": list(rows[method][arm]), **one} for arm, one in arms.items()}
                 for method, arms in numbers.items()},
        "cost_seconds": costs, **found,
        "tables": [{"title": part.title, "says": part.says, "header": part.header, "rows": part.rows} for part in sections]})
    print(plain(sections))
    print("\n".join(["", "Written:", *(f"  {output / name}" for name in (
        "comparison.md", "comparison.json", *(figure.figure for figure in figures)))]))


def numbers_of(rows, costs: dict[str, float]):
    """The summary of every row; and differences, payback and verdicts. `costs`: seconds of distillation, empty if unknown."""
    from misc.report.fairness import differences, paybacks, summaries, verdicts
    return summaries(rows), {"differences": differences(rows), "payback": paybacks(rows, costs), "verdicts": verdicts(rows)}


def sections_of(rows, costs: dict[str, float], numbers: dict, found: dict):
    """What a comparison says, in words and tables."""
    return [says(found["verdicts"]), runs_section(rows, numbers), paired_section(rows, found["differences"]),
            payback_section(found["payback"], costs)]


def costs_of(args) -> dict[str, float]:
    """Seconds of distillation by stage; empty where they were not given."""
    from misc.report.fairness import read_costs
    if args.cost_from:
        return read_costs([Path(folder) for folder in args.cost_from])
    return {} if args.cost_seconds is None else {"given": args.cost_seconds}


def says(found: list[dict]):
    """The claim, method by method."""
    from misc.report.fairness import conclusion
    from misc.report.sections import Section
    return Section("What this says", "\n\n".join([conclusion(found), *(one["says"] for one in found)]))


def runs_section(rows, numbers, wanted=tuple(COLUMNS)):
    """The fairness table: a row per method and source; `wanted` are names of COLUMNS."""
    from misc.report.fairness import other_starts
    from misc.report.rows import METHODS, SETTINGS, held
    from misc.report.sections import Section, cell
    shown = [(METHODS.get(method, method), arm.name, one) for method, arms in numbers.items() for arm, one in arms.items()]
    columns = {name: COLUMNS[name] for name in wanted
               if any((one[name]["mean"] if isinstance(one[name], dict) else one[name]) is not None for *_, one in shown)}
    absent = [COLUMNS[name][0] for name in wanted if name not in columns]
    groups = {(method, arm.name): row for method, arms in rows.items() for arm, row in arms.items()}
    text = ("Mean ± standard deviation over seeds (n), tested on real images after the last task. `real` takes its own epochs; "
            "`real, same steps` as many steps as the small sets; labels are hard and memory is the stream's unless said. Time "
            "saved and ACC kept are against `real`, over the seeds both have. "
            + " ".join([held(groups, 1, SETTINGS), *(note for arms in rows.values() for note in other_starts(arms))])
            + (f" Not in these results: {', '.join(absent)}." if absent else ""))
    return Section("Runs", text, ("Method", "Source", *(head for head, _, _ in columns.values()), "n"),
                   tuple((method, source, *(cell(one, name, scale, digits) for name, (_, scale, digits) in columns.items()),
                          str(one["n"])) for method, source, one in shown))


def paired_section(rows, paired: list[dict]):
    """Paired differences with their intervals."""
    from misc.report.fairness import shown_interval
    from misc.report.rows import METHODS, SETTINGS, held
    from misc.report.sections import Section
    compared = {(one["method"], name) for one in paired for name in (one["arm"], one["against"])}
    groups = {(method, arm.name): row for method, arms in rows.items() for arm, row in arms.items()
              if (method, arm.name) in compared}
    return Section("Paired differences", "Distilled less the other, run by run over the seeds both have (n): the mean, and in "
                   "brackets its 95 % interval by Student's t. Random real images of the same count are the honest comparison. "
                   + (held(groups, 1, SETTINGS) or "There is nothing to compare."),
                   ("Method", "Source", "Less", *(head for head, _ in PAIRED.values()), "n"),
                   tuple((METHODS.get(one["method"], one["method"]), one["arm"], one["against"],
                          *(shown_interval(one[name], scale) for name, (_, scale) in PAIRED.items()), str(one["acc"]["n"]))
                         for one in paired))


def payback_section(paid: list[dict], costs: dict[str, float]):
    """After how many trainings distillation has paid for itself."""
    from misc.report.fairness import shown_interval
    from misc.report.rows import METHODS
    from misc.report.sections import Section
    title = "What distillation costs"
    if not costs:
        return Section(title, "Not given (--cost-seconds or --cost-from), so after how many trainings it pays back is unknown.")
    stages = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in costs.items())
    return Section(title, f"Making one distilled set took: {stages}; a teacher and soft labels count for soft labels alone. "
                   "N* = C / (T_real - T_distilled) is the number of trainings after which that is paid back: infinite where "
                   "no training time is saved, in doubt where the 95 % interval of the seconds saved has 0 in it. Held equal: "
                   "the machine, if the cost was measured on that of the runs. Not equal: what the tables above say.",
                   ("Method", "Source", "Against", "Cost C (s)", "Saved a training (s)", "N*"),
                   tuple((METHODS.get(one["method"], one["method"]), one["arm"], one["against"],
                          f"{one['cost_seconds']:.1f}", shown_interval(one["saved_seconds"]), trainings(one)) for one in paid))


def trainings(paid: dict) -> str:
    """N* as the table shows it."""
    if paid["trainings"] == "infinite":
        return "infinite"
    doubtful = paid["saved_seconds"]["low"] is not None and paid["saved_seconds"]["low"] <= 0
    return f"{paid['trainings']:.1f}{', in doubt' if doubtful else ''}"


if __name__ == "__main__":
    run(parse_args, main)
