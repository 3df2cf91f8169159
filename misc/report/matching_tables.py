"""Tables and the figure of misc/matching.md: what the protocol, the labels' bytes and the student's architecture do."""

import re
from pathlib import Path

from scripts.cli import ROOT

PROTOCOLS, ARMS = ("d4m", "rded"), {"distilled": "D4M images", "random": "random real images"}
PROTOCOL_RUN = re.compile(r"seed\d+/students/protocols/(?P<arm>\w+)-(?P<model>\w+)-(?P<protocol>\w+)-(?P<labels>hard|soft)$")
STORAGE_RUN = re.compile(r"seed\d+/(students/storage/|soft-labels/storage-)(?P<kept>[\w.-]+)$")
CROSS_RUN = re.compile(r"seed\d+/students/cross/(?P<model>\w+)$")
STUDENTS = ("resnet18", "resnet50", "mobilenet_v2", "efficientnet_b0", "swin_t", "vit_b_16", "convnet_d3_w128")


def grouped(result: dict, pattern: re.Pattern, kind: str, *names: str) -> dict[tuple, dict]:
    """Runs of one kind whose names fit, by the parts `names` of the name."""
    groups: dict[tuple, dict] = {}
    for one in result["runs"]:
        if one["kind"] == kind and (found := pattern.search(one["run"])):
            groups.setdefault(tuple(found[name] for name in names), {})[one["run"]] = one
    return groups


def student_numbers(groups: dict) -> dict:
    """Accuracy, seconds and steps over seeds."""
    from misc.report.report import measure
    return measure(groups, {"accuracy": "metrics.test_accuracy", "seconds": "seconds.train", "steps": "metrics.steps"})


def setting(groups: dict, *names: str) -> str:
    """Settings of all runs, equal or as a list."""
    runs = [one for group in groups.values() for one in group.values()]
    found = {name: sorted({str(one["config"][name]) for one in runs}) for name in names}
    return ", ".join(f"{name.replace('_', ' ')} {' or '.join(values)}" for name, values in found.items())


def teacher_accuracy(result: dict) -> str:
    """The teacher that labelled, and what it reaches on the test images."""
    return " and ".join(f"{one['config']['arch']} with {100 * one['metrics']['test_accuracy']:.1f} % after "
                        f"{one['config']['epochs']} epochs" for one in result["runs"] if one["kind"] == "teacher")


def protocols(result: dict) -> str:
    """Arm x architecture x protocol x labels."""
    from misc.report.sections import cell, markdown_table
    groups = grouped(result, PROTOCOL_RUN, "student", "arm", "model", "protocol", "labels")
    numbers = student_numbers(groups)
    rows = []
    for model in dict.fromkeys(model for _, model, _, _ in numbers):
        for arm, name in ARMS.items():
            cells = [numbers.get((arm, model, protocol, labels)) for labels in ("hard", "soft") for protocol in PROTOCOLS]
            rows.append([model, name, *(cell(one, "accuracy", 100) for one in cells),
                         " / ".join(map(str, sorted({one["n"] for one in cells if one})))])
    header = ["Student", "Trained on", *(f"{labels}, {protocol}" for labels in ("hard", "soft") for protocol in PROTOCOLS),
              "Seeds (n)"]
    steps = {protocol: sorted({round(one["steps"]["mean"]) for key, one in numbers.items() if key[2] == protocol})
             for protocol in PROTOCOLS}
    taken = ", ".join(f"{protocol} {' or '.join(map(str, found))}" for protocol, found in steps.items() if found)
    equal = setting(groups, "epochs", "stem", "input_size", "mix_type", "min_scale_crops", "flip")
    return ("Accuracy on the real test images, percent, mean ± standard deviation over seeds. Teacher: "
            f"{teacher_accuracy(result)}. Held equal: {equal}. Not equal: steps ({taken}), batch size, learning-rate schedule, "
            "and with soft labels stored views against new ones.\n\n" + markdown_table(header, rows))


def storage_points(result: dict) -> dict[str, dict]:
    """Per way to keep labels: bytes, logits and epochs stored, accuracy over seeds; the most bytes first."""
    from misc.report.report import measure
    students = student_numbers(grouped(result, STORAGE_RUN, "student", "kept"))
    labels = measure(grouped(result, STORAGE_RUN, "soft_labels", "kept"), {
        name: f"metrics.{name}" for name in ("bytes", "stored_epochs", "epochs", "stored_logits", "classes", "views")})
    points = {kept: {**one, **students[kept,]} for (kept,), one in labels.items() if (kept,) in students}
    return dict(sorted(points.items(), key=lambda item: -item[1]["bytes"]["mean"]))


