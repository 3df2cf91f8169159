"""Gather the result files of a run or study into one file that is kept.

    python -m misc.report.collect runs/study-digits misc/results/digits.json --kind teacher student \\
        --command "sh misc/studies/digits.sh"
"""

from fnmatch import fnmatchcase
from pathlib import Path

from scripts.cli import InputError, Parser, run


def parse_args():
    parser = Parser(__doc__)
    parser.add_argument("folder", help="folder whose result.json files are gathered, at any depth")
    parser.add_argument("output", help="file to write")
    parser.add_argument("--only", nargs="+", default=["*"], metavar="NAME", help="only below these parts of the folder (seed*)")
    parser.add_argument("--kind", nargs="+", default=None, help="only results of these kinds (student, continual, ...)")
    parser.add_argument("--command", default=None, help="what made the results, as the report names it")
    parser.add_argument("--pictures", default=None, metavar="DIR",
                        help="run whose distilled/ sets the report shows (runs/study-digits/seed0); small copies are kept")
    return parser.parse_args()


def main(args):
    from misc.report.report import read_stages
    from scripts.artefact import write_json
    runs = [{"run": name, **result} for name, result in read_results(Path(args.folder)).items()
            if (args.kind is None or result.get("kind") in args.kind)
            and any(fnmatchcase(name.split("/")[0], pattern) for pattern in args.only)]
    if not runs:
        raise InputError(f"{args.folder}: expected folders with result.json, found none")
    kept = {"command": args.command, "pictures": args.pictures and small_copies(Path(args.pictures)),
            "seconds": read_stages(Path(args.folder) / "stages.jsonl")}
    write_json(Path(args.output), {**{name: value for name, value in kept.items() if value}, **shared_once(runs)})
    print(f"{args.output}: {len(runs)} results")


def read_results(folder: Path) -> dict[str, dict]:
    """Every result.json below `folder`, by its folder's place below it, in the order of those."""
    from scripts.artefact import read_json
    paths = sorted(path for path in folder.rglob("result.json") if path.parent != folder)
    return {path.parent.relative_to(folder).as_posix(): read_json(path) for path in paths}


def small_copies(run: Path) -> dict:
    """The pictures of a run. Raises InputError where it has no D4M set."""
    from misc.report.pictures import packed, pictures_of
    pictures = pictures_of(run)
    if pictures is None:
        raise InputError(f"--pictures: expected a folder with D4M images in distilled/*, found none in {run}")
    return packed(pictures)


def shared_once(runs: list[dict]) -> dict:
    """State what all runs have in common (code, packages, hardware) once; keep it with each run where they differ."""
    shared = {key: runs[0].get(key) for key in ("code", "packages", "hardware")
              if all(entry.get(key) == runs[0].get(key) for entry in runs)}
    return {**shared, "runs": [{key: value for key, value in entry.items() if key not in shared} for entry in runs]}


if __name__ == "__main__":
    run(parse_args, main)
