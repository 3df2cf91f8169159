"""Tables, figures and one HTML page from result files.

    python -m misc.report run runs/quickstart
    python -m misc.report run misc/results --output runs/report
    python -m misc.report collect runs/study-digits misc/results/digits.jsonl --kind teacher student
    python -m misc.report tables
    python -m misc.report compare runs/continual --output runs/comparison --cost-from runs/prototypes runs/distilled

What was not run is "not run". The same files give the same report.
"""

from pathlib import Path

from scripts.cli import InputError, Parser, check_range, run


def parse_args():
    parser = Parser(__doc__, prog="python -m misc.report")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    report = commands.add_parser("run", help="report.html, figures and printed tables of runs and collected files")
    report.add_argument("results", nargs="+", metavar="FOLDER", help="folder of a run, collected file, or folder of such files")
    report.add_argument("--output", default=None, help="folder to write into (default: the run's, or runs/report)")
    report.add_argument("--command", dest="made_by", default="", help="command behind a run, shown below its figures")

    gather = commands.add_parser("collect", help="the result files of a run or study as one file, a line a run")
    gather.add_argument("folder", help="folder with result.json files at any depth")
    gather.add_argument("collected", metavar="OUT.jsonl", help="file to write")
    gather.add_argument("--only", nargs="+", default=["*"], metavar="NAME", help="only these parts of the folder (seed*)")
    gather.add_argument("--kind", nargs="+", default=None, help="only results of these kinds (student, continual, ...)")
    gather.add_argument("--command", dest="made_by", default="", help="command behind the results, for the report")
    gather.add_argument("--pictures", default=None, metavar="DIR", help="run whose distilled/ images the report shows")

    tables = commands.add_parser("tables", help="rewrite the marked tables of README.md and misc/*.md, and their figures")
    tables.add_argument("--root", default=".", help="folder with README.md and misc/")

    compare = commands.add_parser("compare", help="fair comparison of continual runs: tables, figures and every number")
    compare.add_argument("runs", nargs="+", metavar="RUNS", help="folder with runs at any depth, or a collected file")
    compare.add_argument("--output", required=True, help="folder to write into")
    cost = compare.add_mutually_exclusive_group()
    cost.add_argument("--cost-seconds", default=None, type=float, help="seconds that one distilled set took")
    cost.add_argument("--cost-from", default=[], nargs="+", metavar="DIR",
                      help="the same from the result.json of its stages; a teacher counts for soft labels alone")
    args = parser.parse_args()
    if getattr(args, "cost_seconds", None) is not None:
        check_range("--cost-seconds", args.cost_seconds, 0)
    return args


def main(args):
    {"run": report, "collect": collect, "tables": rewrite_tables, "compare": compare}[args.command](args)


def report(args):
    """Write and print a report."""
    from dataclasses import replace
    from tempfile import TemporaryDirectory

    from misc.report.page import chapters_of, is_run, page
    from scripts.artefact import write_text
    paths = [Path(path) for path in existing(args.results)]
    alone = len(paths) == 1 and is_run(paths[0])
    output = Path(args.output or (paths[0] if alone else "runs/report"))
    with TemporaryDirectory() as temporary:
        figures = output if alone else Path(temporary)      # a single run's figures are files too
        chapters = chapters_of(paths, all_tables(), figures, args.made_by)
        title = f"Report of {', '.join(path.resolve().name for path in paths)}"
        write_text(output / "report.html", page(title, chapters, figures))
    sections = [part for chapter in chapters.values() for part in chapter]
    show(sections if alone else [replace(part, figure="") for part in sections], output, ["report.html"])


def show(sections: list, output: Path, files: list[str]) -> None:
    """Print words and tables, then the names of the files in `output`: `files` and figures."""
    from misc.report.tables import plain
    names = [*files, *(part.figure for part in sections if part.figure)]
    print("\n".join([plain(sections), "", "Written:", *(f"  {output / name}" for name in names)]))


def existing(paths: list[str]) -> list[str]:
    """The same paths. Raises InputError where one is missing."""
    for path in paths:
        if not Path(path).exists():
            raise InputError(f"{path}: expected a folder or file, found none")
    return paths


def all_tables() -> dict:
    """Every table by its name in README.md and misc/*.md: its result file, and what makes its sections."""
    from misc import benchmark, plan
    from misc.report.tables import TABLES
    return {**TABLES, "plan": ("plan_imagenet.json", plan.report),
            **{f"benchmark-{name}": (f"benchmark_{name}.json", benchmark.report)
               for name in ("distillation", "matching", "continual")}}


