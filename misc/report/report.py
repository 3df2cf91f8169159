"""The report: one page that needs nothing but itself, made of result files alone.

    python -m misc.report.report runs/quickstart
    python -m misc.report.report misc/results --output runs/report

Of a run's folder: report.html, report.md, result.json and figures, in the folder itself. Of collected files
(misc.report.collect), one or a folder of them: report.html with the tables of misc.report.tables and the figures. What was not
run is shown as "not run".
The same files give the same report.
"""

from dataclasses import asdict, replace
from pathlib import Path

from misc.report.collect import read_results
from misc.report.figures import accuracy_vs_time
from misc.report.findings import findings
from misc.report.page import page
from misc.report.pictures import class_grids, packed, pictures_of
from misc.report.rows import METHODS, arm_of, field, held, mean_std
from misc.report.sections import NOT_RUN, Section, cell, markdown, plain
from scripts.cli import InputError, Parser, run

ARMS = {"real": "real, whole training split", "random": "real, drawn at random", "prototype": "decoded prototypes",
        "distilled": "D4M images"}
SOURCES = ("real", "random", "distilled")
EXPECTED = ("joint", "finetune", "er", "agem", "task_arithmetic")    # what a run should have; others are shown where found
MODULES = {"prototypes": "distillation.gen_prototype", "distilled": "distillation.gen_syn_image",
           "soft_labels": "matching.generate_soft_label", "student": "validate.train_FKD",
           "continual": "continual.train_continual"}
STUDENT = {"accuracy": "metrics.test_accuracy", "images": "metrics.train_images", "steps": "metrics.steps",
           "train_seconds": "seconds.train"}
STUDENT_SETTINGS = {"network": "config.arch", "batch size": "config.batch_size", "epochs": "config.epochs",
                    "steps": "metrics.steps"}
CONTINUAL = {"acc": "class_il.acc", "forgetting": "class_il.forgetting", "task_il_acc": "task_il.acc",
             "train_seconds": "seconds.train", "steps": "steps", "images": "stream_images"}
CONTINUAL_SETTINGS = {"network": "config.arch", "tasks": "config.tasks", "batch size": "config.recipe.batch_size",
                      "buffer images": "config.buffer_size", "steps per task": "config.steps", "images": "stream_images"}


def parse_args():
    parser = Parser(__doc__)
    parser.add_argument("results", metavar="RESULTS", help="folder of a run, a collected file, or a folder of such files")
    parser.add_argument("--output", default=None, help="folder to write into (default: the run's, or runs/report)")
    parser.add_argument("--command", default="", help="what made the run, as its figures name it; collected files name theirs")
    return parser.parse_args()


def main(args):
    from tempfile import TemporaryDirectory

    from misc.report.collected import chapters_of
    from scripts.artefact import write_text
    given = Path(args.results)
    title, stages, results = f"Report of {given.resolve().name}", read_stages(given / "stages.jsonl"), read_results(given)
    if stages or results:
        output = Path(args.output or given)
        sections = run_report(given, output, stages, results, args.command)
        write_text(output / "report.md", markdown(title, sections))
        write_text(output / "report.html", page(title, {"": sections}, output))
        print(plain(sections) + "\n")
        names = ["report.html", "report.md", *(part.figure for part in sections if part.figure), "result.json"]
    elif args.command:
        raise InputError(f"--command: expected with the folder of a run alone, found with {given}; collected files name theirs "
                         "(misc.report.collect --command)")
    else:
        output, names = Path(args.output or "runs/report"), ["report.html"]
        with TemporaryDirectory() as figures:
            write_text(output / "report.html", page(title, chapters_of(given, Path(figures)), Path(figures)))
    print("\n".join(["Written:", *(f"  {output / name}" for name in names)]))


def run_report(folder: Path, output: Path, stages: dict, results: dict[str, dict], command: str) -> list[Section]:
    """The sections of a run, whose figures and result.json are written into `output`."""
    from scripts.artefact import write_json
    students, continual = group(results, "student", student_key), group(results, "continual", continual_key)
    student, stream = measure(students, STUDENT), compare_to_real(measure(continual, CONTINUAL))
    pictures, equal = pictures_of(folder), held(continual, 1, CONTINUAL_SETTINGS)
    output.mkdir(parents=True, exist_ok=True)
    streamed = made_by(command, "continual")
    sections = [findings(student, stream, making_seconds(results)), student_section(students, student, results),
                *class_grids(pictures, output, made_by(command, "prototypes", "distilled")),
                continual_section(continual, stream), accuracy_vs_time(output, stream, equal, streamed),
                *stream_figures(output, results, streamed), stage_section(stages), origin_section(results)]
    write_json(output / "result.json", summary(stages, student, stream, sections, results, packed(pictures)))
    return sections


