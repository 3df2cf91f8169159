"""Write the tables of README.md and misc/*.md, and figures of misc/, from the result files in misc/results/.

    python -m misc.report.tables

A table stands between `<!-- table: NAME -->` and `<!-- end: NAME -->`; what is between them is replaced, so running this twice
changes nothing. A table whose result file is not there says so.
"""

import importlib
import re
from functools import partial
from pathlib import Path

from scripts.cli import InputError, Parser, run

IPCS = (1, 2, 5, 10)
NETWORKS = ("resnet18", "resnet50")   # of the continual study
DIGITS_STRENGTH = 0.3   # the default of the digits scripts
ARM = re.compile(r"seed(?P<seed>\d+)/students/(?P<arm>real|[a-z0-9.-]+?)(-ipc(?P<ipc>\d+))?-(?P<labels>hard|soft)$")
ARM_NAMES = {"weights": "the same at 0.3, loss weighted by cluster size", "medoid": "the same at 0.3, from medoids",
             "lof": "the same at 0.3, outliers removed before k-means", "filter": "the same at 0.7, best of 4 by the teacher",
             "mode": "mode guidance, scale 0.1 for 10 of 20 steps", "prototype": "decoded prototypes (strength 0)",
             "noise": "images from pure noise", "random": "random real images", "herding": "real images by herding",
             "kcenter": "real images by k-center", "real": "real training split, whatever the IPC"}


def parse_args():
    parser = Parser(__doc__)
    parser.add_argument("--root", default=".", help="folder with README.md and misc/")
    return parser.parse_args()


def main(args):
    from scripts.artefact import read_json, write_text
    root = Path(args.root)
    for page in [root / "README.md", *sorted((root / "misc").glob("*.md"))]:
        text = page.read_text(encoding="utf-8")
        for name in re.findall(r"<!-- table: ([a-z0-9-]+) -->", text):
            text = fill(text, name, table(name, root / "misc", page))
        write_text(page, text)
        print(f"{page}: written")
    for name, (file, draw) in FIGURES.items():
        source = root / "misc" / "results" / file
        if source.exists():
            draw(read_json(source), root / "misc" / name)
            print(f"{root / 'misc' / name}: drawn")


def table(name: str, misc: Path, page: Path) -> str:
    """The table `name`, from the result files below `misc`. Raises InputError naming the page where there is none."""
    from misc.report import literature_tables
    from scripts.artefact import read_json
    if name in literature_tables.TABLES:
        return literature_tables.TABLES[name](misc)
    if name not in TABLES:
        raise InputError(f"{page}: expected one of the tables {', '.join([*TABLES, *literature_tables.TABLES])}, found {name}")
    file, make = TABLES[name]
    source = misc / "results" / file
    return make(read_json(source)) if source.exists() else f"Not run: misc/results/{file}."


def fill(text: str, name: str, table: str) -> str:
    """Replace what stands between the marks of table `name`; the end mark is added where there is none."""
    start, end = f"<!-- table: {name} -->", f"<!-- end: {name} -->"
    pattern = re.escape(start) + (rf".*?{re.escape(end)}" if end in text else "")
    return re.sub(pattern, lambda _: f"{start}\n{table}\n{end}", text, flags=re.DOTALL)


def shown(result: dict, *titles: str) -> str:
    """Tables of a report as it showed them."""
    return "\n\n".join(with_table(part["says"], part["header"], part["rows"])
                       for part in result["tables"] if part["title"] in titles)


def with_table(says: str, header: list[str], rows: list[list[str]]) -> str:
    """A text and, where there are rows, the table below it."""
    from misc.report.sections import markdown_table
    return f"{says}\n\n{markdown_table(header, rows)}" if rows else says


def quickstart(result: dict) -> str:
    """What the quickstart found, and how long it took."""
    return (f"One run on {'; '.join(result['hardware'])}: {result['seconds']['total'] / 60:.1f} minutes.\n\n"
            + shown(result, "What this says", "Students", "Continual learning"))


def stages(result: dict) -> str:
    """Seconds of the quickstart's stages, on one line."""
    parts = [f"{name} {seconds:.0f}" for name, seconds in result["seconds"].items()]
    return f"Seconds in the quickstart ({'; '.join(result['hardware'])}): {', '.join(parts)}."