def collect(args):
    """Gather result files into one."""
    from dataclasses import replace
    from fnmatch import fnmatchcase

    from misc.report import results
    from misc.report.figures import packed, pictures_of
    found = results.read_results(Path(existing([args.folder])[0]))
    runs = [run for run in found.runs if (args.kind is None or run.kind in args.kind)
            and any(fnmatchcase(run.name.split("/")[0], pattern) for pattern in args.only)]
    if not runs:
        raise InputError(f"{args.folder}: expected folders with result.json, found none")
    pictures = packed(pictures_of(Path(args.pictures))) if args.pictures else None
    if args.pictures and pictures is None:
        raise InputError(f"--pictures: expected a folder with D4M images in distilled/*, found none in {args.pictures}")
    results.collect(replace(found, runs=runs, command=args.made_by, pictures=pictures), Path(args.collected))
    print(f"{args.collected}: {len(runs)} results")


def rewrite_tables(args):
    """Rewrite the marked tables of every page, and the figures of misc/."""
    from functools import partial

    from misc.report.tables import fill
    from scripts.artefact import write_text
    root = Path(args.root)
    for page in [root / "README.md", *sorted((root / "misc").glob("*.md"))]:
        write_text(page, fill(page.read_text(encoding="utf-8"), partial(table, misc=root / "misc", page=page)))
        print(f"{page}: written")
    draw_figures(root / "misc")


def table(name: str, misc: Path, page: Path) -> list:
    """The sections of a table, from the result files below `misc`. Raises InputError naming the page where there is none."""
    from misc.report.literature import TABLES
    from misc.report.results import read_collected
    from misc.report.tables import Section
    from scripts.artefact import read_json
    tables = all_tables()
    if name in TABLES:
        return TABLES[name](misc)
    if name not in tables:
        raise InputError(f"{page}: expected one of the tables {', '.join([*tables, *TABLES])}, found {name}")
    files, make = tables[name]
    paths = [misc / "results" / file for file in files.split()]
    if missing := [path.name for path in paths if not path.exists()]:
        return [Section(name, f"Not run: misc/results/{missing[0]}.")]
    return make(*(read_collected(path) if path.suffix == ".jsonl" else read_json(path) for path in paths))


def draw_figures(misc: Path) -> None:
    """The figures that misc/*.md show, of result files that are there."""
    from misc.report import figures
    from misc.report.results import continual_rows, read_collected
    found = {path.stem: read_collected(path) for path in (misc / "results").glob("*.jsonl")}
    for name in ("resnet18", "resnet50"):
        if f"continual_digits_{name}" in found:
            (misc / f"continual_{name}").mkdir(exist_ok=True)
            figures.stream_figures(misc / f"continual_{name}", continual_rows(found[f"continual_digits_{name}"].runs))
    if "quickstart" in found:
        figures.draw_times(misc / "accuracy_vs_time.png", continual_rows(found["quickstart"].runs))
    if "matching_digits" in found:
        figures.draw_label_bytes(misc / "label_bytes.png", found["matching_digits"])


def compare(args):
    """Compare continual runs."""
    from misc.report import statistics, tables
    from misc.report.figures import stream_figures
    from misc.report.page import page
    from misc.report.results import Results, continual_rows, read_results
    from scripts.artefact import write_json, write_text
    runs = [run for path in existing(args.runs) for run in read_results(Path(path)).runs if run.kind == "continual"]
    if not runs:
        raise InputError(f"{', '.join(args.runs)}: expected result.json files of continual.train_continual, found none")
    rows, costs = continual_rows(runs), {} if args.cost_seconds is None else {"given": args.cost_seconds}
    if args.cost_from:
        made = Results([run for folder in existing(args.cost_from) for run in read_results(Path(folder)).runs])
        costs = statistics.mean_costs(made)
        if not costs:
            raise InputError(f"--cost-from {' '.join(args.cost_from)}: expected the result.json of a distilled set, found none")
    sections = [tables.claim_section(rows), tables.runs_section(rows), tables.paired_section(rows),
                tables.payback_section(rows, costs)]
    output = Path(args.output)
    output.mkdir(parents=True, exist_ok=True)
    sections += stream_figures(output, rows)
    write_text(output / "report.html", page("Comparison", {"": sections}, output))
    numbers = {method: {arm.name: {"seeds": list(rows[method][arm]), **one} for arm, one in arms.items()}
               for method, arms in statistics.summaries(rows).items()}
    write_json(output / "comparison.json", {
        "kind": "comparison", "rows": numbers, "cost_seconds": costs, "claims": statistics.claims(rows),
        "differences": statistics.differences(rows), "payback": statistics.paybacks(rows, costs)})
    show(sections, output, ["report.html", "comparison.json"])


if __name__ == "__main__":
    run(parse_args, main)