def stream_figures(output: Path, results: dict[str, dict], command: str) -> list[Section]:
    """The figures of a comparison that are not about time, or why there are none."""
    from misc.report.continual_figures import draw_streams
    from misc.report.rows import rows_of
    runs = {name: one for name, one in results.items() if one["kind"] == "continual"}
    try:
        return [replace(part, command=command) for part in draw_streams(output, rows_of(runs))]
    except InputError as error:
        return [Section("Accuracy matrices", f"Not drawn: {error}.")]


def made_by(command: str, *kinds: str) -> str:
    """The command that made results: as it was given, or else the modules that write such kinds."""
    modules = " && ".join(f"python -m {MODULES[kind]}" for kind in kinds)
    return command or (modules and f"{modules}  # flags: config in the result files")


def read_stages(path: Path) -> dict[str, float]:
    """Seconds by stage, in the order of first appearance; the longest counts, since a second run skips what is finished."""
    import json
    stages = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines() if path.exists() else [], 1):
        try:
            entry = json.loads(line)
            stages[entry["stage"]] = max(entry["seconds"], stages.get(entry["stage"], 0))
        except (ValueError, KeyError, TypeError):
            raise InputError(f'{path}: expected {{"stage": name, "seconds": n}} in line {number}, found {line!r}') from None
    return stages


def group(results: dict[str, dict], kind: str, key_of) -> dict[tuple, dict[str, dict]]:
    """The results of a kind, by `key_of(name, result)` and then by name."""
    groups = {}
    for name, result in results.items():
        if field(name, result, "kind") == kind:
            groups.setdefault(key_of(name, result), {})[name] = result
    return groups


def student_key(name: str, result: dict) -> tuple[str, str]:
    """(arm, labels) of students/<arm>-<labels>, with -seed<k> where there are several."""
    return name.split("/")[-1].split("-")[0], field(name, result, "config.labels")


def continual_key(name: str, result: dict) -> tuple[str, str]:
    """(method, source); a memory filled from another source and soft labels are part of the source's name."""
    return field(name, result, "method"), arm_of(name, result).name


def measure(groups: dict, fields: dict[str, str]) -> dict[tuple, dict]:
    """Per group the number of runs `n` and each field's mean and standard deviation."""
    return {key: {"n": len(runs), **{short: mean_std([field(*one, long) for one in runs.items()])
                                     for short, long in fields.items()}} for key, runs in groups.items()}


def compare_to_real(numbers: dict[tuple, dict]) -> dict[tuple, dict]:
    """Add to each (method, source) the share of training time saved and of ACC kept against the method on real images."""
    compared = {}
    for (method, source), own in numbers.items():
        real = numbers.get((method, "real")) if source != "real" else None
        spent, kept = (own[name]["mean"] / real[name]["mean"] if real and real[name]["mean"] else None
                       for name in ("train_seconds", "acc"))
        compared[method, source] = {**own, "time_saved": None if spent is None else 1 - spent, "acc_kept": kept}
    return compared


def making_seconds(results: dict[str, dict]) -> float | None:
    """Seconds to make the distilled set: prototypes and synthesis. None unless the run has exactly one of each."""
    made = [[one for one in results.values() if one["kind"] == kind and one["config"].get("method") == method]
            for kind, method in (("prototypes", None), ("distilled", "d4m"))]
    return sum(sum(found[0]["seconds"].values()) for found in made) if all(len(found) == 1 for found in made) else None


def student_section(groups: dict, numbers: dict, results: dict[str, dict]) -> Section:
    """Students by what they were trained on."""
    rows, taught = [], f"the teacher was {NOT_RUN}"
    for arm, name in ARMS.items():
        if arm == "prototype" and not any(key[0] == arm for key in numbers):
            continue  # an extra, not one of the comparison's three
        hard, soft = numbers.get((arm, "hard")), numbers.get((arm, "soft"))
        place = f"soft-labels/{arm}"
        stored = f"{field(place, results[place], 'metrics.bytes') / 1e6:.2f}" if place in results else NOT_RUN
        rows.append((name, cell(hard or soft, "images", digits=0), cell(hard, "accuracy", 100), cell(soft, "accuracy", 100),
                     cell(hard, "train_seconds"), cell(soft, "train_seconds"), stored, seeds(hard, soft)))
    if "teacher" in results:
        taught = f"the teacher reaches {100 * field('teacher', results['teacher'], 'metrics.test_accuracy'):.1f} %"
    return Section("Students", f"Accuracy of students on the real test images by what they were trained on; {taught}. "
                   + held(groups, 0, STUDENT_SETTINGS),
                   ("Trained on", "Images", "Hard labels, accuracy (%)", "Soft labels, accuracy (%)", "Training, hard (s)",
                    "Training, soft (s)", "Soft labels (MB)", "Seeds (n)"), tuple(rows))


