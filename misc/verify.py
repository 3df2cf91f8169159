"""Check artefact folders against their manifests: digests, missing files, counts, shapes, values and class order.

    python -m misc.verify prototypes/digits-ipc10-kmexpand1 runs/teacher

Prints a line for each thing that is wrong, naming where, what was expected and what was found, and a line per folder. Exit code
0 when all is well, 1 when anything is wrong, 2 where a folder is no finished artefact.
"""

import sys
from pathlib import Path

from scripts.cli import Parser, printable, run


def parse_args():
    parser = Parser(__doc__)
    parser.add_argument("folder", nargs="+", metavar="DIR", help="folder of prototypes, images, labels, a model or a run")
    return parser.parse_args()


def main(args):
    from continual.verification import CHECKS
    from distillation.verification import NoArtefact, verify
    codes = set()
    for folder in map(Path, args.folder):
        try:
            report = verify(folder, CHECKS)
        except NoArtefact as error:
            print(f"error: {printable(str(error))}", file=sys.stderr)
            codes.add(2)
            continue
        for problem in report.problems:
            print(printable(f"{folder}/{problem}"))
        for warning in report.warnings:
            print(printable(f"{folder}/{warning} (a warning)"))
        print(printable(summary(folder, report)))
        codes.add(1 if report.problems else 0)
    if worst := codes - {0}:
        sys.exit(min(worst))


def summary(folder: Path, report) -> str:
    """One line: what the folder is and whether it is what its manifest says."""
    state = f"{len(report.problems)} wrong" if report.problems else "as it should be"
    more = f", {len(report.warnings)} warnings" if report.warnings else ""
    return f"{folder}: {report.kind}, {report.files} files, {report.bytes / 1e6:.1f} MB: {state}{more}"


if __name__ == "__main__":
    run(parse_args, main)