def student_numbers(result: dict) -> dict:
    """{(arm, ipc or None, labels): numbers over seeds} of a study's students."""
    from misc.report.report import measure
    groups = {}
    for one in result["runs"]:
        found = ARM.search(one["run"])
        if found:
            key = (found["arm"], found["ipc"] and int(found["ipc"]), found["labels"])
            groups.setdefault(key, {})[one["run"]] = one
    return measure(groups, {"accuracy": "metrics.test_accuracy", "seconds": "seconds.train", "steps": "metrics.steps"})


def digits(result: dict) -> str:
    """Student accuracy by IPC and labels for the default and its simplest rivals."""
    return student_table(student_numbers(result), [f"d4m-s{DIGITS_STRENGTH}", "weights", "prototype", "random", "herding",
                                                    "real"], ("hard", "soft"))


def sweep(result: dict) -> str:
    """Hard-label accuracy by strength and IPC."""
    numbers = student_numbers(result)
    return student_table(numbers, ["prototype", *strengths(numbers), "random"], ("hard",))


def every_arm(labels: str):
    """A table of every arm with labels of one kind."""
    def make(result: dict) -> str:
        numbers = student_numbers(result)
        return student_table(numbers, [*strengths(numbers), *ARM_NAMES], (labels,))
    return make


def strengths(numbers: dict) -> list[str]:
    """The arms of D4M's own images, by strength."""
    return sorted({arm for arm, _, _ in numbers if arm.startswith("d4m")})


def student_table(numbers: dict, arms: list[str], labels: tuple[str, ...]) -> str:
    """Rows are arms, columns IPC and labels; the real split, which has no IPC, stands in its own column's place."""
    from misc.report.sections import cell, markdown_table
    header = ["Trained on", *(f"IPC {ipc}, {kind}" for kind in labels for ipc in IPCS), "Seeds (n)"]
    rows = []
    for arm in arms:
        cells = [numbers.get((arm, None if arm == "real" else ipc, kind)) for kind in labels for ipc in IPCS]
        name = ARM_NAMES.get(arm) or f"D4M images, strength {arm.removeprefix('d4m-s')}"
        seeds = sorted({one["n"] for one in cells if one})
        rows.append([name, *(cell(one, "accuracy", 100) for one in cells), " / ".join(map(str, seeds))])
    return ("Accuracy of a ResNet-18 on the real test digits, percent, mean ± standard deviation over seeds; the same teacher "
            f"for all, the same steps for all of a column ({steps_taken(numbers)}).\n\n" + markdown_table(header, rows))


def steps_taken(numbers: dict) -> str:
    """Optimiser steps by IPC, and those of the real split."""
    steps = {ipc: sorted({round(one["steps"]["mean"]) for (_, of, _), one in numbers.items() if of == ipc}) for ipc in
             (*IPCS, None)}
    return ", ".join(f"{'real split' if ipc is None else f'IPC {ipc}'}: {' to '.join(map(str, found))}"
                     for ipc, found in steps.items() if found)


def judge(result: dict) -> str:
    """What the judge recognised, precision and recall where they were measured, and distances to the training split."""
    from misc.report.sections import NONE, markdown_table
    distances, shares = result["nearest_training_image"], result.get("manifold", {})
    recognised = {**result["recognised"],
                  "real test images": {"images": result["judge"]["test_images"], "share": result["judge"]["test_accuracy"]}}
    rows = []
    for name in dict.fromkeys([*result["recognised"], *shares, "real test images"]):
        found, apart, near = recognised.get(name), distances.get(name, {}), shares.get(name, {})
        rows.append([name, *((str(found["images"]), f"{100 * found['share']:.1f}") if found else (NONE, NONE)),
                     *(f"{100 * near[key]:.1f}" if near else NONE for key in ("precision", "recall")),
                     *(f"{apart[key]:.3f}" if apart else NONE for key in ("minimum", "5 % quantile", "median"))])
    header = ["Images", "Number", "Recognised (%)", "Precision (%)", "Recall (%)", "Distance, minimum", "5 % quantile",
              "Median"]
    kept = [place for place in range(len(header)) if any(row[place] != NONE for row in rows)]
    says = (f"A judge ({result['judge']['model']}, trained on the training split) names what the checkpoint draws; "
            "root-mean-square pixel distance (0 to 1) to the nearest training image shows whether pictures are copies.")
    if shares:
        says += (" Precision is the share of drawn images near a real test image, recall that of real test images near a drawn "
                 "one, in what the judge looks at, with as many real images as drawn ones.")
    return says + "\n\n" + markdown_table([header[place] for place in kept], [[row[place] for place in kept] for row in rows])