def continual_section(groups: dict, numbers: dict) -> Section:
    """Continual learning by method and source of the stream."""
    rows = []
    for method in dict.fromkeys([*EXPECTED, *sorted(name for name, _ in numbers)]):
        for source in dict.fromkeys([*SOURCES, *sorted(of for name, of in numbers if name == method)]):
            one = numbers.get((method, source))
            rows.append((METHODS.get(method, method), source, cell(one, "acc", 100), cell(one, "forgetting", 100),
                         cell(one, "task_il_acc", 100), cell(one, "train_seconds"), cell(one, "steps", digits=0),
                         cell(one, "time_saved", 100), cell(one, "acc_kept", digits=3), seeds(one)))
    return Section("Continual learning", "Accuracy on the real test images after the last task, averaged over tasks (ACC), by "
                   "method and source of the training stream; time saved and ACC kept are against the same method on real "
                   f"images. Joint training sees all tasks at once and forgets nothing. {starts(groups)}"
                   + held(groups, 1, CONTINUAL_SETTINGS),
                   ("Method", "Source", "ACC, Class-IL (%)", "Forgetting (points)", "ACC, Task-IL (%)", "Training (s)",
                    "Steps", "Time saved (%)", "ACC kept (ratio)", "Seeds (n)"), tuple(rows))


def seeds(*numbers: dict | None) -> str:
    """How many runs stand behind a row; every number where they differ."""
    return " / ".join(dict.fromkeys(str(one["n"]) for one in numbers if one)) or NOT_RUN


def starts(groups: dict) -> str:
    """Where Task Arithmetic's experts start from, and what making that start cost."""
    found = [one["start"] for runs in groups.values() for one in runs.values() if "start" in one]
    if not found:
        return ""
    notes, seconds = sorted({start["note"] for start in found}), max(start["seconds"] for start in found)
    alone = [100 * start["class_il_acc"] for start in found if "class_il_acc" in start]
    reached = f", where it alone reaches {min(alone):.1f} to {max(alone):.1f} % ACC" if alone else ""
    return f"Task Arithmetic's common start: {', '.join(notes)}{reached}; its {seconds:.1f} s are not in the rows. "


def stage_section(stages: dict[str, float]) -> Section:
    """Seconds of the stages."""
    rows = [*((name, f"{seconds:.0f}") for name, seconds in stages.items()), ("total", f"{sum(stages.values()):.0f}")]
    return Section("Stages", "Wall-clock seconds of each stage, process start included; of a stage that ran again the longest "
                   "run counts.", ("Stage", "Seconds"), tuple(rows) if stages else (("all", NOT_RUN),))


def origins(results: dict[str, dict]) -> dict[str, list[str]]:
    """Hardware, code and packages that the results name, each once."""
    def name(hardware) -> str:
        parts = {"gpu": None, "processor": "", "threads": 0, **hardware} if isinstance(hardware, dict) else {"gpu": hardware}
        return parts["gpu"] or f"{parts['processor']}, {parts['threads']} threads"
    found = {"hardware": {name(one["hardware"]) for one in results.values() if "hardware" in one},
             "code": {one["code"] for one in results.values() if "code" in one},
             "packages": {" ".join(pair) for one in results.values() for pair in one.get("packages", {}).items()}}
    return {what: sorted(values) for what, values in found.items()}


def origin_section(results: dict[str, dict]) -> Section:
    """What the results were made with."""
    return Section("Made with", "Hardware, commits and package versions as the result files name them.", ("What", "Found"),
                   tuple((name, "; ".join(found) or NOT_RUN) for name, found in origins(results).items()))


def summary(stages: dict, students: dict, continual: dict, sections: list[Section], results: dict[str, dict],
            pictures: dict | None) -> dict:
    """Everything in the tables, as numbers and as shown, for result.json."""
    return {"kind": "report", "seconds": {**stages, "total": sum(stages.values())},
            "students": {"-".join(key): one for key, one in sorted(students.items())},
            "continual": {"-".join(key): one for key, one in sorted(continual.items())},
            "tables": [asdict(part) for part in sections], **origins(results), "pictures": pictures}


if __name__ == "__main__":
    run(parse_args, main)
