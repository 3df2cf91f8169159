"""misc/literature.md: published figures with their sources, ours beside them, and what has not been run says so."""

import json
import re
import shutil
import statistics
from dataclasses import replace
from pathlib import Path

import pytest
from test_bad_input import refused

from misc.report.__main__ import table as sections_of
from misc.report.results import Results, Run, collect, read_collected
from misc.report.section import markdown
from scripts.cli import ROOT

NAMES = re.findall(r"<!-- table: ([a-z0-9-]+) -->", (ROOT / "misc" / "literature.md").read_text())
REAL = read_collected(ROOT / "misc" / "results" / "cifar10_small.jsonl").runs
PUBLISHED = json.loads((ROOT / "misc" / "published.json").read_text())


@pytest.fixture
def misc(tmp_path) -> Path:
    """misc/ with the page and the published figures, without a result."""
    (tmp_path / "misc" / "results").mkdir(parents=True)
    (tmp_path / "README.md").write_text("")
    for name in ("literature.md", "published.json"):
        shutil.copy(ROOT / "misc" / name, tmp_path / "misc" / name)
    return tmp_path / "misc"


def table(name: str, misc: Path) -> str:
    return "\n\n".join(map(markdown, sections_of(name, misc, misc / "literature.md")))


def rows_of(text: str, *words: str) -> list[dict[str, str]]:
    """Rows of a table, by column, that have a cell for each of `words`: equal to it, or going on after it with a comma."""
    lines = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in text.splitlines() if line.startswith("|")]
    return [dict(zip(lines[0], line, strict=True)) for line in lines[2:]
            if all(any(cell == word or cell.startswith(f"{word},") for cell in line) for word in words)]


def student(name: str, accuracy: float, images: int, **config) -> Run:
    """A result as the real file has them, changed."""
    one = next(run for run in REAL if run.name.endswith("resnet18-soft-distilled-ipc10"))
    return replace(one, name=f"students/{name}", config={**one.config, **config},
                   metrics={**one.metrics, "test_accuracy": accuracy, "train_images": images})


def test_the_page_is_what_the_command_writes(here, misc):
    for name in set(re.findall(r"misc/results/\w+\.jsonl", (misc / "literature.md").read_text())):
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, misc / "results")
    assert here("misc.report.__main__", "tables", "--root", misc.parent).code == 0
    assert (misc / "literature.md").read_text() == (ROOT / "misc" / "literature.md").read_text()


def test_every_published_figure_stands_with_its_name_and_source(misc):
    for name, published in PUBLISHED["tables"].items():
        text = table(f"literature-{name}", misc)
        for one in published:
            source = PUBLISHED["sources"][one["source"]]
            found = rows_of(text, one["data"], source, one["differs"], *filter(None, [one["student"]]))
            (row,) = [row for row in found if row["As named"] == one["name"]]
            assert set(one["values"].values()) <= set(row.values())


def test_no_published_figure_stands_in_code():
    rows = [one for rows in PUBLISHED["tables"].values() for one in rows]
    figures = {value for one in rows for value in one["values"].values() if "." in value}
    assert len(figures) > 50
    for name in ("literature.py", "tables.py", "continual.py"):
        assert set(re.findall(r"\d+\.\d+", (ROOT / "misc" / "report" / name).read_text())) & figures == set()


def test_without_results_every_row_of_ours_names_its_command(misc):
    commands = set()
    for name in NAMES:
        ours = rows_of(table(name, misc), "this code")
        ours = [row for row in ours if row["Data"] != "digits, IPC 10" or "not run" in row.values()]
        assert ours and all("not run" in row.values() and "to run it: " in row["What differs"] for row in ours), name
        commands |= {script for row in ours for script in re.findall(r"sh ([\w/]+\.sh)", row["What differs"])}
    assert {"misc/studies/cifar10.sh", "validate/train_FKD.sh", "misc/studies/continual_order.sh"} <= commands
    assert all((ROOT / script).exists() for script in commands)