def reported(module: str):
    """The table that misc.`module` makes of its result."""
    def make(result: dict) -> str:
        report = importlib.import_module(f"misc.{module}").report
        return "\n\n".join(with_table(section.says, section.header, section.rows) for section in report(result))
    return make


def later(module: str, name: str):
    """The function `name` of misc.`module`, which is imported when it is called."""
    def call(*given):
        return getattr(importlib.import_module(f"misc.{module}"), name)(*given)
    return call


matching, continual, study, faults = (partial(later, module) for module in ("report.matching_tables", "report.continual_tables",
                                                                           "report.study_tables", "faults"))


def fuzz(result: dict) -> str:
    """What became of damaged files, by reader."""
    from misc.report.sections import markdown_table
    limits, kinds = result["limits"], ("inputs", "read", "refused", "crashed", "died", "hung", "memory")
    rows = [[name, *(f"{counts[kind]:,}" for kind in kinds), f"{counts['longest_seconds']:.2f}",
             f"{counts['grown_bytes'] / 2 ** 20:.0f}"] for name, counts in result["readers"].items()]
    total = {kind: sum(counts[kind] for counts in result["readers"].values()) for kind in kinds}
    rows.append(["all", *(f"{total[kind]:,}" for kind in kinds),
                 f"{max(counts['longest_seconds'] for counts in result['readers'].values()):.2f}",
                 f"{max(counts['grown_bytes'] for counts in result['readers'].values()) / 2 ** 20:.0f}"])
    return (f"{result['count']:,} inputs of seed {result['seed']} on {result['hardware']}. Crashed: another error than the "
            f"documented one; died: the process with it; hung: more than {limits['seconds']:g} s of processor time; memory: "
            f"grown by more than {limits['bytes'] / 2 ** 30:g} GiB.\n\n"
            + markdown_table(["Damaged file", *(kind.capitalize() for kind in kinds), "Longest (s)", "Grown by (MiB)"], rows))


FIGURES = {"label_bytes.png": ("matching_digits.json", matching("draw_storage")),
           **{f"continual_{network}": (f"continual_digits_{network}.json", continual("draw")) for network in NETWORKS}}
TABLES = {"quickstart": ("quickstart.json", quickstart), "stages": ("quickstart.json", stages),
          "digits": ("digits.json", digits), "sweep": ("digits.json", sweep),
          "arms-hard": ("digits.json", every_arm("hard")), "arms-soft": ("digits.json", every_arm("soft")),
          "protocols": ("matching_digits.json", matching("protocols")),
          "protocols-cifar10": ("matching_cifar10.json", matching("protocols")),
          "storage": ("matching_digits.json", matching("storage")), "cross": ("matching_digits.json", matching("cross")),
          "judge": ("judge_digits.json", judge), "judge-cifar10": ("judge_cifar10.json", judge),
          "judge-arms": ("judge_cifar10_arms.json", judge),
          "fuzz": ("fuzz.json", fuzz), "plan": ("plan_imagenet.json", reported("plan")),
          "kills": ("faults.json", faults("kills_table")), "faults": ("faults.json", faults("cases_table")),
          "continual": ("continual_digits_resnet18.json", continual("readme")),
          **{f"{part}-{network}": (f"continual_digits_{network}.json", continual(part)) for network in NETWORKS
             for part in ("claim", "fairness", "paired", "payback")},
          "starts": ("continual_digits_starts.json", continual("starts")),
          **{f"{part}-cifar10": ("cifar10_small.json", continual(part)) for part in ("claim", "fairness", "paired")},
          **{f"{part}-cifar10": ("cifar10_small.json", study(part)) for part in ("parts", "students", "targets")},
          "arms-cifar10": ("cifar10_arms.json", study("students")),
          "benchmark-distillation": ("benchmark_distillation.json", reported("benchmark")),
          "benchmark-matching": ("benchmark_matching.json", reported("benchmark")),
          "benchmark-continual": ("benchmark_continual.json", reported("benchmark"))}


if __name__ == "__main__":
    run(parse_args, main)
