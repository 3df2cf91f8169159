"""Tables, figures and one HTML page from result files.

    python -m misc.report run runs/quickstart
    python -m misc.report run misc/results/digits.jsonl --output runs/report
    python -m misc.report collect runs/study-digits misc/results/digits.jsonl --kind teacher student
    python -m misc.report tables
    python -m misc.report compare runs/continual --output runs/comparison --cost-from runs/prototypes runs/distilled

What was not run is "not run". The same files give the same report.
"""

from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from misc.report import continual, curves, figures, literature, results, section, statistics, tables
from misc.report.page import page, sections_of
from scripts.cli import InputError, Parser, check_range, run
from scripts.files import read_json, write_json, write_text


def parse_args():
    parser = Parser(__doc__, prog="python -m misc.report")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    show = commands.add_parser("run", help="report.html, figures and printed tables of a run or collected file")
    show.add_argument("results", metavar="FOLDER", help="folder of a run, or collected file")
    show.add_argument("--output", default=None, help="folder to write into (default: the run's, or runs/report)")
    show.add_argument("--command", dest="made_by", default="", help="command behind a run, shown below its figures")

    gather = commands.add_parser("collect", help="the result files of a run or study as one file, a line a run")
    gather.add_argument("folders", nargs="+", metavar="FOLDER", help="folders with result.json files at any depth, or "
                        "collected files, for a study that ran in parts; of results of one name the last counts")
    gather.add_argument("collected", metavar="OUT.jsonl", help="file to write")
    gather.add_argument("--only", nargs="+", default=["*"], metavar="NAME", help="only these parts of the folder (seed*)")
    gather.add_argument("--kind", nargs="+", default=None, help="only results of these kinds (student, continual, ...)")
    gather.add_argument("--command", dest="made_by", default="", help="command behind the results, for the report")

    rewrite = commands.add_parser("tables", help="rewrite the marked tables of README.md, misc/*.md and cards, and the figures")
    rewrite.add_argument("--root", default=".", help="folder with README.md and misc/")

    fair = commands.add_parser("compare", help="fair comparison of continual runs: tables, figures and every number")
    fair.add_argument("runs", nargs="+", metavar="RUNS", help="folder with runs at any depth, or a collected file")
    fair.add_argument("--output", required=True, help="folder to write into")
    cost = fair.add_mutually_exclusive_group()
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
    (path,) = existing([args.results])
    output = Path(args.output or (path if path.is_dir() else "runs/report"))
    with TemporaryDirectory() as temporary:     # the figures of a collected file stand in its page alone
        sections = sections_of(path, output if path.is_dir() else Path(temporary), args.made_by)
        write_text(output / "report.html", page(f"Report of {path.resolve().name}", sections))
    show(sections, output / "report.html", *(part.figure for part in sections if part.figure and path.is_dir()))


def show(sections: list[section.Section], *written: Path) -> None:
    print("\n".join([section.plain(sections), "", "Written:", *(f"  {path}" for path in written)]))


def existing(names: list[str | Path]) -> list[Path]:
    """The paths of these names. Raises InputError where one is missing."""
    for name in names:
        if not Path(name).exists():
            raise InputError(f"{name}: expected a folder or file, found none")
    return [Path(name) for name in names]


def collect(args):
    if not args.collected.endswith(".jsonl"):
        raise InputError(f"{args.collected}: expected the name of the file to write, OUT.jsonl, after the folders")
    found = [results.read_results(path) for path in existing(args.folders)]
    runs = {run.name: run for one in found for run in one.runs if (args.kind is None or run.kind in args.kind)
            and any(fnmatchcase(run.name.split("/")[0], pattern) for pattern in args.only)}
    if not runs:
        raise InputError(f"{', '.join(args.folders)}: expected folders with result.json, found none")
    seconds = {stage: took for one in found for stage, took in one.seconds.items()}
    results.collect(results.Results([*runs.values()], args.made_by or found[-1].command, seconds), Path(args.collected))
    print(f"{args.collected}: {len(runs)} results")


def rewrite_tables(args):
    """Rewrite the marked tables of every page and of the shipped checkpoints' cards, and the figures of misc/."""
    misc = Path(args.root) / "misc"
    existing([misc.parent / "README.md", misc])
    cards = misc.parent.glob("distillation/checkpoints/*/README.md")
    pages = {path: section.fill(path.read_text(encoding="utf-8"), partial(table, misc=misc, page=path))
             for path in [misc.parent / "README.md", *sorted(misc.glob("*.md")), *sorted(cards)]}
    for path, text in pages.items():
        write_text(path, text)
        print(f"{path}: written")
    draw_figures(misc)


def table(name: str, misc: Path, page: Path) -> list[section.Section]:
    """The sections of a table, from the result files below `misc`. Raises InputError naming the page where there is none."""
    if name in literature.TABLES:
        return literature.TABLES[name](misc)
    if name not in tables.TABLES:
        raise InputError(f"{page}: expected one of the tables {', '.join([*tables.TABLES, *literature.TABLES])}, found {name}")
    files, make = tables.TABLES[name]
    paths = [misc / "results" / file for file in files.split()]
    if missing := [path.name for path in paths if not path.exists()]:
        return [section.Section(name, f"Not run: misc/results/{missing[0]}.")]
    return make(*(results.read_collected(path) if path.suffix == ".jsonl" else read_json(path) for path in paths))


def draw_figures(misc: Path) -> None:
    """The figures that misc/*.md show, of result files that are there."""
    for name in ("resnet18", "resnet50"):
        if rows := results.continual_rows(results.read_kept(misc, f"continual_digits_{name}").runs):
            (misc / f"continual_{name}").mkdir(exist_ok=True)
            figures.stream_figures(misc / f"continual_{name}", rows)
    if (fashion := results.read_kept(misc, "fashion_mnist")).of_kind("continual"):
        curves.draw_curves(misc / "fashion_mnist_costs.png", fashion)
    if (labels := results.read_kept(misc, "matching_digits")).runs:
        figures.draw_label_bytes(misc / "label_bytes.png", tables.storage_points(labels))


def compare(args):
    runs = [run for path in existing(args.runs) for run in results.read_results(path).runs if run.kind == "continual"]
    if not runs:
        raise InputError(f"{', '.join(args.runs)}: expected result.json files of continual.train_continual, found none")
    rows, costs = results.continual_rows(runs), {} if args.cost_seconds is None else {"given": args.cost_seconds}
    if args.cost_from:
        sets = [run for folder in existing(args.cost_from) for run in results.read_results(folder).runs]
        costs = statistics.mean_costs([*runs, *sets])
        if not costs:
            raise InputError(f"--cost-from {' '.join(args.cost_from)}: expected the result.json of a distilled set, found none")
    output = Path(args.output)
    output.mkdir(parents=True, exist_ok=True)
    sections = [continual.claim_section(rows), continual.runs_section(rows), continual.paired_section(rows),
                continual.payback_section(rows, costs), *figures.stream_figures(output, rows)]
    write_text(output / "report.html", page("Comparison", sections))
    numbers = {method: {arm.name: {"seeds": list(rows[method][arm]), **one} for arm, one in arms.items()}
               for method, arms in statistics.summaries(rows).items()}
    write_json(output / "comparison.json", {
        "kind": "comparison", "rows": numbers, "cost_seconds": costs, "claims": statistics.claims(rows),
        "differences": statistics.differences(rows), "payback": statistics.paybacks(rows, costs)})
    show(sections, output / "report.html", output / "comparison.json", *(part.figure for part in sections if part.figure))


if __name__ == "__main__":
    run(parse_args, main)