def test_a_result_file_fills_its_rows(misc):
    runs = [student(f"resnet18-distilled-ipc10-soft-seed{seed}", 0.7 + 0.02 * seed, 100, seed=seed) for seed in (0, 1)]
    runs += [student("resnet18-distilled-ipc500-soft-seed0", 0.9, 5000, epochs=60),
             student("resnet18-random-ipc10-soft-seed0", 0.6, 100), student("resnet18-real-soft-seed0", 0.95, 50000),
             student("convnet_d3_w128-distilled-ipc50-soft-seed0", 0.55, 500, model="convnet_d3_w128", arch="convnet_d3_w128"),
             student("resnet18-herding-ipc10-soft-seed0", 0.5, 100), student("resnet50-distilled-ipc50-soft-seed0", 0.4, 500,
                                                                             model="resnet50", arch="resnet50")]
    collect(Results([*runs, *(run for run in REAL if run.kind == "teacher")]), misc / "results" / "cifar10.jsonl")
    text = table("literature-cifar", misc)
    (row,) = rows_of(text, "CIFAR-10", "ResNet-18", "this code, D4M images, soft labels")
    assert [row[f"IPC {ipc} (%)"] for ipc in (10, 50, 500)] == ["71.0 ± 1.4", "not run", "90.0"]
    assert row["Seeds (n)"] == "2 / 1" and row["Source"] == "misc/results/cifar10.jsonl"
    assert row["What differs"] == ("prior: a latent diffusion model of our own; protocol d4m; 100 / 60 epochs (200 steps); "
                                   "ImageNet stem; teacher convnet_d3_w128_bn with 82.1 % after 5 epochs; what is not run: "
                                   "`sh misc/studies/cifar10.sh`")
    (real,) = rows_of(text, "this code, all real training images")
    assert real["All real (%)"] == "95.0" and real["IPC 10 (%)"] == "–"
    (herding,) = rows_of(text, "this code, real images by herding, soft labels")
    assert herding["IPC 10 (%)"] == "50.0"
    (convnet,) = rows_of(text, "CIFAR-10", "ConvNet-W128", "this code, D4M images")
    assert convnet["IPC 50 (%)"] == "55.0" and "stem" not in convnet["What differs"]
    (crossed,) = rows_of(table("literature-cross", misc), "CIFAR-10, IPC 50")
    assert (crossed["ConvNet-W128 (%)"], crossed["ResNet-50 (%)"], crossed["ResNet-18 (%)"]) == ("55.0", "40.0", "not run")


def test_the_names_that_the_shell_scripts_give_are_understood(misc):
    """validate/train_FKD.sh's folders; images from noise say so in the name that they are given."""
    runs = [student("imagenet_ipc50_label18_resnet18-d4m", 0.55, 50_000),
            student("imagenet_ipc10_label18_resnet18-d4m", 0.25, 10_000),
            student("noise-imagenet_ipc10_label18_resnet18-d4m", 0.15, 10_000),
            student("imagenet_ipc10_label18_resnet18-rded", 0.45, 10_000, protocol="rded")]
    labels = next(run for run in REAL if run.name.endswith("soft-labels/distilled-ipc10"))
    labels = replace(labels, metrics={"images": 50_000, "epochs": 300, "stored_epochs": 300, "classes": 1000,
                                      "stored_logits": 1000, "bytes": 30_500_000_000})
    collect(Results([*runs, labels]), misc / "results" / "imagenet.jsonl")
    cells = {name: rows_of(table(f"literature-{name}", misc), "misc/results/imagenet.jsonl", "ResNet-18")
             for name in ("large", "start", "matching", "storage")}
    assert [(row["IPC 10 (%)"], row["IPC 50 (%)"]) for row in cells["large"]] == [("25.0", "55.0"), ("45.0", "not run"),
                                                                                  ("15.0", "–")]
    assert (cells["start"][0]["Start: prototypes (%)"], cells["start"][0]["Start: noise (%)"]) == ("25.0", "15.0")
    assert cells["matching"][0]["At training time (%)"] == "25.0"
    assert [cells["storage"][0][name] for name in ("Labels", "Times smaller", "Accuracy (%)")] == ["30.50 GB", "1.0", "55.0"]
    assert "to run it" not in cells["start"][0]["What differs"] + cells["storage"][0]["What differs"]


def test_runs_of_two_settings_in_one_cell_are_refused(here, misc):
    runs = [student(f"resnet18-distilled-ipc10-soft-seed{seed}", 0.7, 100, seed=seed, epochs=60 + seed) for seed in (0, 1)]
    collect(Results(runs), misc / "results" / "cifar10.jsonl")
    answer = here("misc.report.__main__", "tables", "--root", misc.parent)
    assert refused(answer, "distilled-ipc10-soft-seed1", "epochs 60 and 61")


def test_continual_runs_fill_their_rows(misc):
    """ER on real images, from whichever of the continual studies has it with several seeds."""
    files = [read_collected(path).runs for path in sorted((ROOT / "misc" / "results").glob("continual_*.jsonl"))]
    chosen = ([run for run in file if (run.get("config.method"), run.get("config.stream")) == ("er", "real")] for file in files)
    runs = next(runs for runs in chosen if len({run.config["seed"] for run in runs}) > 1)
    runs = [run for run in runs if run.metrics["steps"] == runs[0].metrics["steps"]]
    collect(Results(runs), misc / "results" / "continual_order_cifar10.jsonl")
    text = table("literature-continual", misc)
    (row,) = rows_of(text, f"this code, ER, real, buffer {runs[0].config['buffer_size']}")
    for name, column in (("acc", "Class-IL (%)"), ("task_il_acc", "Task-IL (%)")):
        values = [100 * run.metrics[name] for run in runs]
        assert row[column] == f"{statistics.fmean(values):.1f} ± {statistics.stdev(values):.1f}"
    assert row["Seeds (n)"] == str(len(runs)) and f"{runs[0].metrics['steps']} steps in batches of" in row["What differs"]
    assert len(rows_of(text, "misc/results/continual_order_cifar10.jsonl", "not run")) == 3