def storage(result: dict) -> str:
    """Accuracy against bytes of labels."""
    from misc.report.sections import cell, markdown_table
    points = storage_points(result)
    most = max((one["bytes"]["mean"] for one in points.values()), default=0)
    rows = [[f"{one['stored_logits']['mean']:.0f} of {one['classes']['mean']:.0f}",
             f"{one['stored_epochs']['mean']:.0f} of {one['epochs']['mean']:.0f}", f"{one['bytes']['mean'] / 1e3:.1f}",
             f"{one['bytes']['mean'] / one['views']['mean']:.0f}", f"{most / one['bytes']['mean']:.1f}",
             cell(one, "accuracy", 100), str(one["n"])] for one in points.values()]
    groups = grouped(result, STORAGE_RUN, "student", "kept")
    return (f"ResNet-18 on D4M images; held equal: {setting(groups, 'epochs', 'batch_size', 'temperature', 'lr_schedule')}. "
            "Bytes are those of the files: logits as float16, and what was drawn for every view.\n\n"
            + markdown_table(["Logits stored", "Epochs stored", "Labels (kB)", "Bytes per view", "Times smaller",
                              "Accuracy (%)", "Seeds (n)"], rows))


def draw_storage(result: dict, path: Path) -> None:
    """Accuracy against bytes of labels, one mark per way to keep them."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullLocator

    from misc.report.plots import save, tidy
    figure = Figure(figsize=(6.6, 4.2), dpi=170, layout="constrained")
    axis = figure.subplots()
    for kept, one in storage_points(result).items():
        family, colour, mark = family_of(kept, f"{one['stored_logits']['mean']:.0f}", f"{one['stored_epochs']['mean']:.0f}")
        place, spread = (one["bytes"]["mean"] / 1e3, 100 * one["accuracy"]["mean"]), one["accuracy"]["std"]
        axis.errorbar(*place, yerr=spread and 100 * spread, marker="o", ms=15, color=colour, mec="white", label=family,
                      ls="none", elinewidth=1)
        axis.annotate(mark, place, ha="center", va="center_baseline", fontsize=7.5, color="white", zorder=9)
    handles = dict(zip(*reversed(axis.get_legend_handles_labels()), strict=True))
    axis.legend(handles.values(), handles.keys(), frameon=False, loc="lower right", markerscale=0.6)
    axis.set_xscale("log")
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
    axis.xaxis.set_major_formatter("{x:g}")
    axis.xaxis.set_minor_locator(NullLocator())
    axis.set(xlabel="soft labels (kB)", ylabel="accuracy of ResNet-18 (%)")
    tidy(axis)
    axis.margins(x=0.12)
    save(figure, path)


def family_of(kept: str, logits: str, epochs: str) -> tuple[str, str, str]:
    """What the figure calls a way to keep labels, its colour, and what stands on its marks."""
    if "topk" in kept and "epochs" in kept:
        return "so many logits of so many epochs", "#CC79A7", f"{logits}·{epochs}"
    if "topk" in kept:
        return "so many leading logits of all epochs", "#E69F00", logits
    if "epochs" in kept:
        return "all logits of so many epochs", "#0072B2", epochs
    return "all logits of all epochs", "#222222", ""


def cross(result: dict) -> str:
    """One distilled set and teacher, students of many architectures; the paper's figures beside."""
    from misc.report.literature_tables import published
    from misc.report.sections import NONE, cell, markdown_table
    (paper,) = published(ROOT / "misc", "cross")
    groups = grouped(result, CROSS_RUN, "student", "model")
    numbers = student_numbers(groups)
    models = list(dict.fromkeys([*STUDENTS, *(model for (model,) in numbers)]))
    rows = [["this code, digits, IPC 10", *(cell(numbers.get((model,)), "accuracy", 100) for model in models)],
            ["training (s)", *(cell(numbers.get((model,)), "seconds") for model in models)],
            ["D4M (CVPR 2024, table 5), ImageNet-1K, IPC 50", *(paper.cells.get(model, NONE) for model in models)]]
    seeds = " or ".join(map(str, sorted({one["n"] for one in numbers.values()})))
    return (f"Accuracy, percent, n = {seeds}; teacher {teacher_accuracy(result)}; soft labels; held equal: "
            f"{setting(groups, 'epochs', 'batch_size', 'adamw_lr', 'lr_schedule', 'input_size')}. The last row is "
            "another data set and shows the layout, not a comparison.\n\n" + markdown_table(["", *models], rows))
